"""What the doctor knows of a run: its record, its files, and what `doctor_gather` keeps of rows.

Every file is read once, one row group at a time; SCORES later, see `doctor_score_checks`. In memory
are the list of files, what is kept of one file, and what DuckDB may hold.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipelines.doctor.gather import ROWS, Rows, facts, file_facts
from pipelines.doctor.tensors import Tensors, read_tensors
from pipelines.errors import ConfigError
from pipelines.run.combination import Combination
from pipelines.run.steps import STEPS
from pipelines.settings.config import Config, digest
from pipelines.storage.columns import Table, file_name
from pipelines.storage.parquet import footer_of
from pipelines.storage.retries import StorageError
from pipelines.storage.store import Store, is_visible
from pipelines.storage.tables import CURVES, NAMED_BY_KEYS, SAMPLES, TABLES

PROVENANCE = "video_fisher."
CODEBOOK_KEY = "video_fisher.codebook"

EXAMPLES = 5
"""Most examples that a problem has."""

BY_NAME = {table.name: table for table in TABLES}

UNNAMED = {SAMPLES: "samples", CURVES: "codebooks"}
"""Tables whose folders run.json does not name, and the folder that they are in."""


@dataclass
class File:
    """One visible Parquet file; `error` and `misfit` (of its schema) are empty in a sound one."""

    name: str
    num_bytes: int
    num_rows: int = 0
    error: str = ""
    misfit: str = ""
    footer: dict[str, str] = field(default_factory=dict)
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    keys_name: str = ""

    @property
    def is_usable(self) -> bool:
        return not self.error and not self.misfit


@dataclass
class Folder:
    """The files of a table in one folder. `key` is its name in run.json, else table and folder."""

    key: str
    table: Table
    name: str
    files: list[File] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)

    @property
    def is_whole(self) -> bool:
        """Whether every file could be read: then a row that was not seen is not there."""
        return all(file.is_usable for file in self.files)

    @property
    def usable(self) -> list[File]:
        return [file for file in self.files if file.is_usable]

    @property
    def result(self) -> tuple[str, str]:
        """Encoder and stream of a key TABLE/ENCODER-STREAM[/fold-K]."""
        encoder, _, stream = self.key.partition("/")[2].partition("/fold-")[0].rpartition("-")
        return encoder, stream

    @property
    def fold(self) -> int:
        """K of the key; -1 where it has none."""
        return _fold(self.key)


class Progress:
    """A line on stderr every few seconds: bytes read of all, and the time left."""

    def __init__(self, total_bytes: int, every_s: float = 5.0) -> None:
        self.total, self.every_s = max(1, total_bytes), every_s
        self.done, self.num_files, self.num_rows = 0, 0, 0
        self.started = self.said = time.monotonic()

    def add(self, num_bytes: int, num_rows: int) -> None:
        self.done, self.num_files = self.done + num_bytes, self.num_files + 1
        self.num_rows += num_rows
        now = time.monotonic()
        if now - self.said > self.every_s:
            self.said = now
            left = (now - self.started) * (self.total / max(1, self.done) - 1)
            print(
                f"doctor: {self.num_files} files, {100 * self.done / self.total:.0f} %, "
                f"{left:.0f} s left",
                file=sys.stderr,
            )


class Run:
    """A run's record, list of files, and tables.

    Args:
        rows: gets what is kept of the rows.
        quick: no vectors are read, and of codebooks the headers only.

    Attributes:
        by_key: the folders that are there.
        unanswered: {file: what the storage said in place of it}. It may be damaged or not.

    Raises:
        ConfigError: there is no run, or it cannot be listed.
        StorageError: the storage does not answer.
    """

    def __init__(self, store: Store, rows: Rows, quick: bool = False) -> None:
        self.store, self.rows, self.quick = store, rows, quick
        self.sizes = _listing(store)
        roots = {name.partition("/")[0] for name in self.sizes}
        if "run.json" not in roots and not roots & BY_NAME.keys():
            raise ConfigError(
                f"--out {store.root}: expected a run with its run.json, found none; give the "
                "folder that was the job's --out"
            )
        self.record_error, self.record = _read_record(store, "run.json" in roots)
        self.tables: dict[str, str] = self.record.get("tables", {})
        self.unanswered: dict[str, str] = {}
        read = {"samples", "codebooks", "classifiers", "weights"}
        current = tuple(f"{folder}/" for folder in self.tables.values())
        self.progress = Progress(
            sum(
                size
                for name, size in self.sizes.items()
                if name.startswith(current) or name.partition("/")[0] in read
            )
        )
        self.by_key = {f.key: f for f in self._find() if self.files_in(f.name)}
        for table in TABLES:
            self._scan(table)

    # --- settings and steps -------------------------------------------------------------------

    def setting(self, section: str, name: str, default: Any = None) -> Any:
        """A value of the configuration in run.json; `default` where that is of other code."""
        return self.record.get("config", {}).get(section, {}).get(name, default)

    @cached_property
    def streams(self) -> dict[str, dict]:
        """Columns of DESCRIPTORS, in order, as fields of `encoders.descriptors.streams.Stream`.

        None where run.json is of other code.
        """
        return {stream["name"]: stream for stream in self.record.get("streams", ())}

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """(encoder, stream) of single results, in the order of `pipelines.run.job.Job.pairs`."""
        named = [key.partition("/")[2].rpartition("-") for key in self._keys("scores")]
        known = {(encoder, stream) for encoder, _, stream in named}
        known -= {one.pair for one in self.combinations}
        encoders = list(self.setting("encode", "encoders", ()))
        rank = {name: place for place, name in enumerate(self.streams)}
        order = {name: place for place, name in enumerate(encoders)}
        last = len(known) + len(rank) + len(order)
        return sorted(known, key=lambda p: (rank.get(p[1], last), order.get(p[0], last), p))

    @cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """The fused results with SCORES of their own, as run.json has them."""
        found = []
        for one in self.record.get("combinations", []):
            parts = tuple((encoder, stream) for encoder, stream in one["parts"])
            found.append(Combination(one["encoder"], one["stream"], parts))
        return tuple(found)

    @property
    def scored(self) -> list[tuple[str, str]]:
        """(encoder, stream) of all results with SCORES."""
        return [*self.pairs, *(one.pair for one in self.combinations)]

    def expected(self, table: str) -> list[str]:
        """Today's folders of a table, in the order of the run; run.json has sorted them.

        Those of the codebooks are not known from here.
        """
        keys = self._keys(table)
        if table == "scores":
            keys = [f"scores/{encoder}-{stream}" for encoder, stream in self.scored]
        elif table == "encodings":
            names = [f"encodings/{_codebook_name(e)}-{stream}" for e, stream in self.pairs]
            own = {name: [k for k in keys if k.partition("/fold-")[0] == name] for name in names}
            found = [key for name in own for key in sorted(own[name], key=_fold)]
            keys = [*found, *(key for key in keys if key not in found)]
        return [self.tables[key] for key in keys if key in self.tables]

    def marks(self, step: str) -> list[str]:
        """The files that exist when a step is complete."""
        return STEPS[step].marks(self.expected) if "videos" in self.tables else []

    def is_recorded(self, step: str) -> bool:
        """Whether run.json says that the step was done for the tables it names."""
        entry = self.record.get("steps", {}).get(step)
        if entry is None:
            return False
        return step == "fit" or entry.get("digest") == digest(step, self.marks(step))

    def is_done(self, step: str) -> bool:
        """Whether the step's tables should be complete."""
        wanted = self.marks(step)
        return self.is_recorded(step) or (bool(wanted) and all(m in self.sizes for m in wanted))

    # --- tables -------------------------------------------------------------------------------

    def folder(self, key: str) -> Folder | None:
        """The folder that run.json names `key`; None where it names none or nothing is there."""
        return self.by_key.get(key)

    def folders(self, table: str) -> list[Folder]:
        """All folders of a table that are there."""
        return [folder for folder in self.by_key.values() if folder.table.name == table]

    def all_folders(self) -> list[Folder]:
        return list(self.by_key.values())

    def has_rows(self, *keys: str) -> bool:
        """Whether these folders were read in full and hold something."""
        found = [self.folder(key) for key in keys]
        return all(folder and folder.is_whole and folder.num_rows for folder in found)

    @cached_property
    def tensors(self) -> tuple[Tensors, ...]:
        """All safetensors files of codebooks, classifiers and weights."""
        found = []
        for name in sorted(self.sizes):
            if is_visible(name, ".safetensors"):
                try:
                    item = read_tensors(self.store, name, self.sizes[name], self.quick)
                except StorageError as error:
                    item = Tensors(name, {}, self.said(name, error))
                found.append(item)
                self.progress.add(self.sizes[name], 0)
        return tuple(found)

    @cached_property
    def digests_in_use(self) -> frozenset[str]:
        """Of the codebooks that today's encodings were made with."""
        footers = [file.footer for folder in self.folders("encodings") for file in folder.usable]
        return frozenset(f[CODEBOOK_KEY] for f in footers if CODEBOOK_KEY in f)

    def files_in(self, folder: str) -> list[str]:
        """Names of all files of a folder, hidden ones and marks too."""
        return self._by_folder.get(folder, [])

    def marks_in(self, folder: str) -> list[str]:
        """The marks in a folder, also those for other videos."""
        return [n for n in self.files_in(folder) if n.startswith(f"{folder}/_done")]

    def subfolders(self, root: str, depth: int) -> list[str]:
        """Folders with files, `depth` names below `root`."""
        parts = (f.split("/") for f in self._by_folder if f.startswith(f"{root}/"))
        return sorted({"/".join(p[: depth + 1]) for p in parts if len(p) > depth})

    def said(self, name: str, error: Exception) -> str:
        """An error in a line. That of the storage is kept in `unanswered`."""
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        if isinstance(error, StorageError):
            self.unanswered[name] = text
        return text[:200]

    def batches(self, folder: Folder, file: File) -> Iterator[pa.Table]:
        """The row groups of a file. One that turns out unreadable gets its `error`."""
        names = None
        if self.quick:
            declared = set(folder.table.schema().names)
            names = [name for name in file.schema.names if name in declared]
        try:
            with self.store.open_parquet(file.name, verify=True) as parquet:
                for group in range(parquet.num_row_groups):
                    batch = parquet.read_row_group(group, columns=names)
                    batch.validate(full=True)
                    yield batch
        except (OSError, ValueError, pa.ArrowException) as error:
            file.error = self.said(file.name, error)

    @cached_property
    def _by_folder(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in sorted(self.sizes):
            found.setdefault(name.rpartition("/")[0], []).append(name)
        return found

    def _keys(self, table: str) -> list[str]:
        return [key for key in self.tables if key.partition("/")[0] == table]

    def _find(self) -> Iterator[Folder]:
        """Today's folders, table by table, with their visible files."""
        for table in TABLES:
            named = {key: self.tables[key] for key in self._keys(table.name)}
            if table in UNNAMED:
                named = {f"{table.name}/{n}": n for n in self.subfolders(UNNAMED[table], 2)}
            for key, name in named.items():
                files = [File(n, self.sizes[n]) for n in self.files_in(name) if is_visible(n)]
                yield Folder(key, table, name, files)

    def _scan(self, table: Table) -> None:
        """Reads all folders of a table, once."""
        folders = self.folders(table.name)
        if table in ROWS:
            self.rows.add(table, (rows for folder in folders for rows in self._facts(folder)))
        else:
            for folder in folders:
                for file in folder.files:
                    self._open(folder, file)

    def _facts(self, folder: Folder) -> Iterator[pa.Table]:
        """What is kept of each usable file."""
        for file in folder.files:
            if self._open(folder, file):
                groups, keys = [], []
                for batch in self.batches(folder, file):
                    groups.append(facts(folder.table, batch))
                    keys.append(batch.select(folder.table.key))
                if file.is_usable and keys:
                    if folder.table in NAMED_BY_KEYS:
                        file.keys_name = file_name(pa.concat_tables(keys), folder.table.key)
                    yield file_facts(folder.table, groups, folder.key, file.name)

    def _open(self, folder: Folder, file: File) -> bool:
        """Reads footer and schema; whether the file can be used."""
        try:
            with self.store.open_parquet(file.name, verify=True) as parquet:
                file.schema, file.num_rows = parquet.schema_arrow, parquet.metadata.num_rows
                footer = footer_of(parquet)
        except (OSError, ValueError, pa.ArrowException) as error:
            file.error = self.said(file.name, error)
        else:
            file.footer = {k: v for k, v in footer.items() if k.startswith(PROVENANCE)}
            file.misfit = misfit(folder.table, file.schema)
        self.progress.add(file.num_bytes, file.num_rows)
        return file.is_usable


def misfit(table: Table, schema: pa.Schema) -> str:
    """How a file's schema differs from the declared one; empty where it does not."""
    declared = table.schema()
    if schema.names[: len(declared.names)] != declared.names:
        missing = [name for name in declared.names if name not in schema.names]
        return f"lacks {', '.join(missing)}" if missing else "columns in another order"
    for ours, theirs in zip(declared, schema, strict=False):
        if not ours.equals(theirs):
            return f"{ours.name}: expected {_field(ours)}, got {_field(theirs)}"
    extra = schema.names[len(declared.names) :]
    wanted = [vector.name for vector in table.vectors]
    if wanted != ["<stream>"] and extra != wanted:
        return f"expected vector columns {wanted}, got {extra}"
    is_list = any(vector.is_list for vector in table.vectors)
    for name in extra:
        kind = schema.field(name).type
        inner = kind.value_type if is_list and pa.types.is_list(kind) else kind
        if pa.types.is_list(kind) != is_list or not pa.types.is_fixed_size_list(inner):
            return f"{name}: expected a column of vectors, got {kind}"
    return ""


def _field(item: pa.Field) -> str:
    return f"{item.type}{'' if item.nullable else ' not null'}"


def _fold(key: str) -> int:
    text = key.rpartition("/fold-")[2]
    return int(text) if text.isdigit() else -1


def _codebook_name(encoder: str) -> str:
    try:
        return Config().variant(encoder).codebook
    except ValueError:
        return encoder


def _listing(store: Store) -> dict[str, int]:
    """{name: bytes} of every file of the run."""
    try:
        store.fs.invalidate_cache()
        found = dict(store.fs.find(store.path(""), detail=True))
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"--out {store.root}: cannot list it ({error})") from error
    start = len(store.path("")) + 1
    return {name[start:]: int(entry["size"]) for name, entry in found.items() if name[start:]}


def _read_record(store: Store, exists: bool) -> tuple[str, dict]:
    """What is wrong with run.json, and what it says."""
    if not exists:
        return "run.json is missing", {}
    try:
        record = json.loads(store.read("run.json"))
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        return f"run.json cannot be read ({type(error).__name__}: {error})", {}
    is_record = isinstance(record, dict)
    lacking = [k for k in ("steps", "tables", "config") if not is_record or k not in record]
    return (f"run.json lacks {', '.join(lacking)}", {}) if lacking else ("", record)
