"""A run's files, read once, one row group at a time, into the tables of the database.

In memory are the list of files, the facts of the files that are inserted together, and what DuckDB
may hold. SCORES are read later, result by result: see `scores.py`.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from encoders.settings import UNIT_LENGTH
from pipelines.doctor.database import KEPT, Database, located
from pipelines.doctor.progress import Progress
from pipelines.doctor.record import Record, split_key
from pipelines.doctor.schemas import completed, misfit, vector_columns
from pipelines.doctor.tensors import read_tensors
from pipelines.doctor.vectors import with_facts
from pipelines.errors import ConfigError
from pipelines.run.lock import LOCK, Holder
from pipelines.run.steps import STEPS
from pipelines.settings.config import Config
from pipelines.storage.columns import Table, encoding_type, file_name
from pipelines.storage.parquet import footer_of
from pipelines.storage.retries import StorageError
from pipelines.storage.store import DONE, Store, is_visible
from pipelines.storage.tables import CURVES, ENCODINGS, NAMED_BY_KEYS, SAMPLES, SCORES, TABLES

PROVENANCE = "video_fisher."

BY_NAME = {table.name: table for table in TABLES}

UNNAMED = {"samples": SAMPLES, "codebooks": CURVES}
"""Tables whose folders run.json does not name, by the folder that they are in."""

_BAD_PARQUET = (OSError, ValueError, pa.ArrowException)
_BAD_JSON = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""Errors that reading a damaged file raises. A StorageError is an OSError too, but says nothing
of the file."""


class Folder(NamedTuple):
    """A folder of a table; `key` is its name in run.json, else table and folder."""

    key: str
    table: Table
    path: str
    files: tuple[str, ...]


