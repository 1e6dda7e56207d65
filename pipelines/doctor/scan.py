"""A run's files, each read once, one after the other, into the tables of the database.

In memory are the list of files, one of them, the facts of the files that are inserted together, and
what DuckDB may hold. SCORES are read later, result by result: see `scores.py`.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from encoders.seal import DamagedError
from encoders.settings import UNIT_LENGTH
from pipelines.doctor.database import KEPT, Database, located
from pipelines.doctor.progress import Progress
from pipelines.doctor.record import Record, split_key
from pipelines.doctor.schemas import completed, misfit, vector_columns
from pipelines.doctor.tensors import tensors_in
from pipelines.doctor.vectors import with_facts
from pipelines.errors import ConfigError
from pipelines.ledger import compaction, marks
from pipelines.reading import kept
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

_BAD = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)
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
        quick: no vectors are read, and no codebooks, classifiers and weights.

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
        self.damaged: set[str] = set()
        self.folders = {folder.key: folder for folder in self._find_folders()}
        self.tensors = [name for name in sorted(self.sizes) if is_visible(name, ".safetensors")]
        self._describe()
        self._check_marks()
        self._read()

    def is_done(self, step: str) -> bool:
        """Return whether the step's tables should be complete."""
        names = self.record.marks(step)
        is_marked = bool(names) and all(map(self.lies, names))
        return self.record.is_recorded(step) or is_marked

    def lies(self, mark: str) -> str:
        """Return the file of a mark; "" where there is none."""
        return next((file for file in (marks.place(mark), mark) if file in self.sizes), "")

    def marks_of(self, folder: str) -> list[str]:
        """Return the files of the marks of a folder."""
        there = [*self.by_folder.get(marks.place(folder), ()), *self.by_folder.get(folder, ())]
        return [name for name in there if name.rpartition("/")[2].startswith("_done")]

    def is_whole(self, *keys: str) -> bool:
        """Return whether these folders have files, and every one of them was read."""
        every = [self.folders[key].files if key in self.folders else () for key in keys]
        return all(files and self.damaged.isdisjoint(files) for files in every)

    def add_rows(self, folder: Folder, file: str, parquet: pq.ParquetFile | None = None) -> str:
        """Add the rows of a file to the database; none where one cannot be read.

        Returns:
            The name of the file that follows from the keys of the rows; "" of other tables.
        """
        declared = folder.table.schema().names
        parts, keys, num_rows = [], [], 0
        try:
            with parquet or self._open(file) as parquet:
                for group in range(parquet.num_row_groups):
                    rows = parquet.read_row_group(group, declared if self.quick else None)
                    rows.validate(full=True)
                    rows = completed(folder.table, rows)
                    facts = with_facts(rows, len(declared))
                    parts.append(located(facts, folder.key, file, num_rows))
                    keys.append(rows.select(folder.table.key))
                    num_rows += rows.num_rows
        except _BAD as error:
            self._note(file, "damaged", error)
            return ""
        if parts:
            self.database.add(folder.table, pa.concat_tables(parts))
        is_named = parts and folder.table in NAMED_BY_KEYS
        return file_name(pa.concat_tables(keys), folder.table.key) if is_named else ""

    def write_note(self) -> None:
        """Tell the next run which files are damaged: it looks into small ones alone.

        Where that is refused, the files are to be removed by hand, as the findings name them.
        """
        with contextlib.suppress(OSError):
            marks.note(self.store, self.damaged & self.sizes.keys())

    def _find_folders(self) -> Iterator[Folder]:
        tables = self.record.tables.items()
        named = [(key, BY_NAME.get(key.partition("/")[0]), path) for key, path in tables]
        for path in self.by_folder:
            root, *below = path.split("/")
            if root in UNNAMED and len(below) == 2:
                named.append((f"{UNNAMED[root].name}/{path}", UNNAMED[root], path))
        for key, table, path in named:
            if table:
                yield Folder(key, table, path, self._files(path))

    def _files(self, path: str) -> tuple[str, ...]:
        """Return the files of a table, without the copies of a compaction that was not finished."""
        there = [name for name in self.by_folder.get(path, []) if is_visible(name)]
        plan = self.lies(f"{path}/{compaction.PLAN}")
        if not plan:
            return tuple(there)
        try:
            return tuple(compaction.without_copies(self.store, path, there))
        except _BAD as error:
            self._note(plan, "damaged", error)
            return tuple(there)

    def _describe(self) -> None:
        """Fill the tables that need no file but run.json and the lock."""
        insert, record = self.database.insert, self.record
        insert("run_json", [(record.error, record.config_error, record.has_labels)])
        insert("locks", self._locks())
        every = kept.records(self.store)
        of_records = {folder for one in every for folder in one["folders"]}
        of_records |= {_parent(kept.page_of(one["name"])) for one in every}
        insert("kept", ((folder,) for folder in sorted(of_records)))
        insert("listing", ((name, _parent(name), size) for name, size in self.sizes.items()))
        insert(
            "steps",
            (
                (name, place, record.is_recorded(name), self.is_done(name), step.needs_labels)
                for place, (name, step) in enumerate(STEPS.items())
                if step.wanted(record.config)
            ),
        )
        for name, step in STEPS.items():
            pages = [step.page] if step.page else []
            names = [*record.marks(name), *pages]
            insert("marks", ((name, mark, _parent(mark)) for mark in names))
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

    def _check_marks(self) -> None:
        """Compare the marks of today's steps, codebooks and samples with the listing."""
        names = {mark for step in STEPS for mark in self.record.marks(step)}
        there = {name.removeprefix(f"{marks.FOLDER}/") for name in self.sizes}
        names |= {n for n in there if n.endswith(f"/{DONE}") and n.split("/")[0] in UNNAMED}
        for mark in sorted(names & there):
            try:
                checked = marks.check(self.store, mark, marks.Contents(), self._sizes)
            except StorageError as error:
                self._note(mark, "unanswered", error)
            else:
                for fault in checked.faults:
                    if fault.file not in self.damaged:
                        self._note(fault.file, "damaged", fault.found)

    def _sizes(self, folder: str) -> dict[str, int]:
        return {name: self.sizes[name] for name in self.by_folder.get(folder, ())}

    def _read(self) -> None:
        pages = [step.page for step in STEPS.values() if step.page in self.sizes]
        others = [] if self.quick else [*self.tensors, *pages]
        every = [name for folder in self.folders.values() for name in folder.files]
        progress = Progress(sum(self.sizes[name] for name in [*every, *others]))
        for table in TABLES:
            for folder in self.folders.values():
                if folder.table is table:
                    for file in folder.files:
                        self._read_file(folder, file)
                        progress.add(self.sizes[file])
            if table in KEPT:
                self.database.flush(table)
        for name in others:
            self._read_other(name)
            progress.add(self.sizes[name])

    def _open(self, file: str) -> pq.ParquetFile:
        """Open a file that is whole; of object storage it is fetched in one piece, once."""
        if self.quick:
            return self.store.open_parquet(file)
        return pq.ParquetFile(pa.BufferReader(self._whole(file)))

    def _whole(self, file: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            DamagedError: they are not those that were written.
        """
        data = self.store.read(file)
        if found := marks.damage(file, data):
            raise DamagedError(found)
        return data

    def _read_file(self, folder: Folder, file: str) -> None:
        """Read footer and schema, and of all but SCORES the rows."""
        num_rows, keys_name = 0, ""
        try:
            parquet = None if file in self.damaged else self._open(file)
        except _BAD as error:
            self._note(file, "damaged", error)
            parquet = None
        if parquet:
            schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
            self.database.insert("footers", _footer(parquet, folder.key, file))
            if text := misfit(folder.table, schema):
                self._note(file, "misfit", text)
            else:
                widths = vector_columns(folder.table, schema)
                self.database.insert("columns", ((folder.key, file, *width) for width in widths))
                if folder.table in KEPT and folder.table is not SCORES:
                    keys_name = self.add_rows(folder, file, parquet)
        self.database.insert("files", [(folder.key, file, num_rows, keys_name)])

    def _read_other(self, name: str) -> None:
        """Read a file of tensors, or the page."""
        if name in self.damaged:
            return
        try:
            data = self._whole(name)
            tensors = list(tensors_in(data)) if name in self.tensors else []
        except _BAD as error:
            self._note(name, "damaged", error)
        else:
            self.database.insert("tensors", ((name, *tensor) for tensor in tensors))

    def _note(self, file: str, kind: str, error: Exception | str) -> None:
        """Keep an error in a line; of the storage nobody knows whether the file is damaged."""
        self.damaged.add(file)
        if isinstance(error, Exception):
            kind = "unanswered" if isinstance(error, StorageError) else kind
            named = "" if isinstance(error, DamagedError) else f"{type(error).__name__}: "
            error = f"{named}{error}".splitlines()[0]
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
