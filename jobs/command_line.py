"""Flags, exit codes and steps that the jobs have in common."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipelines import flags, logs, ray_job
from pipelines.cluster import doors
from pipelines.errors import ConfigError, user_error
from pipelines.plan.prices import read_prices
from pipelines.run.steps import STEPS
from pipelines.settings.config import Config
from pipelines.settings.recipes import RECIPES
from pipelines.storage.uris import refuse_credentials

if TYPE_CHECKING:  # torch and Ray are loaded after the settings were checked
    from pipelines.run.job import Job

log = logging.getLogger("video_fisher")

STOPPED = "stopped: what is finished is kept, and the same command goes on from there"


_RAY_ADDS = "\nFailed to "


def summary(docstring: str | None) -> str | None:
    """Return the first line of a job's docstring, the description of its command line."""
    return docstring.splitlines()[0] if docstring else None


def parser(
    prog: str, docstring: str | None, default_recipe: str = "fcvid"
) -> argparse.ArgumentParser:
    """Return a parser of the main job's frozen flags; all else is `--set section.field=value`.

    Args:
        docstring: the docstring of the job, whose first line is shown.
    """
    out = argparse.ArgumentParser(prog=prog, description=summary(docstring))
    out.add_argument(
        "--videos",
        required=True,
        help=(
            "folder, glob or single file, local or a URI, or a CSV or Parquet manifest: a "
            "column `path` that names the videos"
        ),
    )
    out.add_argument(
        "--labels",
        help=(
            "CSV or Parquet: path,label[,group][,split], several rows for several labels; "
            "annotations of UCF101, HMDB51, Kinetics, ActivityNet or FCVID as they are published; "
            "or the word folders: each video lies in the folder of its class (docs/labels.md)"
        ),
    )
    out.add_argument(
        "--out", required=True, help="folder or URI that the tables and the report are written to"
    )
    add_settings(out, default_recipe)
    out.add_argument(
        "--steps",
        default="all",
        help=f"steps to run, joined by commas: {','.join(STEPS)} (default: all)",
    )
    out.add_argument(
        "--limit", type=int, metavar="N", help="use N videos only, spread over the corpus"
    )
    out.add_argument(
        "--plan",
        action="store_true",
        help=(
            "say how long the run would take and what it would cost, from trials on a sample, "
            "and run nothing"
        ),
    )
    out.add_argument(
        "--retry-failed",
        nargs="?",
        const="",
        choices=("", "pyav", "decord"),
        metavar="DECODER",
        help=(
            "try the failed segments again, with this decoder if one is named: pyav, or decord, "
            "whose codecs are of 2018 and which asks for --set decode.accept_old_codecs=true"
        ),
    )
    out.add_argument(
        "--take-over",
        action="store_true",
        help="take the output folder's lock from another run; only if that run is surely dead",
    )
    out.add_argument(
        "--address",
        help=(
            "Ray cluster to join (default: RAY_ADDRESS if it is set, else a cluster of its own "
            "on this machine)"
        ),
    )
    return out


def add_settings(parser: argparse.ArgumentParser, default_recipe: str) -> None:
    """Add the flags that `configuration` reads: --recipe, --config and --set."""
    parser.add_argument(
        "--recipe",
        help=f"the settings to start from: one of {', '.join(RECIPES)} (default: {default_recipe})",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=(
            "YAML or JSON of {section: {field: value}}, or a run.json, whose settings are then "
            "taken"
        ),
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="SECTION.FIELD=VALUE",
        help="change one setting, after --config; may be repeated; docs/settings.md lists them all",
    )
    parser.set_defaults(default_recipe=default_recipe)


def configuration(arguments: argparse.Namespace, first: Sequence[str] = ()) -> Config:
    """Return the configuration that the flags give, and check the other plain flags.

    It needs neither torch nor Ray.

    Args:
        first: settings of a job's own, under those of the user.

    Raises:
        ConfigError: a flag that cannot be right.
    """
    for name in ("videos", "labels", "out", "config", "address"):
        refuse_credentials(f"--{name}", getattr(arguments, name, None) or "")
    flags.parse_steps(arguments.steps)
    flags.check_limit(arguments.limit)
    config = flags.configuration(
        arguments.recipe,
        arguments.config,
        arguments.settings,
        default_recipe=arguments.default_recipe,
        first=first,
    )
    if arguments.retry_failed == "decord" and not config.decode.accept_old_codecs:
        raise ConfigError(
            "--retry-failed decord: decord carries FFmpeg's codecs of 2018 (libavcodec 58.35), "
            "without the security fixes since then, and files that failed may be hostile; if you "
            "trust them, add --set decode.accept_old_codecs=true, otherwise use --retry-failed pyav"
        )
    return config


