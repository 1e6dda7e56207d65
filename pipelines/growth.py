"""Whether a step's pools have the actors that they should have, and what to say where they do not."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.cluster import Pool

BUSY = 0.5
"""Part of their time that a pool's actors are at work, from which on work waits for more of them."""


@dataclass
class _Short:
    """Since when a pool has been too small, what its actors had worked by then, and when to say it next."""

    since_s: float
    busy_s: float
    next_s: float


class Growth:
    """Watches the pools of a step: a warning after `warning_s`, and then each time after twice as long.

    Args:
        pools: {stages that an actor of the pool does: the pool}; the last stage names it.
    """

    def __init__(self, pools: Mapping[tuple[str, ...], Pool], warning_s: float) -> None:
        self.pools, self.warning_s = pools, warning_s
        self.short: dict[str, _Short] = {}

    def warnings(
        self, now_s: float, left: int, have: Mapping[str, int], busy_s: Mapping[str, float]
    ) -> list[str]:
        """What is to be said now.

        Args:
            now_s: of a clock that never goes back.
            left: rows that the step has still to do.
            have: {last stage of a pool: its actors}.
            busy_s: {stage: seconds that all workers together have been busy with it}.
        """
        texts = []
        for stages, pool in self.pools.items():
            name, busy = stages[-1], sum(busy_s.get(stage, 0.0) for stage in stages)
            number = have.get(name, 0)
            if not left or number >= pool.size:
                self.short.pop(name, None)
                continue
            short = self.short.setdefault(name, _Short(now_s, busy, self.warning_s))
            waited_s = now_s - short.since_s
            if waited_s < short.next_s:
                continue
            if number and busy - short.busy_s < BUSY * number * waited_s:
                # Those that are there suffice so far. From now on, not from the next call: work is told of in lumps.
                self.short[name] = _Short(now_s, busy, self.warning_s)
                continue
            short.next_s *= 2
            texts.append(_text(name, pool, number, waited_s, left))
        return texts


def _text(name: str, pool: Pool, number: int, waited_s: float, left: int) -> str:
    held = {"CPU": pool.num_cpus, "GPU": pool.num_gpus}
    each = " and ".join(f"{amount:g} {kind}" for kind, amount in held.items() if amount)
    goes_on = "work goes on with these" if number else "nothing is done until there is one"
    return (
        f"the pool of {name} has had {number} of {pool.size} actors for {waited_s:.0f} s, {left} rows are left; each actor "
        f"needs {each}. Expected nodes to come: see `ray status`, max_workers of the autoscaler, the quota and the spot "
        f"capacity of the cloud, and whether a node of the cluster has that much; {goes_on}"
    )
