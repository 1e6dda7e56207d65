"""Draw accuracy against the vector's length or the weight of the class loss (DQ Figure 4).

`python -m jobs.sweep --sweep dimension --videos ... --labels ... --out ...`; the other flags and
the exit codes are those of `jobs/fcvid_encode.py`. Every point is a variant of an encoder in one
ordinary run, so its numbers are rows of METRICS; the curves are `report/sweep-<name>.html`. Where
the videos are split into training and test videos, only the training videos are used, and split
again: a setting must not be chosen by its accuracy on test videos.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from jobs import command_line
from pipelines import flags

if TYPE_CHECKING:
    from pipelines.run.job import Job


def main(argv: list[str] | None = None) -> int:
    """Run the sweep, draw it and return the exit code."""
    parser = command_line.parser("sweep", __doc__, "weizmann")
    parser.add_argument(
        "--sweep",
        choices=("dimension", "lambda3"),
        required=True,
        help=(
            "what is varied: the length of the vector (2^12 to 2^17), or lambda3 of the FV-VAE "
            "(0, and 1 to 1e5)"
        ),
    )
    parser.add_argument("--values", help="use these values instead, joined by commas")
    arguments = parser.parse_args(argv)
    command = f"python -m jobs.sweep {shlex.join(sys.argv[1:] if argv is None else argv)}"
    return command_line.guarded(lambda: _run(arguments, command))


def _run(arguments: argparse.Namespace, command: str) -> int:
    # Points of a curve are compared with each other, not fused.
    sweep_settings = ["describe.streams=appearance", "classify.fusions="]
    config = command_line.configuration(arguments, sweep_settings)
    values = flags.parse_numbers(arguments.values)
    # torch takes seconds to load: wrong settings are reported before.
    from pipelines.studies import sweep

    encoders = sweep.variants(config, arguments.sweep, values)
    config = config.with_settings(
        [f"encode.encoders={','.join(encoders)}", "encode.attention=false"]
    )

    def finish(job: Job) -> None:
        for line in sweep.publish(job, arguments.sweep, command):
            print(line)

    return command_line.run(arguments, config, training_only=True, finish=finish)


if __name__ == "__main__":
    sys.exit(main())
