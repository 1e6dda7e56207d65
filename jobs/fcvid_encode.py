"""The main job: videos and labels in; descriptors, codebooks, Fisher vectors, SVMs and a report out.

The FCVID protocol (VU 5.4.1) is the default recipe; the others differ only in their configuration.
Exit codes: 0 done, 1 the run could not go on, 2 something in the inputs or settings is wrong, 3 too many
segments failed.
"""

import argparse
import logging
import os
import sys

from pipelines.config import ConfigError, RunError
from pipelines.recipes import RECIPES, recipe

log = logging.getLogger("video_fisher")


def parser() -> argparse.ArgumentParser:
    """The frozen command line; everything else is `--set section.field=value`."""
    out = argparse.ArgumentParser(prog="fcvid_encode", description=__doc__.splitlines()[0])
    out.add_argument(
        "--videos",
        required=True,
        help="folder, glob, file or URI, or a CSV/Parquet manifest (path)",
    )
    out.add_argument(
        "--labels", help="CSV: path,label[,group][,split]; several rows: several labels"
    )
    out.add_argument("--out", required=True, help="URI that the tables and the report go under")
    out.add_argument("--recipe", default="fcvid", help=f"one of {', '.join(RECIPES)} (fcvid)")
    out.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="SECTION.FIELD=VALUE",
        help="any field of the configuration (pipelines/config.py); repeatable",
    )
    out.add_argument("--steps", default="all", help="all, or names joined by commas (all)")
    out.add_argument("--limit", type=int, help="use that many videos only, spread over the corpus")
    out.add_argument(
        "--address", help="Ray cluster to join; default: RAY_ADDRESS, else one started here"
    )
    return out


def configure_logging() -> None:
    """One line per event of our own; of libraries, warnings only."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in ("video_fisher", "jobs", "pipelines", "encoders"):
        logging.getLogger(name).setLevel(logging.INFO)


def main(argv: list[str] | None = None) -> int:
    """Runs the job; returns the exit code."""
    arguments = parser().parse_args(argv)
    configure_logging()
    try:
        config = recipe(arguments.recipe).with_settings(arguments.settings)
        return run(arguments, config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace, config: object) -> int:
    """Prepares and runs; imported late, so that a wrong setting shows before torch and Ray are loaded."""
    address = arguments.address or os.environ.get("RAY_ADDRESS")
    if not address:
        # Read by Ray when it is imported. The embedded cluster listens on the loopback address only, and
        # a token file in the home folder would lock `ray start` and `ray job` out of each other later.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # Ray's C++ side prints a harmless error for every actor pool.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    from pipelines import corpus, prepare

    steps = prepare.parse_steps(arguments.steps)
    job = prepare.prepare(
        videos=arguments.videos,
        labels=arguments.labels,
        out=arguments.out,
        config=config,
        steps=steps,
        limit=arguments.limit,
    )
    outcome = corpus.run(job, steps, address)
    for line in corpus.closing_lines(job, outcome, steps):
        log.info(line)
    limit = config.run.max_failed_fraction
    if outcome.failed_fraction > limit:
        log.error(
            "%.1f %% of the segments failed, more than run.max_failed_fraction = %.1f %%; all that could "
            "be done was written, see %s",
            100 * outcome.failed_fraction,
            100 * limit,
            job.store.uri(job.failures),
        )
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
