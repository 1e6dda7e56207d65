"""Run the main job on a small corpus that it makes itself, or on your own videos."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import rich_click as click

from jobs import command_line, fcvid_encode
from pipelines import logs

log = logging.getLogger("video_fisher")


@command_line.command(__doc__)
@click.option("--videos", metavar="PATH", help="Folder of your own videos; needs --labels.")
@click.option("--labels", metavar="FILE", help="CSV with their labels: path,label[,group][,split].")
@click.option(
    "--weights",
    metavar="FILE",
    help="File or URI of SqueezeNet 1.0 weights, a state dict (default: download them).",
)
@click.option(
    "--out",
    default="demo_out",
    metavar="FOLDER",
    help="Folder for all output (default: demo_out).",
)
def command(videos: str | None, labels: str | None, weights: str | None, out: str) -> int:
    """Make the corpus, find weights and run the job; return its exit code."""
    if bool(videos) != bool(labels):
        raise click.UsageError("--videos and --labels go together")
    logs.configure()
    # torch takes seconds to load: wrong flags are reported before.
    from pipelines.demo.corpus import make_demo_corpus
    from pipelines.demo.queries import QUERIES
    from pipelines.demo.weights import weights_or_random

    folder = Path(out)
    if not videos or not labels:
        labels = str(make_demo_corpus(folder / "corpus", on_video=_progress))
        videos = str(folder / "corpus")
    run = folder / "run"
    code = fcvid_encode.main(
        [
            *("--videos", videos, "--labels", labels, "--out", str(run), "--recipe", "demo"),
            *("--set", f"describe.weights={weights_or_random(weights)}"),
        ]
    )
    if code != 2:
        print(QUERIES.format(out=run, stream="features_12_difference"))
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Make the corpus, find weights and run the job; return its exit code."""
    return command_line.main(command, "python -m jobs.demo", argv)


def _progress(done: int, total: int) -> None:
    if done % 24 == 0 or done == total:
        log.info("demo corpus: %d/%d videos", done, total)


if __name__ == "__main__":
    sys.exit(main())
