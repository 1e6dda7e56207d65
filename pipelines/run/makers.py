"""Results of a run: a result is whatever publishes SCORES.

Evaluation, late fusion, the report, the doctor and the plan know SCORES alone. A new maker of
results is one file, with a function that lists its results and one that publishes them, and one
entry in MAKERS.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipelines.ledger.accounts import Spent


@dataclass(frozen=True)
class Result:
    """One result of a run.

    Attributes:
        encoder: its name in SCORES and METRICS.
        stream: beside it, what it is made from; of a fused result the rule.
        made_by: a digest of all that its SCORES depend on, which names its folders.
        parts: (encoder, stream) of the results that it is fused of; none of a single result.
        tables: other tables with a folder of this result, out of
            `pipelines.run.folders.OF_RESULTS`.
    """

    encoder: str
    stream: str
    made_by: str
    parts: tuple[tuple[str, str], ...] = ()
    tables: tuple[str, ...] = ()

    @property
    def pair(self) -> tuple[str, str]:
        """Return (encoder, stream), which no other result of the run has."""
        return self.encoder, self.stream


@dataclass(frozen=True)
class Maker:
    """A kind of results.

    Attributes:
        results: lists the results of a run (its `pipelines.run.folders.Folders`), in the order of
            the report.
        publishes: `module:function` that publishes SCORES of those results of a Job that are not
            complete, and returns where the time went; loaded when its turn comes, with torch and
            Ray.
    """

    results: Callable[..., Iterable[Result]]
    publishes: str

    def function(self) -> Callable[..., Spent]:
        """Load the function that publishes."""
        module, _, name = self.publishes.partition(":")
        return getattr(importlib.import_module(module), name)


MAKERS: dict[str, Maker] = {
    "svm": Maker(lambda folders: folders.classified(), "pipelines.classify.step:train"),
    "networks": Maker(
        lambda folders: folders.scored_by_networks(), "pipelines.networks.step:score"
    ),
}
