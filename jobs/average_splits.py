"""Run the main job on several given splits and average their numbers.

`python -m jobs.average_splits --splits split1,split2,split3 --videos ... --labels ... --out ...`;
the labels have a column for each split, with train, test or unused. The other flags and the exit
codes are those of `jobs/fcvid_encode.py`. Videos are decoded and described once; codebooks and
classifiers are fitted for each split on its own training videos.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import rich_click as click

from jobs import command_line, run_flags
from jobs.run_flags import Flags
from pipelines import flags
from pipelines.errors import ConfigError
from pipelines.index.labels import read_labels

if TYPE_CHECKING:
    from pipelines.run.job import Job


@command_line.command(__doc__)
@run_flags.add("ucf101")
@click.option(
    "--splits",
    required=True,
    metavar="NAMES",
    help="Columns of the labels file, joined by commas, such as split1,split2.",
)
def command(given: Flags, splits: str) -> int:
    """Run the splits one after the other and return the exit code."""
    return command_line.guarded(lambda: _run(given, splits))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the splits one after the other and return the exit code."""
    return command_line.main(command, "python -m jobs.average_splits", argv)


def _run(given: Flags, columns: str) -> int:
    config = run_flags.configuration(given)
    names = flags.parse_splits(columns)
    if given.steps != "all" or given.retry_failed is not None:
        raise ConfigError(
            "--steps and --retry-failed: expected neither, because every split needs its "
            "numbers, from the same descriptors; leave them out, or retry with "
            "jobs.fcvid_encode first"
        )
    if not given.labels:
        raise ConfigError("--labels: expected the file with the columns of --splits, got none")
    of_splits = {
        name: config.with_settings(["split.kind=given", f"split.name={name}"]) for name in names
    }
    for name in names:
        # A wrong name must show now, not after hours with the splits before it.
        read_labels(given.labels, name)
    jobs: list[Job] = []
    for name in names:
        code = run_flags.run(
            given,
            of_splits[name],
            # run.json and the report are those of the last split. Finished splits before it do
            # not write them again.
            restore=name == names[-1],
            finish=jobs.append,
        )
        if code:
            return code
    if given.plan:
        return 0
    from pipelines.studies import splits

    for line in splits.publish(jobs):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
