"""Measure optical flow against pairs with truth: `python -m jobs.flow_error --pairs FOLDER`.

Pairs are those of FlyingChairs, Sintel or KITTI, as these sets name their files. The mean end-point
errors of dense inverse search, of TV-L1 and of networks that a run has trained are printed beside
VU Table 4.3. Exit codes: 0 done, 2 something in the flags or the files is wrong.
"""

import sys
from collections.abc import Sequence

import rich_click as click

from jobs import command_line


@command_line.command(__doc__)
@click.option(
    "--pairs",
    required=True,
    metavar="FOLDER",
    help="Folder or URI below which pictures with .flo or KITTI .png truth are.",
)
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="FOLDER",
    help="Folder of a trained actionflownet of two frames, as a run has it; may be repeated.",
)
@click.option(
    "--side-px",
    type=click.IntRange(min=12),
    help="Resize pictures to squares of this side, and the truth with them (default: as they are).",
)
@click.option(
    "--limit", type=click.IntRange(min=1), help="Take only so many pairs (default: all of them)."
)
def command(pairs: str, networks: tuple[str, ...], side_px: int | None, limit: int | None) -> int:
    """Measure, print both tables and return the exit code."""
    return command_line.guarded(lambda: _run(pairs, networks, side_px, limit))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print both tables and return the exit code."""
    return command_line.main(command, "python -m jobs.flow_error", argv)


def _run(folder: str, networks: tuple[str, ...], side_px: int | None, limit: int | None) -> int:
    # torch takes seconds to load: wrong flags are reported before.
    from pipelines.networks.flow_pairs import found
    from pipelines.studies import flow_error
    from pipelines.video.flow import METHODS, require_opencv

    require_opencv()
    methods = {flow_error.ZERO: flow_error.zero}
    methods |= {name: flow_error.classical(name) for name in METHODS}
    methods |= {network: flow_error.of_network(network) for network in networks}
    pairs = found(folder)[:limit]
    print("\n".join(flow_error.lines(flow_error.errors(pairs, methods, side_px or 0), len(pairs))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
