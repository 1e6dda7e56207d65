"""Train the backbone with the FV-VAE and print the command that uses the new weights.

`python -m jobs.finetune --videos ... --labels ... --out ... --set fv_vae.lambda3=100`; the flags
and the exit codes are those of `jobs/fcvid_encode.py`. Give the settings of the run that will use
the weights: the network and its node, the sampling, and the split, whose training videos alone are
used. The settings `finetune.*` say what is trained.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs import command_line, run_flags
from jobs.run_flags import Flags
from pipelines import launch
from pipelines.errors import ConfigError
from pipelines.settings.config import Config

if TYPE_CHECKING:
    from pipelines.fit.finetune import FinetuneJob

log = logging.getLogger("video_fisher")


@command_line.command(__doc__)
@run_flags.add()
def command(given: Flags) -> int:
    """Run the training and return the exit code."""
    return command_line.guarded(lambda: _run(given))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the training and return the exit code."""
    return command_line.main(command, "python -m jobs.finetune", argv)


def _run(given: Flags) -> int:
    if given.steps != "all" or given.retry_failed is not None:
        raise ConfigError(
            "--steps and --retry-failed: expected neither, because this job is one step; leave "
            "them out"
        )
    if given.plan:
        raise ConfigError(
            "--plan: expected a job whose steps can be planned, which this one is not; leave it out"
        )
    config = run_flags.configuration(given)
    address, submission = launch.before_ray(given.address, given.paths)
    from pipelines import corpus, prepare
    from pipelines.cluster import connect
    from pipelines.fit import finetune
    from pipelines.run.lock import RunLock

    finetune.check(config)
    job = prepare.prepare(
        prepare.Inputs(
            videos=given.videos,
            labels=given.labels,
            out=given.out,
            config=config,
            steps=("index",),
            limit=given.limit,
        )
    )
    todo = finetune.plan(job)
    if todo.is_done:
        log.info("finetune: complete, nothing to do")
    else:
        if not job.store.exists(job.weights.file):
            job.weights.load()
        with RunLock(
            job.store,
            shlex.join(sys.argv),
            take_over=given.take_over,
            submission=submission,
        ) as lock:
            corpus.run(job, ("index",), address, lock.check)
            connect.connect(address, config.cluster)
            lock.check()
            finetune.train(todo)
    _print(given, todo)
    return _exit_code(todo, config)


def _print(given: Flags, todo: FinetuneJob) -> None:
    uri = todo.job.store.uri
    log.info("weights and codebook: %s", uri(todo.folder))
    kept = [
        setting
        for setting in given.settings
        if not setting.startswith(("finetune.", "describe.weights="))
    ]
    # The main job starts from another recipe than this one where none is named.
    named = given.paths | {"--recipe": todo.job.config.recipe, "--config": given.config}
    flags = [word for flag, value in named.items() if value for word in (flag, value)]
    if given.limit is not None:
        flags += ["--limit", str(given.limit)]
    for setting in [*kept, f"describe.weights={uri(todo.weights)}"]:
        flags += ["--set", setting]
    print(f"python -m jobs.fcvid_encode {shlex.join(flags)}")


def _exit_code(todo: FinetuneJob, config: Config) -> int:
    from pipelines.fit import finetune

    failed, limit = finetune.failed_fraction(todo), config.run.max_failed_fraction
    if failed <= limit:
        return 0
    log.error(
        "%.1f %% of the training videos' segments failed, more than run.max_failed_fraction = "
        "%.1f %%; why is in %s",
        100 * failed,
        100 * limit,
        todo.job.store.uri(todo.frames),
    )
    return 3


if __name__ == "__main__":
    sys.exit(main())