def guarded(job: Callable[[], int]) -> int:
    """Run a job and return its exit code; a user's error becomes one message.

    A signal that ends the job unwinds it, so that the lock of the output folder is given back.
    """
    logs.configure()
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # Ignored under nohup, which is to outlive the terminal.
        signal.signal(signal.SIGHUP, _hang_up)
    try:
        return job()
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 128 + signal.SIGINT
    except _HungUp:
        # The terminal, and with it the error stream, may be gone.
        with contextlib.suppress(OSError):
            print(STOPPED, file=sys.stderr, flush=True)
        return 128 + signal.SIGHUP
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        print(STOPPED, file=sys.stderr)
        return 128 + signal.SIGTERM
    except Exception as error:
        known = user_error(error)
        if known is None:
            raise
        # Ray Data adds how it could be told to try again, which a step would not outlive.
        print(f"error: {str(known).partition(_RAY_ADDS)[0]}", file=sys.stderr)
        return 2 if isinstance(known, ConfigError) else 1


class _HungUp(SystemExit):
    """The terminal of the job has gone (SIGHUP)."""


def _hang_up(*_: object) -> None:
    raise _HungUp


def _terminate(*_: object) -> None:
    # Ray's own handler, which replaces this one when Ray starts, does the same.
    sys.exit(signal.SIGTERM)


def refuse_relative_paths(arguments: argparse.Namespace) -> None:
    """Refuse relative paths for a Ray job, whose working directory is a copy.

    Raises:
        ConfigError: --videos, --labels or --out is a relative path.
    """
    names = ("videos", "labels", "out")
    ray_job.refuse_relative({f"--{name}": getattr(arguments, name) for name in names})


def before_ray(arguments: argparse.Namespace) -> tuple[str | None, ray_job.Submission]:
    """Return the cluster to join (None: start one on this machine), and this process's Ray job.

    To be called before Ray is imported, which reads the environment that is set here.
    """
    address = arguments.address or os.environ.get("RAY_ADDRESS")
    refuse_credentials("--address", address or "")
    if not address:
        doors.close()
    # Ray's C++ side prints a harmless error for every actor pool.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    submission = ray_job.submission()
    if submission.id:
        refuse_relative_paths(arguments)
    return address, submission


def run(
    arguments: argparse.Namespace,
    config: Config,
    *,
    training_only: bool = False,
    restore: bool = True,
    finish: Callable[[Job], None] = lambda job: None,
) -> int:
    """Run the steps that --steps names, or with --plan plan them; return the exit code.

    Args:
        training_only: see `prepare.Inputs`.
        restore: see `corpus.run`.
        finish: called at the end, before the exit code is decided.
    """
    address, submission = before_ray(arguments)
    if arguments.plan and config.plan.num_gpus:
        read_prices(config.plan.prices).gpu(config.plan.gpu)
    # torch and Ray take seconds to load: wrong settings are reported before.
    from pipelines import corpus, prepare
    from pipelines.plan import command as plan_command
    from pipelines.run import record
    from pipelines.run.lock import RunLock

    steps = flags.possible_steps(arguments.steps, arguments.videos, arguments.labels)
    inputs = prepare.Inputs(
        videos=arguments.videos,
        labels=arguments.labels,
        out=arguments.out,
        config=config,
        steps=steps,
        limit=arguments.limit,
        training_only=training_only,
    )
    if arguments.plan:
        print(plan_command.run(prepare.prepare(inputs, plan=True), steps))
        return 0
    job = prepare.prepare(inputs)
    described = record.is_described(job) or not restore
    is_done = described and not any(corpus.is_due(job, step, restore=restore) for step in steps)
    if is_done and arguments.retry_failed is None:
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
            outcome = corpus.run(job, steps, address, lock.check, restore=restore)
    for line in corpus.closing_lines(job, outcome, steps):
        log.info(line)
    finish(job)
    limit = config.run.max_failed_fraction
    if outcome.failed_fraction > limit:
        log.error(
            "%.1f %% of the segments failed, more than run.max_failed_fraction = %.1f %%; all "
            "that could be done was written, see %s",
            100 * outcome.failed_fraction,
            100 * limit,
            job.store.uri(job.failures),
        )
        return 3
    return 0
