"""Run DQ Table 6: pictures whole and by boxes, frozen and fine-tuned network, five encodings.

`python -m jobs.fine_grained --videos ... --labels ... --out ...` makes four runs in folders of
--out, prints one table beside the paper's, and writes it to fine_grained.html with the attention of
tested pictures. The flags and the exit codes are those of `jobs/fcvid_encode.py`. The labels need
boxes, and one split into training and test pictures. Settings of the fine-tuning are `tsn.*`.
Finished work is kept under --out, and the same command goes on from there.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import rich_click as click

from jobs import command_line, run_flags
from jobs.run_flags import Flags
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.run.job import Job
    from pipelines.settings.config import Config

NETWORK = "tsn"
"""Of one snippet it is a classifier of pictures."""

OWN = (
    "encode.encoders=ave,gmm_fv,vlad,bilinear,fv_vae",
    "classify.fusions=",
    "network.frames=1",
    "network.test_clips=1",
    "network.test_views=mirror",
    "tsn.segments=1",
    "tsn.num_steps=2000",
    "tsn.rate_at=1500",
    "tsn.batch_clips=32",
    "tsn.learning_rate=0.001",
    "tsn.decay=0.0005",
)
"""Of the runs, after the recipe: DQ says nothing of its fine-tuning."""

RUNS = {
    ("ignore", False): "whole",
    ("ignore", True): "whole_fine_tuned",
    ("crop", False): "boxes",
    ("crop", True): "boxes_fine_tuned",
}
"""{(picture.box, fine-tuned): folder}, in the order of the columns of DQ Table 6."""


@command_line.command(__doc__)
@run_flags.add("cub")
@click.option(
    "--pictures", type=int, default=6, metavar="N", help="Tested pictures whose attention is shown."
)
def command(given: Flags, pictures: int) -> int:
    """Run the four scenarios, print the table and return the exit code."""
    return command_line.guarded(lambda: _run(given, pictures))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the four scenarios, print the table and return the exit code."""
    return command_line.main(command, "python -m jobs.fine_grained", argv)


def _run(given: Flags, pictures: int) -> int:
    if given.steps != "all" or given.plan:
        raise ConfigError(
            "--steps and --plan: expected neither, because this job is four runs; leave them out"
        )
    config = run_flags.configuration(given, OWN)
    side = config.picture.crop_px
    # A random 224 of 256, as for any network.
    sides = [f"network.crop_px={side}", f"network.side_px={round(side * 8 / 7)}"]
    config = run_flags.configuration(given, [*OWN, *sides])
    _check(given, config)
    weights = ""
    for (box, is_tuned), name in RUNS.items():
        own = [f"picture.box={box}"]
        own += [f"describe.weights={weights}"] if is_tuned else [f"network.networks={NETWORK}"]
        made: list[Job] = []
        there = dataclasses.replace(given, out=_out(given, name))
        code = run_flags.run(there, config.with_settings(own), finish=made.append)
        if code:
            return code
        if not is_tuned:
            (network,) = made[0].networks
            weights = made[0].store.uri(f"{network.folder}/image.safetensors")
    _print(given, pictures)
    return 0


def _check(given: Flags, config: Config) -> None:
    from pipelines import prepare

    boxed = config.with_settings(["picture.box=crop"])
    job = prepare.prepare(run_flags.inputs(given, boxed), plan=True)
    if job.num_folds != 1:
        raise ConfigError(
            f"split.kind: expected one split into training and test pictures, got {job.num_folds} "
            f"folds ({job.split}); each fold would need a network of its own: set split.kind=given "
            "or split.kind=random, and give --labels"
        )


def _out(given: Flags, name: str) -> str:
    return f"{given.out.rstrip('/')}/{name}"


def _print(given: Flags, number: int) -> None:
    from pipelines.predict.attention import attention
    from pipelines.run.saved import SavedRun
    from pipelines.storage.store import Store
    from pipelines.storage.uris import absolute_uri
    from pipelines.studies import fine_grained

    runs = {name: SavedRun.open(_out(given, name)) for name in RUNS.values()}
    found = fine_grained.rows(list(runs.values()))
    pictures = {
        name: {one.video: one.png for one in attention(run, number)} for name, run in runs.items()
    }
    for line in fine_grained.text(found):
        print(line)
    print(f"page: {fine_grained.publish(Store(absolute_uri(given.out)), found, pictures)}")


if __name__ == "__main__":
    sys.exit(main())
