"""What the doctor knows of a run: every file is read once, one row group at a time, and leaves a few numbers a row.

Keys stay as 64-bit fingerprints, not as text: of n different keys two share one with a chance of n^2 / 2^65, which is
3e-8 for a million. What grows with a run: some 40 bytes a video, 80 a segment, 30 a video and codebook (and with
attention), and the list of files. SCORES are not kept, see `pipelines.doctor.score_checks`.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from pipelines.doctor.gather import GATHER, REDUCE
from pipelines.doctor.tensors import Tensors, read_tensors
from pipelines.errors import ConfigError
from pipelines.run.combination import Combination
from pipelines.settings.config import Config, digest
from pipelines.storage.columns import Table, file_name
from pipelines.storage.parquet import footer_of
from pipelines.storage.retries import StorageError
from pipelines.storage.store import DONE, Store, is_visible
from pipelines.storage.tables import CURVES, METRICS, NAMED_BY_KEYS, SAMPLES, SCORES, TABLES

PROVENANCE = "video_fisher."
CODEBOOK_KEY = "video_fisher.codebook"

EXAMPLES = 5
"""Most examples that a problem has."""

BY_NAME = {table.name: table for table in TABLES}


@dataclass
class File:
    """One visible Parquet file. `error` and `misfit` (of its schema) are empty where all is well."""

    name: str
    num_bytes: int
    num_rows: int = 0
    first_row: int = 0
    error: str = ""
    misfit: str = ""
    footer: dict[str, str] = field(default_factory=dict)
    schema: pa.Schema | None = None
    keys_name: str = ""

    @property
    def is_usable(self) -> bool:
        return not self.error and not self.misfit


@dataclass
class Folder:
    """The files of a table in one folder, and what `pipelines.doctor.gather` keeps of their rows.

    Column `row` is the place of a row in the usable files, one after the other.
    """

    key: str
    table: Table
    name: str
    files: list[File] = field(default_factory=list)
    columns: dict[str, np.ndarray] = field(default_factory=dict)

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

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]


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
                f"doctor: {self.num_files} files, {100 * self.done / self.total:.0f} %, {left:.0f} s left",
                file=sys.stderr,
            )


class Run:
    """A run's record, list of files, and tables as far as they were asked for.

    Args:
        quick: no vectors are read, and of codebooks the headers only.

    Attributes:
        unanswered: {file: what the storage said in place of it}. Nobody knows whether it is damaged.

    Raises:
        ConfigError: there is no run, or it cannot be listed.
        StorageError: the storage does not answer.
    """

    def __init__(self, store: Store, quick: bool = False) -> None:
        self.store, self.quick = store, quick
        self.sizes = _listing(store)
        roots = {name.partition("/")[0] for name in self.sizes}
        if "run.json" not in roots and not roots & BY_NAME.keys():
            raise ConfigError(
                f"--out {store.root}: expected a run with its run.json, found none; give the folder that was "
                "the job's --out"
            )
        self.record_error, self.record = _read_record(store, "run.json" in roots)
        tables = self.record.get("tables", {})
        self.tables: dict[str, str] = tables
        read = {"samples", "codebooks", "classifiers", "weights"}
        current = tuple(f"{folder}/" for folder in tables.values())
        self.progress = Progress(
            sum(
                size
                for name, size in self.sizes.items()
                if name.startswith(current) or name.partition("/")[0] in read
            )
        )
        self._folders: dict[str, Folder] = {}
        self.unanswered: dict[str, str] = {}

    # --- settings and steps -------------------------------------------------------------------

    def setting(self, section: str, name: str, default: object = None) -> object:
        """A value of the configuration in run.json; `default` where it is of other code and lacks it."""
        return self.record.get("config", {}).get(section, {}).get(name, default)

    @property
    def videos_digest(self) -> str:
        return self.tables.get("videos", "").rpartition("/")[2]

    @cached_property
    def streams(self) -> dict[str, dict]:
        """Columns of DESCRIPTORS, in order, as fields of `encoders.descriptors.streams.Stream`; none where run.json is of
        other code and has none."""
        return {stream["name"]: stream for stream in self.record.get("streams", ())}

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """(encoder, stream) of single results, in the order of `pipelines.run.job.Job.pairs`."""
        named = [key.partition("/")[2].rpartition("-") for key in self.tables if _is(key, "scores")]
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

    @cached_property
    def codebook_keys(self) -> list[str]:
        """Keys of ENCODINGS in `tables`, in the order of `pipelines.run.job.Job.codebooks`."""
        known = [key for key in self.tables if _is(key, "encodings")]
        found = []
        for encoder, stream in self.pairs:
            base = f"encodings/{_codebook_name(encoder)}-{stream}"
            found += sorted(
                (key for key in known if key == base or key.startswith(f"{base}/fold-")), key=_fold
            )
        return [*dict.fromkeys(found), *(key for key in known if key not in found)]

    def marks(self, step: str) -> list[str]:
        """The files that exist when a step is complete; those of codebooks are not known from here."""
        tables, videos = self.tables, self.videos_digest
        metrics = tables.get("metrics", "")
        return {
            "index": [f"{tables.get('videos')}/{DONE}"],
            "describe": [f"{tables.get('descriptors')}/_done-{videos}.json"],
            "fit": [],
            "encode": [f"{tables[key]}/_done-{videos}.json" for key in self.codebook_keys],
            "classify": [f"{tables[f'scores/{e}-{s}']}/{DONE}" for e, s in self.scored],
            "evaluate": [
                f"{metrics}/{DONE}",
                f"report/_done-{metrics.rpartition('/')[2]}.json",
            ],
        }[step]

    def is_recorded(self, step: str) -> bool:
        """Whether run.json says that the step was done for the tables it names."""
        entry = self.record.get("steps", {}).get(step)
        if entry is None:
            return False
        return step == "fit" or entry.get("digest") == digest(step, self.marks(step))

    def is_done(self, step: str) -> bool:
        """Whether the step's tables should be complete."""
        marks = self.marks(step)
        return self.is_recorded(step) or (bool(marks) and all(m in self.sizes for m in marks))

    # --- tables -------------------------------------------------------------------------------

    def folder(self, key: str) -> Folder | None:
        """The folder that run.json names `key`, read; None where it names none or nothing is there."""
        if key not in self._folders:
            name = self.tables.get(key)
            if name is None or not any(self.files_in(name)):
                return None
            self._folders[key] = self._scan(key, BY_NAME[key.partition("/")[0]], name)
        return self._folders[key]

    def folders(self, table: str) -> list[Folder]:
        """All folders of a table that are there."""
        if table in ("samples", "curves"):
            return [self._other(table, name) for name in self._other_names(table)]
        found = [self.folder(key) for key in self.tables if _is(key, table)]
        return [folder for folder in found if folder]

    def all_folders(self) -> Iterator[Folder]:
        for table in BY_NAME:
            yield from self.folders(table)

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

    def files_in(self, folder: str) -> Iterator[str]:
        """Names of all files of a folder, hidden ones and marks too."""
        return iter(self._by_folder.get(folder, ()))

    @cached_property
    def _by_folder(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in sorted(self.sizes):
            found.setdefault(name.rpartition("/")[0], []).append(name)
        return found

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

    def _other_names(self, table: str) -> list[str]:
        return self.subfolders("samples" if table == "samples" else "codebooks", 2)

    def _other(self, table: str, name: str) -> Folder:
        key = f"{table}/{name}"
        if key not in self._folders:
            self._folders[key] = self._scan(key, SAMPLES if table == "samples" else CURVES, name)
        return self._folders[key]

    def _scan(self, key: str, table: Table, name: str) -> Folder:
        folder = Folder(key, table, name)
        gathered: list[dict[str, np.ndarray]] = []
        first = 0
        for path in self.files_in(name):
            if not is_visible(path):
                continue
            file, columns = self._read(folder, path)
            file.first_row = first
            if file.is_usable:
                first += file.num_rows
                if columns:
                    columns["row"] = columns["row"] + file.first_row
                    gathered.append(columns)
            folder.files.append(file)
            self.progress.add(file.num_bytes, file.num_rows)
        folder.columns = _joined(gathered)
        return folder

    def _read(self, folder: Folder, path: str) -> tuple[File, dict[str, np.ndarray]]:
        """A file, and what is kept of its rows."""
        file = File(path, self.sizes[path])
        parts, keys = [], []
        try:
            for batch in self._batches(folder, file):
                if file.misfit:
                    continue
                keys.append(batch.select(folder.table.key))
                if folder.table.name in GATHER:
                    parts.append(GATHER[folder.table.name](batch))
        except (OSError, ValueError, pa.ArrowException) as error:
            file.error = self.said(path, error)
            return file, {}
        if keys and folder.table in NAMED_BY_KEYS:
            file.keys_name = file_name(pa.concat_tables(keys), folder.table.key)
        if not parts:
            return file, {}
        columns = _joined(parts)
        columns["row"] = np.arange(file.num_rows)
        reduce = REDUCE.get(folder.table.name)
        return file, reduce(columns) if reduce else columns

    def _batches(self, folder: Folder, file: File) -> Iterator[pa.Table]:
        """The row groups; footer and schema are put into `file` before the first."""
        with self.store.open_parquet(file.name, verify=True) as parquet:
            file.schema, file.num_rows = parquet.schema_arrow, parquet.metadata.num_rows
            footer = footer_of(parquet)
            file.footer = {k: v for k, v in footer.items() if k.startswith(PROVENANCE)}
            file.misfit = misfit(folder.table, file.schema)
            # SCORES and METRICS are read by `pipelines.doctor.score_checks`.
            if folder.table in (SCORES, METRICS) and not file.misfit:
                return
            names = file.schema.names
            if self.quick:
                declared = folder.table.schema().names
                names = [name for name in names if name in declared]
            for group in range(parquet.num_row_groups):
                batch = parquet.read_row_group(group, columns=names)
                batch.validate(full=True)
                yield batch

    def row_groups(self, folder: Folder) -> Iterator[tuple[File, pa.Table]]:
        """Every row group of the usable files. A file that turns out unreadable gets its `error`."""
        for file in folder.usable:
            try:
                with self.store.open_parquet(file.name, verify=True) as parquet:
                    for group in range(parquet.num_row_groups):
                        batch = parquet.read_row_group(group)
                        batch.validate(full=True)
                        yield file, batch
            except (OSError, ValueError, pa.ArrowException) as error:
                file.error = self.said(file.name, error)

    def examples(self, folder: Folder, rows: np.ndarray) -> tuple[str, ...]:
        """The keys of some rows, by their places in column `row`, and the files they are in."""
        found = []
        for row in sorted(int(r) for r in rows[:EXAMPLES]):
            file = next(f for f in folder.usable if f.first_row <= row < f.first_row + f.num_rows)
            with self.store.open_parquet(file.name, verify=True) as parquet:
                table = parquet.read(columns=list(folder.table.key))
            values = table.slice(row - file.first_row, 1).to_pylist()[0].values()
            found.append(f"{', '.join(map(str, values))} in {file.name}")
        return tuple(found)


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


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = set.intersection(*(set(part) for part in parts)) if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _field(item: pa.Field) -> str:
    return f"{item.type}{'' if item.nullable else ' not null'}"


def _is(key: str, table: str) -> bool:
    return key.partition("/")[0] == table


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
        found = store.fs.find(store.path(""), detail=True)
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
