"""The steps of a run, each declared once: the runner, the doctor, the plan, the progress and the docs read this table.

A new step is one file with a function of a `Job`, and one entry here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.run.ledger import Account, Spent
from pipelines.storage import tables
from pipelines.storage.columns import Table
from pipelines.storage.store import DONE

if TYPE_CHECKING:
    from pipelines.run.folders import Folders


@dataclass(frozen=True)
class Step:
    """A step of a run.

    Attributes:
        runs: `module:function` that does the step for a Job; see `function`.
        tables: what it publishes.
        marks: the files of a run that exist when the step is complete, each written last of its folder.
        replaces: folders of tables whose other subfolders a finished step removes, where that is cheap to make again.
        needs_labels: it has nothing to do on videos without labels.
    """

    runs: str
    tables: tuple[Table, ...]
    marks: Callable[[Folders], list[str]]
    replaces: Callable[[Folders], list[str]] = lambda folders: []
    needs_labels: bool = False

    def function(self) -> Callable[..., tuple[Account, Spent]]:
        """Load the function that does the step: torch and Ray come with it, and flags are checked before them."""
        module, _, name = self.runs.partition(":")
        return getattr(importlib.import_module(module), name)


def _of_results(folders: Folders) -> list[str]:
    kinds = ("classifiers", "scores", "fusions")
    return [
        f"{kind}/{folders.results_folder(*pair)}" for kind in kinds for pair in folders.scored()
    ]


STEPS: dict[str, Step] = {
    "index": Step(
        "pipelines.corpus:index",
        tables=(tables.VIDEOS, tables.SEGMENTS),
        marks=lambda folders: [f"{folders.videos}/{DONE}"],
        replaces=lambda folders: ["videos", "segments"],
    ),
    "describe": Step(
        "pipelines.corpus:describe",
        tables=(tables.DESCRIPTORS, tables.FAILURES),
        marks=lambda folders: [folders.descriptors_mark],
        replaces=lambda folders: ["failures"],
    ),
    "fit": Step(
        "pipelines.corpus:fit",
        tables=(tables.SAMPLES, tables.CURVES),
        marks=lambda folders: [f"{book.folder}/{DONE}" for book in folders.codebooks],
    ),
    "encode": Step(
        "pipelines.corpus:encode",
        tables=(tables.ENCODINGS, tables.ATTENTION),
        marks=lambda folders: [folders.encodings_mark(book) for book in folders.codebooks],
    ),
    "classify": Step(
        "pipelines.corpus:classify",
        tables=(tables.SCORES, tables.SOLUTIONS, tables.FUSIONS),
        marks=lambda folders: [f"{folders.scores(*pair)}/{DONE}" for pair in folders.scored()],
        replaces=_of_results,
        needs_labels=True,
    ),
    "evaluate": Step(
        "pipelines.corpus:evaluate",
        tables=(tables.METRICS,),
        marks=lambda folders: [f"{folders.metrics}/{DONE}", folders.report_mark],
        replaces=lambda folders: ["metrics"],
        needs_labels=True,
    ),
}
"""By the name that `--steps` takes, in the order of the data flow."""
