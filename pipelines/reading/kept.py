"""Records of the configurations of a run: `runs/<digest>.json`, one for each that was finished.

run.json is of the newest one. A record has its configuration, tables, steps and their times, the
numbers of METRICS, and all of its folders; beside it `report/<digest>/index.html` is its page.
Folders are named by what they hold, so that configurations share what is the same for them.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.ledger import marks
from pipelines.run.schema import malformed
from pipelines.run.steps import PAGE, STEPS
from pipelines.settings.config import digest
from pipelines.storage.store import Store

if TYPE_CHECKING:
    # It loads torch, which the doctor does without.
    from pipelines.run.job import Job

FOLDER = "runs"

NUMBERS = ("encoder", "stream", "fusion", "metric", "value", "ci_low", "ci_high", "num_videos")
"""Columns of METRICS that a record has, of the rows over all tested videos."""


def keep(job: Job) -> None:
    """Write the record of this configuration, once it is evaluated, or encoded where there are no
    labels, and put its page aside.
    """
    if not job.is_complete("evaluate" if job.num_folds else "encode"):
        return
    record = json.loads(job.store.read("run.json"))
    steps = {
        name: step
        for name, step in record["steps"].items()
        if name in STEPS and step.get("digest") == job.digest(name)
    }
    books = [book.folder for book in job.codebooks]
    samples = [job.sample(book.stream) for book in job.learning]
    _write(job.store, record | {"steps": steps}, {*job.tables().values(), *books, *samples})


def keep_previous(store: Store) -> None:
    """Write the record of the configuration in run.json where it has none: a run of before."""
    try:
        record = json.loads(store.read("run.json"))
    except (FileNotFoundError, ValueError):
        return
    if malformed(record) or store.exists(f"{FOLDER}/{name_of(record)}.json"):
        return
    if store.files(record["tables"].get("metrics", "metrics/none")):
        _write(store, record, set(record["tables"].values()))


def name_of(record: dict[str, Any]) -> str:
    """Return the name of a configuration: settings that change no table have no part in it."""
    return digest(record["tables"])


def _write(store: Store, record: dict[str, Any], folders: set[str]) -> None:
    name, metrics = name_of(record), record["tables"]["metrics"]
    numbers = []
    if store.files(metrics):
        numbers = [
            {column: row[column] for column in NUMBERS}
            for row in store.read_table(metrics).to_pylist()
            if row["split"] == "all" and row["class"] is None
        ]
        if store.exists(PAGE):
            store.publish(page_of(name), store.read(PAGE))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = {"name": name, "finished": now, "metrics": numbers, "folders": sorted(folders)}
    store.publish_json(f"{FOLDER}/{name}.json", record | facts)


def page_of(name: str) -> str:
    """Return the page of a configuration."""
    return f"report/{name}/index.html"


def records(store: Store) -> list[dict[str, Any]]:
    """Return the records of a run, the newest first; those that are damaged are passed over."""
    found = []
    for name in store.files(FOLDER, ".json"):
        try:
            record = json.loads(store.read(name))
        except ValueError:
            continue
        if not malformed(record) and {"name", "finished", "metrics", "folders"} <= record.keys():
            found.append(record)
    return sorted(found, key=lambda record: (record["finished"], record["name"]), reverse=True)


@dataclass(frozen=True)
class Leaving:
    """A configuration that is to go, and what goes with it alone.

    Attributes:
        folders: {folder: bytes} that no configuration which stays has.
    """

    name: str
    finished: str
    folders: dict[str, int]

    @property
    def num_bytes(self) -> int:
        return sum(self.folders.values())


def leaving(store: Store, keep: int) -> list[Leaving]:
    """Return the configurations beyond the `keep` newest ones, that of run.json among these."""
    every = records(store)
    current = store.read_json("run.json")
    newest = name_of(current) if current and not malformed(current) else ""
    every.sort(key=lambda record: record["name"] != newest)
    used = {folder for record in every[:keep] for folder in record["folders"]}
    if newest and current:
        used |= set(current["tables"].values())
    gone = []
    for record in every[keep:]:
        own = [folder for folder in record["folders"] if folder not in used]
        # What several that go have in common is counted once.
        used |= set(own)
        sizes = {folder: _num_bytes(store, folder) for folder in own}
        gone.append(Leaving(record["name"], record["finished"], sizes))
    return gone


def remove(store: Store, gone: Leaving) -> None:
    """Delete a configuration, its record last."""
    for folder in gone.folders:
        marks.remove_folder(store, folder)
    store.delete_folder(page_of(gone.name).rpartition("/")[0])
    store.delete(f"{FOLDER}/{gone.name}.json")


def _num_bytes(store: Store, folder: str) -> int:
    below = sum(_num_bytes(store, inner) for inner in store.folders(folder))
    return below + sum(store.sizes(folder).values())


def clean(store: Store, keep: int, *, is_sure: bool) -> Iterator[str]:
    """Yield what would go, or with `is_sure` what is deleted, line by line."""
    gone = leaving(store, keep)
    for each in gone:
        yield (
            f"{each.name}, finished {each.finished}: {each.num_bytes:,} bytes in "
            f"{len(each.folders)} folders"
        )
        if is_sure:
            remove(store, each)
    total = sum(each.num_bytes for each in gone)
    if not gone:
        yield f"nothing to delete: {len(records(store))} configurations, {keep} to keep"
    elif is_sure:
        yield f"deleted: {len(gone)} configurations, {total:,} bytes"
    else:
        yield f"to be deleted: {len(gone)} configurations, {total:,} bytes; give --yes to delete"