class Scan:
    """A run's run.json, files and tables.

    Args:
        database: gets all but the SCORES.
        quick: no vectors are read, and of codebooks, classifiers and weights the headers only.

    Attributes:
        sizes: {file: bytes} of every file.
        by_folder: {folder: names of all its files}, hidden ones and marks too.
        folders: {name in run.json: today's folder}, also those without files.
        tensors: files of codebooks, classifiers and weights.
        damaged: files that cannot be used, or not be read.

    Raises:
        ConfigError: there is no run, or it cannot be listed.
        StorageError: the storage does not answer.
    """

    def __init__(self, store: Store, database: Database, quick: bool = False) -> None:
        self.store, self.database, self.quick = store, database, quick
        self.sizes = _listing(store)
        roots = {name.partition("/")[0] for name in self.sizes}
        if "run.json" not in roots and not roots & BY_NAME.keys():
            raise ConfigError(
                f"--out {store.root}: expected a run with its run.json, found none; give the "
                "folder that was the job's --out"
            )
        self.by_folder: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self.sizes):
            self.by_folder[_parent(name)].append(name)
        self.record = Record(store)
        self.folders = {folder.key: folder for folder in self._find_folders()}
        self.tensors = [name for name in sorted(self.sizes) if is_visible(name, ".safetensors")]
        self.damaged: set[str] = set()
        self._describe()
        self._read()

    def is_done(self, step: str) -> bool:
        """Return whether the step's tables should be complete."""
        marks = self.record.marks(step)
        is_marked = bool(marks) and all(mark in self.sizes for mark in marks)
        return self.record.is_recorded(step) or is_marked

    def is_whole(self, *keys: str) -> bool:
        """Return whether these folders have files, and every one of them was read."""
        every = [self.folders[key].files if key in self.folders else () for key in keys]
        return all(files and self.damaged.isdisjoint(files) for files in every)

    def add_rows(self, folder: Folder, file: str) -> str:
        """Add the rows of a file to the database; none where one cannot be read.

        Returns:
            The name of the file that follows from the keys of the rows; "" of other tables.
        """
        declared = folder.table.schema().names
        parts, keys, num_rows = [], [], 0
        try:
            with self.store.open_parquet(file, verify=True) as parquet:
                for group in range(parquet.num_row_groups):
                    rows = parquet.read_row_group(group, declared if self.quick else None)
                    rows.validate(full=True)
                    rows = completed(folder.table, rows)
                    facts = with_facts(rows, len(declared))
                    parts.append(located(facts, folder.key, file, num_rows))
                    keys.append(rows.select(folder.table.key))
                    num_rows += rows.num_rows
        except _BAD_PARQUET as error:
            self._note(file, "unreadable", error)
            return ""
        if parts:
            self.database.add(folder.table, pa.concat_tables(parts))
        is_named = parts and folder.table in NAMED_BY_KEYS
        return file_name(pa.concat_tables(keys), folder.table.key) if is_named else ""

    def _find_folders(self) -> Iterator[Folder]:
        tables = self.record.tables.items()
        named = [(key, BY_NAME.get(key.partition("/")[0]), path) for key, path in tables]
        for path in self.by_folder:
            root, *below = path.split("/")
            if root in UNNAMED and len(below) == 2:
                named.append((f"{UNNAMED[root].name}/{path}", UNNAMED[root], path))
        for key, table, path in named:
            if table:
                files = tuple(name for name in self.by_folder.get(path, []) if is_visible(name))
                yield Folder(key, table, path, files)

    def _describe(self) -> None:
        """Fill the tables that need no file but run.json and the lock."""
        insert, record = self.database.insert, self.record
        insert("run_json", [(record.error, record.config_error, record.has_labels)])
        insert("locks", self._locks())
        insert("listing", ((name, _parent(name), size) for name, size in self.sizes.items()))
        insert(
            "steps",
            (
                (name, place, record.is_recorded(name), self.is_done(name), step.needs_labels)
                for place, (name, step) in enumerate(STEPS.items())
            ),
        )
        for name, step in STEPS.items():
            pages = [f"{step.page}/index.html"] if step.page else []
            marks = [*record.marks(name), *pages]
            insert("marks", ((name, mark, _parent(mark)) for mark in marks))
        insert("streams", (_stream(stream) for stream in record.streams))
        insert("folders", (self._folder(folder) for folder in self.folders.values()))

    def _locks(self) -> Iterator[tuple[str, str]]:
        if LOCK not in self.sizes:
            return
        try:
            holder = Holder.of(self.store.read(LOCK))
        except FileNotFoundError:
            return
        if holder is None:
            yield LOCK, "it is damaged"
            return
        age_s = max(0.0, time.time() - holder.heartbeat)
        ended = ", its process has ended" if holder.is_gone else ""
        who = f"process {holder.pid} on {holder.host} ({holder.command})"
        yield LOCK, f"{who}, last heartbeat {age_s:.0f} s ago{ended}"

    def _folder(self, folder: Folder) -> tuple:
        table, (encoder, stream, fold), vectors = folder.table, split_key(folder.key), (False, None)
        if table is ENCODINGS and not self.record.config_error:
            config = self.record.config
            kind = encoding_type(1, config.encode.dtype).value_type
            vectors = (has_unit_length(config, encoder), str(kind))
        return folder.key, folder.path, table.name, table.step, encoder, stream, fold, *vectors

    def _read(self) -> None:
        every = [name for folder in self.folders.values() for name in folder.files]
        progress = Progress(sum(self.sizes[name] for name in [*every, *self.tensors]))
        for table in TABLES:
            for folder in self.folders.values():
                if folder.table is table:
                    for file in folder.files:
                        self._read_file(folder, file)
                        progress.add(self.sizes[file])
            self.database.flush(table)
        for name in self.tensors:
            self._read_tensors(name)
            progress.add(self.sizes[name])
        for name in self.sizes:
            if name.startswith("codebooks/") and name.endswith(f"/{DONE}"):
                self._read_mark(name)

    def _read_file(self, folder: Folder, file: str) -> None:
        """Read footer and schema, and of all but SCORES the rows."""
        num_rows, keys_name = 0, ""
        try:
            with self.store.open_parquet(file, verify=True) as parquet:
                schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
                self.database.insert("footers", _footer(parquet, folder.key, file))
        except _BAD_PARQUET as error:
            self._note(file, "unreadable", error)
        else:
            if text := misfit(folder.table, schema):
                self._note(file, "misfit", text)
            else:
                widths = vector_columns(folder.table, schema)
                self.database.insert("columns", ((folder.key, file, *width) for width in widths))
                if folder.table in KEPT and folder.table is not SCORES:
                    keys_name = self.add_rows(folder, file)
        self.database.insert("files", [(folder.key, file, num_rows, keys_name)])

    def _read_tensors(self, name: str) -> None:
        try:
            tensors = list(read_tensors(self.store, name, self.sizes[name], self.quick))
        except _BAD_JSON as error:
            self._note(name, "tensors", error)
        else:
            self.database.insert("tensors", ((name, *tensor) for tensor in tensors))

    def _read_mark(self, mark: str) -> None:
        try:
            digest = json.loads(self.store.read(mark)).get(f"{PROVENANCE}codebook")
        except _BAD_JSON as error:
            self._note(mark, "mark", error)
        else:
            self.database.insert("codebooks", [(_parent(mark), digest)])

    def _note(self, file: str, kind: str, error: Exception | str) -> None:
        """Keep an error in a line; of the storage nobody knows whether the file is damaged."""
        self.damaged.add(file)
        if isinstance(error, Exception):
            kind = "unanswered" if isinstance(error, StorageError) else kind
            error = f"{type(error).__name__}: {error}".splitlines()[0]
        self.database.insert("errors", [(file, kind, error[:200])])


def has_unit_length(config: Config, encoder: str) -> bool:
    """Return whether vectors of ENCODINGS have length 1: a variant may have its own way."""
    try:
        return config.variant(encoder).normalisation in UNIT_LENGTH
    except ValueError:
        # Not an encoder of this version.
        return False


def _footer(parquet: pq.ParquetFile, folder: str, file: str) -> Iterator[tuple]:
    for entry, value in footer_of(parquet).items():
        if entry.startswith(PROVENANCE):
            yield folder, file, entry.removeprefix(PROVENANCE), value


def _stream(facts: dict) -> tuple:
    window, size = facts["window"], facts["cells"] * facts["views"]
    has_gap = bool(window["gap"] or window["gap_s"])
    return facts["name"], facts["width"], facts["cells"], size, has_gap, window["num_frames"]


def _listing(store: Store) -> dict[str, int]:
    """Return {name: bytes} of every file of the run."""
    try:
        store.fs.invalidate_cache()
        entries = dict(store.fs.find(store.path(""), detail=True))
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"--out {store.root}: cannot list it ({error})") from error
    start = len(store.path("")) + 1
    return {name[start:]: int(entry["size"]) for name, entry in entries.items() if name[start:]}


def _parent(name: str) -> str:
    return name.rpartition("/")[0]
