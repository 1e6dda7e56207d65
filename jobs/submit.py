"""Submit the main job to a running cluster, follow its log, and submit it again until it is done.

`python -m jobs.submit --address http://HEAD:8265 -- --videos ... --labels ... --out ...`; the flags
of `jobs/fcvid_encode.py` follow `--`. Exit codes: those of that job (0 done, 2 something in the
inputs or settings is wrong, 3 too many segments failed), 1 all attempts failed or a time limit has
passed, 130 stopped by Ctrl-C, 143 stopped by somebody else.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import rich_click as click

from jobs import command_line, fcvid_encode, run_flags
from jobs.run_flags import Flags
from pipelines import flags, ray_job
from pipelines.errors import ConfigError
from pipelines.storage.uris import refuse_credentials

JOB = "jobs/fcvid_encode.py"
ADDRESS = "http://127.0.0.1:8265"


@command_line.command(__doc__)
@click.option(
    "--address",
    default=ADDRESS,
    metavar="URL",
    help=f"URL of the dashboard of the Ray head (default: {ADDRESS}).",
)
@click.option(
    "--attempts",
    type=int,
    default=10,
    metavar="N",
    help="Submit at most so many times (default: 10).",
)
@click.option(
    "--up",
    default="",
    metavar="FILE",
    help="Configuration of the cluster; while no head answers, `ray up FILE` starts one.",
)
@click.option(
    "--working-dir",
    default=".",
    metavar="FOLDER",
    help="The checkout, which is uploaded without what .rayignore lists (default: .).",
)
@click.option(
    "--runtime-env",
    default="",
    metavar="FILE",
    help="YAML file with the job's environment, as for `ray job submit`.",
)
@click.option(
    "--pending-timeout-s",
    type=float,
    metavar="SECONDS",
    default=600.0,
    help="Give up where a submitted job has not started by then (default: 600).",
)
@click.option(
    "--head-timeout-s",
    type=float,
    metavar="SECONDS",
    default=1800.0,
    help="Give up where the head has not answered for so long (default: 1800).",
)
@click.argument("job", nargs=-1, type=click.UNPROCESSED, metavar="-- FLAGS")
def command(job: tuple[str, ...], **given: Any) -> int:
    """Submit the job and return the exit code."""
    # Wrong flags are reported here, before anything reaches the cluster.
    run = run_flags.parsed(fcvid_encode.command, job, JOB)
    return command_line.guarded(lambda: _submit(given, run, job))


def main(argv: Sequence[str] | None = None) -> int:
    """Submit the job and return the exit code."""
    return command_line.main(command, "python -m jobs.submit", argv)


def _submit(given: dict[str, Any], run: Flags, job: tuple[str, ...]) -> int:
    ray_job.refuse_relative(run.paths)
    if run.config is None:  # a file may lie on the cluster alone
        run_flags.configuration(run)
    refuse_credentials("--address", given["address"])
    if not given["address"].startswith(("http://", "https://")):
        raise ConfigError(f"--address {given['address']}: expected http://HEAD:8265")
    for name in ("attempts", "pending_timeout_s", "head_timeout_s"):
        if not 0 < given[name] < float("inf"):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag}: expected more than 0, got {given[name]}")
    # Ray's client prefers this variable to the address that it is called with. The mode is read
    # when Ray is imported.
    os.environ["RAY_API_SERVER_ADDRESS"] = given["address"]
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from pipelines.submission import Request, Submitter, working_dir

    folder = working_dir(given.pop("working_dir"), JOB)
    # Ray's own messages repeat ours, and list every folder that is left out of the upload.
    for name in ("ray", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    environment = flags.read_runtime_env(given.pop("runtime_env"))
    request = Request(
        command=("python", JOB, *job),
        runtime_env={**environment, "working_dir": folder},
        **given,
    )
    return Submitter(request, _print).run()


def _print(text: str) -> None:
    print(text, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
