"""Draw accuracy against the vector's length, its compression or the class loss (DQ Figure 4).

`python -m jobs.sweep --sweep dimension --videos ... --labels ... --out ...`; the other flags and
the exit codes are those of `jobs/fcvid_encode.py`. Every point is a variant of an encoder in one
ordinary run, so its numbers are rows of METRICS; the curves are `report/sweep-<name>.html`. Where
the videos are split into training and test videos, only the training videos are used, and split
again: a setting must not be chosen by its accuracy on test videos.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import rich_click as click

from jobs import command_line, run_flags
from jobs.run_flags import Flags
from pipelines import flags

if TYPE_CHECKING:
    from pipelines.run.job import Job


@command_line.command(__doc__)
@run_flags.add("weizmann")
@click.option(
    "--sweep",
    "quantity",
    type=click.Choice(("dimension", "lambda3", "compression")),
    required=True,
    help="What is varied: the length of the vector (2^12 to 2^17); lambda3 of the FV-VAE (0, "
    "and 1 to 1e5); or the length to which its vectors are compressed, by PCA, random Maclaurin "
    "features, or fewer latents (2^5 to 2^16, as far as each goes).",
)
@click.option("--values", metavar="NUMBERS", help="Use these values instead, joined by commas.")
def command(given: Flags, quantity: str, values: str | None) -> int:
    """Run the sweep, draw it and return the exit code."""
    typed = command_line.typed()
    return command_line.guarded(lambda: _run(given, quantity, values, typed))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep, draw it and return the exit code."""
    return command_line.main(command, "python -m jobs.sweep", argv)


def _run(given: Flags, quantity: str, values: str | None, typed: str) -> int:
    # Points of a curve are compared with each other, not fused.
    sweep_settings = ["describe.streams=appearance", "classify.fusions="]
    config = run_flags.configuration(given, sweep_settings)
    numbers = flags.parse_numbers(values)
    # torch takes seconds to load: wrong settings are reported before.
    from pipelines import prepare
    from pipelines.studies import sweep

    num_training = 0
    if quantity == "compression":
        job = prepare.prepare(run_flags.inputs(given, config, training_only=True), plan=True)
        num_training = min(len(job.training_videos(fold)) for fold in job.folds)
    encoders = sweep.variants(config, quantity, numbers, num_training)
    config = config.with_settings(
        [f"encode.encoders={','.join(encoders)}", "encode.attention=false"]
    )

    def finish(job: Job) -> None:
        for line in sweep.publish(job, quantity, typed):
            print(line)

    return run_flags.run(given, config, training_only=True, finish=finish)


if __name__ == "__main__":
    sys.exit(main())
