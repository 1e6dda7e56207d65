"""The main job: videos and labels in; descriptors, codebooks, Fisher vectors, SVMs and a report out.

The FCVID protocol (VU 5.4.1) is the default recipe; the others differ only in their configuration.
Exit codes: 0 done, 1 the run could not go on, 2 something in the inputs or settings is wrong, 3 too many
segments failed, 130 and 143 it was stopped (Ctrl-C; `ray job stop`, SIGTERM).
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines import logs, ray_job
from pipelines.config import Config
from pipelines.errors import ConfigError, RunError
from pipelines.recipes import RECIPES, recipe

if TYPE_CHECKING:  # torch and Ray are loaded after the settings were checked
    from pipelines.layout import Job

log = logging.getLogger("video_fisher")

STOPPED = "stopped: what is finished is kept, and the same command goes on from there"


def parser(
    prog: str = "fcvid_encode", description: str = __doc__, default_recipe: str = "fcvid"
) -> argparse.ArgumentParser:
    """The frozen command line; everything else is `--set section.field=value`."""
    out = argparse.ArgumentParser(prog=prog, description=description.splitlines()[0])
    out.add_argument(
        "--videos",
        required=True,
        help="folder, glob, file or URI, or a CSV/Parquet manifest (path)",
    )
    out.add_argument(
        "--labels", help="CSV: path,label[,group][,split]; several rows: several labels"
    )
    out.add_argument("--out", required=True, help="URI that the tables and the report go under")
    out.add_argument(
        "--recipe",
        default=default_recipe,
        help=f"one of {', '.join(RECIPES)} ({default_recipe})",
    )
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
        "--plan",
        action="store_true",
        help="say what the run would take and cost, from trials on a sample; start nothing",
    )
    out.add_argument(
        "--retry-failed",
        nargs="?",
        const="",
        choices=("", "pyav", "decord"),
        metavar="DECODER",
        help="try the segments of FAILURES again, with that decoder if one is named",
    )
    out.add_argument(
        "--take-over",
        action="store_true",
        help="take the output folder from another run that is surely dead",
    )
    out.add_argument(
        "--address", help="Ray cluster to join; default: RAY_ADDRESS, else one started here"
    )
    return out


def main(argv: list[str] | None = None) -> int:
    """Runs the job; returns the exit code."""
    arguments = parser().parse_args(argv)
    return guarded(
        lambda: run(arguments, recipe(arguments.recipe).with_settings(arguments.settings))
    )


def guarded(job: Callable[[], int]) -> int:
    """The exit code of a job, with the user's errors as one message each.

    A signal that ends the job unwinds it, so that the lock of the output folder is given back.
    """
    logs.configure()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return job()
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        print(STOPPED, file=sys.stderr)
        return 128 + signal.SIGTERM
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _terminate(*_: object) -> None:
    # What Ray's own handler raises, which takes the place of this one.
    sys.exit(signal.SIGTERM)


def refuse_relative_paths(arguments: argparse.Namespace) -> None:
    """For a Ray job."""
    names = ("videos", "labels", "out")
    ray_job.refuse_relative({f"--{name}": getattr(arguments, name) for name in names})


def run(
    arguments: argparse.Namespace,
    config: Config,
    *,
    training_only: bool = False,
    finish: Callable[[Job], None] = lambda job: None,
) -> int:
    """Prepares and runs; imported late, so that a wrong setting shows before torch and Ray are loaded.

    Args:
        training_only: see `prepare.prepare`.
        finish: called at the end, before the exit code is decided.
    """
    address = arguments.address or os.environ.get("RAY_ADDRESS")
    if not address:
        # Read by Ray when it is imported. The embedded cluster listens on the loopback address only, and
        # a token file in the home folder would lock `ray start` and `ray job` out of each other later.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray's C++ side prints a harmless error for every actor pool.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    from pipelines import corpus, planning, prepare
    from pipelines.lock import RunLock

    submission = ray_job.submission()
    if submission.id:
        refuse_relative_paths(arguments)
    steps = prepare.parse_steps(arguments.steps)
    inputs = {
        "videos": arguments.videos,
        "labels": arguments.labels,
        "out": arguments.out,
        "config": config,
        "steps": steps,
        "limit": arguments.limit,
        "training_only": training_only,
    }
    if arguments.plan:
        print(planning.run(prepare.prepare_plan(**inputs), steps))
        return 0
    job = prepare.prepare(**inputs)
    if all(corpus.is_complete(job, step) for step in steps) and arguments.retry_failed is None:
        outcome = corpus.run(job, steps, address)
    else:
        command = shlex.join(sys.argv)
        with RunLock(
            job.store,
            command,
            take_over=arguments.take_over,
            submission=submission,
        ) as lock:
            if arguments.retry_failed is not None:
                job = prepare.retry_failed(job, steps, arguments.retry_failed)
            outcome = corpus.run(job, steps, address, lock.check)
    for line in corpus.closing_lines(job, outcome, steps):
        log.info(line)
    finish(job)
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
