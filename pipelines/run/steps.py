"""The steps of a run, each declared once.

The runner, the doctor, the plan, the progress and the docs read this table.

A new step is one file with a function of a `Job`, and one entry here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.ledger.accounts import Account, Spent
from pipelines.settings.config import Config
from pipelines.storage import tables
from pipelines.storage.columns import Table
from pipelines.storage.store import DONE


@dataclass(frozen=True)
class Step:
    """A step of a run.

    Attributes:
        runs: `module:function` that does the step for a Job; see `function`.
        tables: what it publishes.
        marked: the table, or `codebooks`, in each of whose folders it leaves a mark, written last.
        mark: the name of a mark; `{videos}` stands for the digest of the videos that the folder is
            complete for.
        also_marked: another of its tables, whose folder, where there is one, has a mark for the
            videos.
        page: a page of the whole run, marked in its folder by the digest of what the page shows.
        beside: gives, of a `pipelines.run.folders.Folders`, files that a mark is for beside folders
            of the step's tables.
        folders: gives, of a `pipelines.run.folders.Folders`, {table: folder} of tables that it does
            not name itself.
        replaces: tables whose other folders a finished step removes, where that is cheap to make
            again.
        needs_labels: it has nothing to do on videos without labels.
        wanted: tells of a configuration whether the step has anything to do by it.
    """

    runs: str
    tables: tuple[Table, ...]
    marked: str
    mark: str = DONE
    also_marked: str = ""
    page: str = ""
    beside: Callable[..., Sequence[str]] = lambda run: ()
    folders: Callable[..., dict[str, str]] = lambda run: {}
    replaces: tuple[str, ...] = ()
    needs_labels: bool = False
    wanted: Callable[[Config], bool] = lambda config: True

    def function(self) -> Callable[..., tuple[Account, Spent]]:
        """Load the function that does the step, with torch and Ray; flags are checked before."""
        module, _, name = self.runs.partition(":")
        return getattr(importlib.import_module(module), name)

    def marks(self, folders: Callable[[str], Sequence[str]]) -> list[str]:
        """Return the files that exist when the step is complete.

        Args:
            folders: gives the folders of a table in the order of the run: a Job has them of its
                settings, the doctor of run.json. Only those that are needed are asked for.
        """
        pairs = [(folder, self.mark) for folder in folders(self.marked)]
        if self.also_marked:
            pairs += [(folder, FOR_VIDEOS) for folder in folders(self.also_marked)]
        if any("{videos}" in name for _, name in pairs):
            videos = _digest_of(folders("videos")[0])
            pairs = [(folder, name.format(videos=videos)) for folder, name in pairs]
        if self.page:
            home = self.page.rpartition("/")[0]
            pairs += [(home, f"_done-{_digest_of(folder)}.json") for folder, _ in pairs]
        return [f"{folder}/{name}" for folder, name in pairs]


def _digest_of(folder: str) -> str:
    return folder.rpartition("/")[2]


PAGE = "report/index.html"

FOR_VIDEOS = "_done-{videos}.json"

STEPS: dict[str, Step] = {
    "index": Step(
        "pipelines.corpus:index",
        tables=(tables.VIDEOS, tables.SEGMENTS),
        marked="videos",
        replaces=("videos", "segments"),
    ),
    "describe": Step(
        "pipelines.corpus:describe",
        tables=(tables.DESCRIPTORS, tables.FAILURES),
        marked="descriptors",
        mark=FOR_VIDEOS,
        beside=lambda run: [run.weights.file, *filter(None, [run.projection])],
        replaces=("failures",),
    ),
    "fit": Step(
        "pipelines.corpus:fit",
        tables=(tables.SAMPLES, tables.CURVES),
        marked="codebooks",
    ),
    "encode": Step(
        "pipelines.corpus:encode",
        tables=(tables.ENCODINGS, tables.ATTENTION),
        marked="encodings",
        mark=FOR_VIDEOS,
        beside=lambda run: run.information,
    ),
    "train": Step(
        "pipelines.corpus:train",
        tables=(tables.CLIPS, tables.NETWORKS),
        marked="networks",
        also_marked="clips",
        needs_labels=True,
        wanted=lambda config: bool(config.network.networks),
    ),
    "classify": Step(
        "pipelines.corpus:classify",
        tables=(
            tables.SCORES,
            tables.SOLUTIONS,
            tables.FUSIONS,
            tables.CLIP_SCORES,
            tables.CAMS,
            tables.SCORES_OVER_TIME,
            tables.FLOWS,
        ),
        marked="scores",
        needs_labels=True,
    ),
    "evaluate": Step(
        "pipelines.corpus:evaluate",
        tables=(tables.METRICS,),
        marked="metrics",
        page=PAGE,
        needs_labels=True,
    ),
    "final": Step(
        "pipelines.corpus:final",
        tables=(tables.MODELS,),
        marked="models",
        folders=lambda run: {"models": run.models},
        needs_labels=True,
    ),
}
"""By the name that `--steps` takes, in the order of the data flow."""
