"""Accounts of a step: planned work and its outcome (planned = done + failed, or the step has
failed), and where its time went.
"""

import dataclasses
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Self

from pipelines.errors import RunError

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
    """Return the account of a step from the names of its units; unplanned ones do not count.

    Raises:
        RunError: something planned is neither done nor failed; it says what.
    """
    done = planned & done
    failed = (planned & failed) - done
    if missing := sorted(planned - done - failed):
        raise RunError(
            f"{step}: {len(missing)} of {len(planned)} planned {unit} are neither done nor failed: "
            f"{', '.join(missing[:NUM_NAMED])}{', ...' if len(missing) > NUM_NAMED else ''}; give "
            "the same command again, which does what is missing"
        )
    return Account(unit, len(planned), len(done), len(failed))


BOUND = {
    "probe": "storage-bound",
    "read": "storage-bound",
    "write": "storage-bound",
    "decode": "decode-bound",
    "describe": "network-bound",
}
"""{busiest stage of a step: what the step is called}; "<stage>-bound" for any other."""


WAITED_FOR = {
    "probe": "storage",
    "read": "storage",
    "write": "storage",
    "decode": "decoding",
    "describe": "the network",
    "encode": "the encoders",
    "fit": "training",
    "gram": "the Gram matrix",
    "solve": "the SVM solver",
    "measure": "metrics",
}
"""{busiest stage of a step: what the step waited for, in words}."""


@dataclass(frozen=True)
class Stage:
    """The work of one stage of a step.

    Attributes:
        workers: processes that had work.
        busy_s: seconds that they were at work, all together.
        start_s: seconds from the beginning of the step to a worker's first work, the mean of the
            workers.
        waited_s: seconds since the first work of any stage in which they had none, all together.
    """

    name: str
    workers: int
    busy_s: float
    start_s: float
    waited_s: float

    @property
    def share(self) -> float:
        """Return the share of the time since the first work of any stage that the workers were
        busy.
        """
        total = self.busy_s + self.waited_s
        return self.busy_s / total if total else 0.0

    def __str__(self) -> str:
        times = f" x {self.workers}" if self.workers > 1 else ""
        return f"{self.name}{times} {self.share:.2f} busy"


@dataclass(frozen=True)
class Spent:
    """The seconds of a step: start_s until any stage had work, then working_s in the stages.

    video_requests, video_bytes: what was read of videos on object storage.
    """

    start_s: float
    stages: tuple[Stage, ...]
    working_s: float = 0.0
    on_gpu: bool = False
    video_requests: int = 0
    video_bytes: int = 0

    def bound_by(self, seconds: float) -> str:
        """Return the bottleneck of the step; "" where no worker reported anything."""
        if not self.stages:
            return ""
        if self.start_s > seconds / 2:
            return "start-bound"
        name = max(self.stages, key=lambda stage: stage.share).name
        if name == "describe" and self.on_gpu:
            return "GPU-bound"
        return BOUND.get(name, f"{name}-bound")

    def record(self, seconds: float) -> dict:
        """Return a record for run.json."""
        stages = [dataclasses.asdict(s) | {"busy_share": round(s.share, 4)} for s in self.stages]
        for stage in stages:
            stage |= {k: round(v, 3) for k, v in stage.items() if k.endswith("_s")}
        times = {"start_s": round(self.start_s, 3), "stages": stages}
        if self.video_requests:
            times |= {"video_requests": self.video_requests, "video_bytes": self.video_bytes}
        return {"bound_by": self.bound_by(seconds)} | times if stages else {}

    @classmethod
    def of_record(cls, step: dict) -> Self:
        """Read a record of `record`; empty where the step has none."""
        names = [field.name for field in dataclasses.fields(Stage)]
        stages = [Stage(*(stage[name] for name in names)) for stage in step.get("stages", ())]
        on_gpu = step.get("bound_by") == "GPU-bound"
        return cls(step.get("start_s", 0.0), tuple(stages), on_gpu=on_gpu)

    def words(self, seconds: float) -> str:
        """Return words such as `decode-bound: decode 0.97 busy, describe 0.41 busy, 9 s until the
        first work`.
        """
        if not self.stages:
            return ""
        stages = ", ".join(map(str, self.stages))
        return f"{self.bound_by(seconds)}: {stages}, {self.start_s:.0f} s until the first work"

    def sentence(self, seconds: float) -> str:
        """Return in words where the time went, such as `waiting for decoding 97 % of the time`.

        Empty where no worker reported anything.
        """
        if not self.stages:
            return ""
        if self.start_s > seconds / 2:
            return f"{self.start_s:.0f} s until workers had started"
        stage = max(self.stages, key=lambda stage: stage.share)
        waited_for = WAITED_FOR.get(stage.name, stage.name)
        if stage.name == "describe" and self.on_gpu:
            waited_for = "the GPU"
        return f"waiting for {waited_for} {100 * stage.share:.0f} % of the time"


def merged(parts: Iterable[Spent]) -> Spent:
    """Merge the times of a step's passes, which ran one after the other."""
    parts = [part for part in parts if part.stages]
    working_s = sum(part.working_s for part in parts)
    stages_by_name: dict[str, list[Stage]] = {}
    for stage in (stage for part in parts for stage in part.stages):
        stages_by_name.setdefault(stage.name, []).append(stage)
    stages = []
    for name, same in stages_by_name.items():
        workers, busy_s = max(stage.workers for stage in same), sum(stage.busy_s for stage in same)
        start_s = sum(stage.start_s for stage in same) / len(same)
        # In a pass that has no such stage its workers wait as well.
        waited_s = max(0.0, workers * working_s - busy_s)
        stages.append(Stage(name, workers, busy_s, start_s, waited_s))
    start_s = sum(part.start_s for part in parts)
    return Spent(
        start_s,
        tuple(stages),
        working_s,
        on_gpu=any(part.on_gpu for part in parts),
        video_requests=sum(part.video_requests for part in parts),
        video_bytes=sum(part.video_bytes for part in parts),
    )


@dataclass(frozen=True)
class Outcome:
    """The counts that a run reports at its end. `planned` = ok + partial + failed, in segments."""

    did_work: bool
    planned: int
    ok: int
    partial: int
    failed: int

    @property
    def failed_fraction(self) -> float:
        return self.failed / self.planned if self.planned else 0.0
