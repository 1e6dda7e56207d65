"""Train a network that scores videos by itself, and score, measure and report with it.

`python -m jobs.train_network --network tdn --videos ... --labels ... --out ...` is the main job
with recipe `tdn`; the flags and the exit codes are those of `jobs/fcvid_encode.py`. A recipe of
one's own choice keeps its settings, and trains this network.
"""

import dataclasses
import sys
from collections.abc import Sequence

import rich_click as click

from encoders.networks.registry import NETWORKS
from jobs import command_line, run_flags
from jobs.run_flags import Flags
from pipelines.settings.recipes import RECIPES


@command_line.command(__doc__)
@run_flags.add("the network's")
@click.option(
    "--network", required=True, type=click.Choice([*NETWORKS]), help="The network that is trained."
)
def command(given: Flags, network: str) -> int:
    """Run the job and return the exit code."""
    own = network if network in RECIPES else "tdn"
    if NETWORKS[network][1].reads_maps:
        own = "sports1m"
    given = dataclasses.replace(given, default_recipe=own)
    first = (f"network.networks={network}",)
    return command_line.guarded(lambda: run_flags.run(given, run_flags.configuration(given, first)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return the exit code."""
    return command_line.main(command, "python -m jobs.train_network", argv)


if __name__ == "__main__":
    sys.exit(main())
