"""Run the main job on a small corpus that it makes itself, or on your own videos."""

import argparse
import logging
import sys
from pathlib import Path

from jobs import fcvid_encode
from pipelines import logs
from pipelines.demo.corpus import make_demo_corpus
from pipelines.demo.queries import QUERIES
from pipelines.demo.weights import weights_or_random

log = logging.getLogger("video_fisher")


def main(argv: list[str] | None = None) -> int:
    """Make the corpus, find weights and run the job; return its exit code."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--videos", help="folder of your own videos; needs --labels")
    parser.add_argument("--labels", help="CSV with their labels: path,label[,group][,split]")
    parser.add_argument(
        "--weights",
        help="file or URI of SqueezeNet 1.0 weights, a state dict (default: download them)",
    )
    parser.add_argument(
        "--out", default="demo_out", help="folder for all output (default: demo_out)"
    )
    arguments = parser.parse_args(argv)
    if bool(arguments.videos) != bool(arguments.labels):
        parser.error("VIDEOS and LABELS go together")
    logs.configure()
    out = Path(arguments.out)
    if arguments.videos:
        videos, labels = arguments.videos, arguments.labels
    else:
        labels = str(make_demo_corpus(out / "corpus", on_video=_progress))
        videos = str(out / "corpus")
    run = out / "run"
    code = fcvid_encode.main(
        [
            *("--videos", videos, "--labels", labels, "--out", str(run), "--recipe", "demo"),
            *("--set", f"describe.weights={weights_or_random(arguments.weights)}"),
        ]
    )
    if code != 2:
        print(QUERIES.format(out=run, stream="features_12_difference"))
    return code


def _progress(done: int, total: int) -> None:
    if done % 24 == 0 or done == total:
        log.info("demo corpus: %d/%d videos", done, total)


if __name__ == "__main__":
    sys.exit(main())
