"""What a step was to do, and what became of it: planned = done + failed, or the step has failed."""

from collections.abc import Set
from dataclasses import dataclass

from pipelines.config import RunError

NUM_NAMED = 5


@dataclass(frozen=True)
class Account:
    """Counts of one step, in its own `unit` (a plural noun)."""

    unit: str
    planned: int
    done: int
    failed: int

    def __str__(self) -> str:
        return f"{self.planned} {self.unit} planned = {self.done} done + {self.failed} failed"


def settle(
    step: str, unit: str, planned: Set[str], done: Set[str], failed: Set[str] = frozenset()
) -> Account:
    """The account of a step from the names of its units; what is not planned does not count.

    Raises:
        RunError: something planned is neither done nor failed; it says what.
    """
    done = planned & done
    failed = (planned & failed) - done
    if missing := sorted(planned - done - failed):
        raise RunError(
            f"{step}: {len(missing)} of {len(planned)} planned {unit} are neither done nor failed: "
            f"{', '.join(missing[:NUM_NAMED])}{', ...' if len(missing) > NUM_NAMED else ''}; give the same "
            "command again, which does what is missing"
        )
    return Account(unit, len(planned), len(done), len(failed))
