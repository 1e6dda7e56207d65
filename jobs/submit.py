"""Submit the main job to a running cluster, follow its log, and submit it again until it is done.

`python -m jobs.submit --address http://HEAD:8265 -- --videos ... --labels ... --out ...`; the flags
of `jobs/fcvid_encode.py` follow `--`. Exit codes: those of that job (0 done, 2 something in the
inputs or settings is wrong, 3 too many segments failed), 1 all attempts failed or a time limit has
passed, 130 stopped by Ctrl-C, 143 stopped by somebody else.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from jobs import command_line, fcvid_encode
from pipelines import flags
from pipelines.errors import ConfigError
from pipelines.storage.uris import refuse_credentials

JOB = "jobs/fcvid_encode.py"
ADDRESS = "http://127.0.0.1:8265"


def parser() -> argparse.ArgumentParser:
    """Return a parser of the frozen command line."""
    out = argparse.ArgumentParser(prog="submit", description=command_line.summary(__doc__))
    out.add_argument(
        "--address",
        default=ADDRESS,
        help=f"URL of the dashboard of the Ray head (default: {ADDRESS})",
    )
    out.add_argument(
        "--attempts", type=int, default=10, help="submit at most so many times (default: 10)"
    )
    out.add_argument(
        "--up",
        default="",
        metavar="FILE",
        help="configuration of the cluster; while no head answers, `ray up FILE` starts one",
    )
    out.add_argument(
        "--working-dir",
        default=".",
        help="the checkout, which is uploaded without what .rayignore lists (default: .)",
    )
    out.add_argument(
        "--runtime-env",
        default="",
        metavar="FILE",
        help="YAML file with the job's environment, as for `ray job submit`",
    )
    out.add_argument(
        "--pending-timeout-s",
        type=float,
        metavar="SECONDS",
        default=600.0,
        help="give up where a submitted job has not started by then (default: 600)",
    )
    out.add_argument(
        "--head-timeout-s",
        type=float,
        metavar="SECONDS",
        default=1800.0,
        help="give up where the head has not answered for so long (default: 1800)",
    )
    out.add_argument("job", nargs="*", metavar="-- FLAGS", help=f"the flags of {JOB}")
    return out


def main(argv: list[str] | None = None) -> int:
    """Submit the job and return the exit code."""
    arguments = parser().parse_args(argv)
    # Wrong flags are reported here, before anything reaches the cluster.
    job = fcvid_encode.parser().parse_args(arguments.job)
    return command_line.guarded(lambda: _submit(arguments, job))


def _submit(arguments: argparse.Namespace, job: argparse.Namespace) -> int:
    command_line.refuse_relative_paths(job)
    if job.config is None:  # a file may lie on the cluster alone
        command_line.configuration(job)
    refuse_credentials("--address", arguments.address)
    if not arguments.address.startswith(("http://", "https://")):
        raise ConfigError(f"--address {arguments.address}: expected http://HEAD:8265")
    for name in ("attempts", "pending_timeout_s", "head_timeout_s"):
        if not 0 < getattr(arguments, name) < float("inf"):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag}: expected more than 0, got {getattr(arguments, name)}")
    # Ray's client prefers this variable to the address that it is called with. The mode is read
    # when Ray is imported.
    os.environ["RAY_API_SERVER_ADDRESS"] = arguments.address
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from pipelines.submission import Request, Submitter, working_dir

    folder = working_dir(arguments.working_dir, JOB)
    # Ray's own messages repeat ours, and list every folder that is left out of the upload.
    for name in ("ray", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    request = Request(
        address=arguments.address,
        command=("python", JOB, *arguments.job),
        runtime_env={**flags.read_runtime_env(arguments.runtime_env), "working_dir": folder},
        attempts=arguments.attempts,
        pending_timeout_s=arguments.pending_timeout_s,
        head_timeout_s=arguments.head_timeout_s,
        up=arguments.up,
    )
    return Submitter(request, _print).run()


def _print(text: str) -> None:
    print(text, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
