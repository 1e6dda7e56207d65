"""Measure a temporal difference network on sets of labelled videos, alone and with Fisher vectors.

`python -m jobs.benchmark_networks --data ../shared/data/labelled --weights FILE` trains SqueezeNet
at 96 px without half of each set's groups in turn, and prints the accuracy of the image subnetwork,
of the difference subnetwork, of both, of the FV-VAE of recipe `actions`, and of all fused, with
95 % intervals over videos. Finished work is kept under --out, and the same command goes on from
there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import rich_click as click

from jobs import command_line, fcvid_encode
from pipelines.settings.recipes import recipe

NETWORK = "tdn"

SETTINGS = (
    "split.kind=group_kfold",
    "split.num_folds=2",
    f"network.networks={NETWORK}",
    "network.side_px=112",
    "network.crop_px=96",
    "network.test_clips=10",
    "network.test_views=mirror",
    "tdn.batch_clips=12",
    "tdn.learning_rate=0.004",
    "tdn.rate_at=",
    "tdn.num_steps=110,40",
    "tdn.decay=0.0005",
    "encode.attention=false",
    "classify.fusions=late_weighted",
    "classify.fusion_groups=encoders",
)
"""Of the runs, after recipe `actions`."""


@command_line.command(__doc__)
@click.option(
    "--data",
    required=True,
    metavar="FOLDER",
    help="Folder with a folder for each set: its videos and labels.csv (path,label,group).",
)
@click.option("--weights", required=True, metavar="FILE", help="Of SqueezeNet 1.0, or a URI.")
@click.option("--out", default="networks_out", metavar="FOLDER", help="Of the runs.")
@click.option(
    "--sets", default="weizmann,ut_interaction", metavar="NAMES", help="Joined by commas."
)
@click.option(
    "--set", "settings", multiple=True, metavar="SECTION.FIELD=VALUE", help="Of the runs."
)
def command(data: str, weights: str, out: str, sets: str, settings: tuple[str, ...]) -> int:
    """Run the benchmark and return the exit code."""
    return command_line.guarded(lambda: _run(Path(data), weights, out, sets, settings))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    return command_line.main(command, "python -m jobs.benchmark_networks", argv)


def _run(data: Path, weights: str, out: str, sets: str, own: tuple[str, ...]) -> int:
    actions = recipe("actions")
    (encoder,) = (name for name in actions.encode.encoders if name.startswith("fv_vae"))
    settings = (f"describe.weights={weights}", f"encode.encoders={encoder}", *SETTINGS, *own)
    for name in sets.split(","):
        folder, place = data / name, f"{out}/{name}"
        flags = ["--videos", str(folder), "--labels", str(folder / "labels.csv"), "--out", place]
        flags += ["--recipe", actions.recipe]
        for setting in settings:
            flags += ["--set", setting]
        if code := fcvid_encode.main(flags):
            return code
        _print(name, place, encoder)
    return 0


def _print(name: str, out: str, encoder: str) -> None:
    from pipelines.run.saved import SavedRun
    from pipelines.studies import networks

    run = SavedRun.open(out)
    for row in networks.accuracies(run, NETWORK, "rgb", (encoder, "late_weighted")):
        print(f"| {name} | {row.name} | {row} |")
    for part, (value, low, high) in networks.gain(run, NETWORK, "rgb").items():
        print(f"| {name} | both less {part} | {value:+.3f} [{low:+.3f}, {high:+.3f}] |")


if __name__ == "__main__":
    sys.exit(main())
