"""Videos and labels in, one manifest row per video out: everything that can be wrong is found here.

No cluster is needed: files are listed, labels are read and matched.
"""

import bisect
import collections
import csv
import io
import logging
import os
import stat
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import ConfigError
from pipelines.filesystems import filesystem
from pipelines.run_settings import Manifest
from pipelines.storage import refuse_credentials

log = logging.getLogger(__name__)

NOT_VIDEOS = frozenset(
    [
        ".csv",
        ".tsv",
        ".txt",
        ".md",
        ".json",
        ".jsonl",
        ".yaml",
        ".yml",
        ".xml",
        ".html",
        ".parquet",
        ".npy",
        ".npz",
        ".pt",
        ".pth",
        ".safetensors",
        ".jpg",
        ".jpeg",
        ".png",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".pdf",
        ".zip",
        ".tar",
        ".gz",
        ".tgz",
        ".bz2",
        ".xz",
        ".zst",
        ".7z",
        ".rar",
        ".py",
        ".sh",
        ".ipynb",
        ".srt",
        ".vtt",
        ".part",
        ".tmp",
    ]
)
"""Suffixes that a folder may hold beside videos. Any other file is tried, and its row says what it was."""


@dataclass(frozen=True)
class Labels:
    """The labels file: per path its labels, and group and split where the file has such columns."""

    labels: dict[str, list[str]]
    group: dict[str, str] | None
    split: dict[str, str] | None


def list_videos(videos: str, *, look: bool = True) -> pa.Table:
    """path, uri, size_bytes, modified (and labels' columns of a manifest) of all videos, by path.

    `videos` is a folder, a glob, one file, or a Parquet or CSV manifest with a column `path`, whose
    relative paths start at the manifest's folder. In a folder, links are not followed, and what is no
    regular file that can be read is passed over, with one warning.

    Args:
        look: look at each file that a manifest names. Else sizes are 0, and what is missing does not show.

    Raises:
        ConfigError: nothing is there, or the manifest has no column `path`.
    """
    refuse_credentials("--videos", videos)
    try:
        fs, root = filesystem(videos)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"--videos {videos}: {error}") from error
    if videos.lower().endswith((".csv", ".parquet")):
        return _from_manifest(videos, fs, root, look)
    skipped: dict[str, list[str]] = {}
    if fs.isdir(root):
        base = root.rstrip("/")
        is_local = isinstance(fs, LocalFileSystem)
        found = _walk(base, skipped) if is_local else fs.find(root, detail=True)
    elif fs.exists(root):
        base, found = root.rpartition("/")[0], {root: fs.info(root)}
    elif any(mark in root for mark in "*?["):
        base = root[: min(root.find(m) for m in "*?[" if m in root)].rpartition("/")[0]
        found = fs.glob(root, detail=True)
    else:
        raise ConfigError(
            f"--videos {videos}: expected a folder, glob, file or manifest; nothing is there"
        )
    rows = _rows_of_files(videos, fs, base, found, skipped)
    if not rows:
        raise ConfigError(f"--videos {videos}: expected videos, found none")
    return pa.Table.from_pylist(rows, schema=_LISTED)


def _walk(base: str, skipped: dict[str, list[str]]) -> dict[str, dict]:
    """Infos, as of fsspec, of the files below a local folder. Other than fsspec it says what it cannot list."""

    def cannot(error: OSError) -> None:
        skipped.setdefault("folder that cannot be read", []).append(str(error.filename))

    found = {}
    for folder, folders, names in os.walk(base, onerror=cannot):
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                skipped.setdefault("link", []).append(os.path.join(folder, name))
        for name in names:
            path = os.path.join(folder, name)
            try:
                found[path] = _local_info(os.lstat(path))
            except OSError:
                skipped.setdefault("file that is gone or cannot be read", []).append(path)
    return found


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def _local_info(found: os.stat_result) -> dict:
    kind = _TYPES.get(stat.S_IFMT(found.st_mode), "other")
    return {"type": kind, "size": found.st_size, "mtime": found.st_mtime}


def _rows_of_files(
    videos: str,
    fs: fsspec.AbstractFileSystem,
    base: str,
    found: dict[str, dict],
    skipped: dict[str, list[str]],
) -> list[dict]:
    rows, companions = [], collections.Counter()
    for path, info in sorted(found.items()):
        relative = path[len(base) :].lstrip("/")
        suffix = os.path.splitext(path)[1].lower()
        if odd := _oddity(fs, path, info):
            skipped.setdefault(odd, []).append(relative)
        elif suffix in NOT_VIDEOS:
            companions[suffix] += 1
        elif not relative.rpartition("/")[2].startswith("."):
            rows.append(_row(relative, fs.unstrip_protocol(path), info))
    if companions:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(companions.items()))
        log.info(
            "%s: passed over %d files that are no videos (%s)", videos, companions.total(), kinds
        )
    _warn(videos, skipped)
    return rows


_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def _oddity(fs: fsspec.AbstractFileSystem, path: str, info: dict) -> str:
    """Why a file is passed over with a warning; empty where it is not."""
    if info.get("islink"):
        return "link"
    if info["type"] != "file":
        return info["type"]
    if not _is_text(path):
        return "name that is no UTF-8"
    if path.lower().endswith(_ARCHIVES):
        return "archive"
    if isinstance(fs, LocalFileSystem) and not os.access(path, os.R_OK):
        return "file that is gone or cannot be read"
    return ""


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _warn(videos: str, skipped: dict[str, list[str]]) -> None:
    if not skipped:
        return
    kinds = "; ".join(
        f"{len(paths)} x {kind}, such as {min(paths)[:200]!a}"
        for kind, paths in sorted(skipped.items())
    )
    total = sum(len(paths) for paths in skipped.values())
    log.warning("%s: passed over %d entries: %s", videos, total, kinds)


_LISTED = pa.schema(
    [
        ("path", pa.string()),
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("modified", pa.string()),
    ]
)


def _row(relative: str, uri: str, info: dict) -> dict:
    changed = info.get("ETag") or info.get("mtime") or info.get("LastModified")
    return {
        "path": relative,
        "uri": uri.removeprefix("file://"),
        "size_bytes": info["size"],
        "modified": None if changed is None else str(changed),
    }


def _from_manifest(videos: str, fs: fsspec.AbstractFileSystem, path: str, look: bool) -> pa.Table:
    table = _read_small_table(videos, fs, path, "--videos")
    if "path" not in table.column_names:
        raise ConfigError(f"--videos {videos}: expected a column 'path', got {table.column_names}")
    base = path.rpartition("/")[0]
    column = table["path"].cast(pa.string()).to_pylist()
    if not all(column):
        raise ConfigError(f"--videos {videos}: a row has no path")
    names = sorted(set(column))
    if len(names) < len(column):
        log.warning(
            "%s: %d of %d rows repeat a path and count once",
            videos,
            len(column) - len(names),
            len(column),
        )
    if not look:
        uris = [_uri(fs, base, name) for name in names]
        unknown = pa.nulls(len(names), pa.string())
        sizes = pa.repeat(pa.scalar(0, pa.int64()), len(names))
        return pa.Table.from_arrays(
            [pa.array(names), pa.array(uris), sizes, unknown], schema=_LISTED
        )
    # On object storage each look is a request.
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        looks = list(pool.map(lambda name: _look(fs, base, name), names, chunksize=1))
    missing = [name for name, row in zip(names, looks, strict=True) if row is None]
    if missing:
        raise ConfigError(
            f"--videos {videos}: {len(missing)} files do not exist, such as {_some(missing)}; paths are "
            f"relative to {base}"
        )
    skipped: dict[str, list[str]] = {}
    for name, row in zip(names, looks, strict=True):
        if isinstance(row, str):
            skipped.setdefault(row, []).append(name)
    _warn(videos, skipped)
    rows = [row for row in looks if isinstance(row, dict)]
    if not rows:
        raise ConfigError(f"--videos {videos}: expected videos, found none")
    return pa.Table.from_pylist(rows, schema=_LISTED)


_LOOKS_AT_ONCE = 16


def _look(fs: fsspec.AbstractFileSystem, base: str, name: str) -> dict | str | None:
    """The row of a file that a manifest names, why it is none, or None where there is no such file.

    A link is followed: the manifest names it. A local path loses its `..`, as in `filesystem`.
    """
    if "://" in name:
        refuse_credentials("--videos", name)
        fs, full = filesystem(name)
    else:
        full = name if name.startswith("/") else f"{base}/{name}"
    if name.startswith("/") or isinstance(fs, LocalFileSystem):
        full = os.path.normpath(full)
        try:
            info, uri = _local_info(os.stat(full)), full
        except (OSError, ValueError):
            return None
        if info["type"] == "file" and not os.access(full, os.R_OK):
            return "file that cannot be read"
    else:
        try:
            info, uri = fs.info(full), fs.unstrip_protocol(full)
        except FileNotFoundError:
            return None
    return _row(name, uri, info) if info["type"] == "file" else info["type"]


def _uri(fs: fsspec.AbstractFileSystem, base: str, name: str) -> str:
    """The uri of the row that `_look` makes where the file is there."""
    if "://" in name:
        refuse_credentials("--videos", name)
        return filesystem(name)[1] if name.startswith("file://") else name
    full = name if name.startswith("/") else f"{base}/{name}"
    if name.startswith("/") or isinstance(fs, LocalFileSystem):
        return os.path.normpath(full)
    return fs.unstrip_protocol(full)


def _some(names: list[str]) -> list[str]:
    return [name[:200] for name in names[:3]]


def _read_small_table(name: str, fs: fsspec.AbstractFileSystem, path: str, flag: str) -> pa.Table:
    try:
        data = fs.cat_file(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"{flag} {name}: no such file") from error
    try:
        table = pq.read_table(io.BytesIO(data)) if _is_parquet(name) else _read_csv(data)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{flag} {name}: expected text in UTF-8, got another encoding: {error}; save it as UTF-8"
        ) from error
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{flag} {name}: not a readable table: {error}") from error
    twice = [name for name, count in collections.Counter(table.column_names).items() if count > 1]
    if twice:
        raise ConfigError(f"{flag} {name}: expected each column once, got {twice} several times")
    return table


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _read_csv(data: bytes) -> pa.Table:
    """All cells as text, as they are; an empty one is null. UTF-8, or UTF-16 where its mark says so."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.decode("utf-16").encode()
    data.decode()
    header = next(csv.reader([data.partition(b"\n")[0].decode("utf-8-sig").strip()]), [])
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()),
        strings_can_be_null=True,
        # Not "NA" or "null": they may be labels.
        null_values=[""],
    )
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(io.BytesIO(data), parse_options=parsing, convert_options=options)


def read_labels(labels: str, split: str = "") -> Labels:
    """A CSV or Parquet file with columns path, label[, group][, split]; several rows per path are several labels.

    Args:
        split: the column with the split, which must be there; where it is empty, `split` if it is there.

    Raises:
        ConfigError: no such file, a missing column, an empty cell, or rows of a path that disagree.
    """
    refuse_credentials("--labels", labels)
    table = _read_small_table(labels, *filesystem(labels), "--labels")
    for column in ("path", "label"):
        if column not in table.column_names:
            raise ConfigError(
                f"--labels {labels}: expected columns path,label[,group][,split], got "
                f"{','.join(table.column_names)}"
            )
    paths, names = table["path"].to_pylist(), _shared(table["label"])
    found: dict[str, list[str]] = {}
    for row, (path, name) in enumerate(zip(paths, names, strict=True), start=2):
        if not path or not name:
            raise ConfigError(f"--labels {labels}: row {row} has no {'label' if path else 'path'}")
        known = found.setdefault(path, [name])
        if name not in known:
            bisect.insort(known, name)
    if split and split not in table.column_names:
        raise ConfigError(
            f"split.name={split}: expected a column {split!r} in --labels {labels}, got "
            f"{','.join(table.column_names)}"
        )
    column = split or "split"
    splits = _one_per_path(labels, table, column, paths)
    for path, value in (splits or {}).items():
        if value not in ("train", "test", "unused"):
            raise ConfigError(
                f"--labels {labels}: expected {column} train, test or unused, got {value!r} for {path}"
            )
    return Labels(
        labels=found,
        group=_one_per_path(labels, table, "group", paths),
        split=splits,
    )


def _shared(column: pa.ChunkedArray) -> list[str | None]:
    """The texts of a column, equal ones as one object: a million rows have few labels."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    texts = [*encoded.dictionary.to_pylist(), None]
    return [texts[place] for place in encoded.indices.fill_null(len(texts) - 1).to_numpy()]


def _one_per_path(
    labels: str, table: pa.Table, column: str, paths: list[str]
) -> dict[str, str] | None:
    if column not in table.column_names:
        return None
    values: dict[str, str] = {}
    for path, value in zip(paths, _shared(table[column]), strict=True):
        if value is None:
            raise ConfigError(f"--labels {labels}: {path} has no {column}")
        if values.setdefault(path, value) != value:
            raise ConfigError(
                f"--labels {labels}: {path} has two values of {column}: {values[path]}, {value}"
            )
    return values


def match(videos: pa.Table, labels: Labels | None, settings: Manifest) -> pa.Table:
    """`videos` with columns labels, group and split; empty or null where there are none.

    Raises:
        ConfigError: videos without labels or labels without videos, unless the settings allow them.
    """
    paths = videos["path"].to_pylist()
    if labels is None:
        known, group, split = {}, None, None
    else:
        known, group, split = labels.labels, labels.group, labels.split
        _match_errors(set(paths), set(known), settings)
        if settings.unlabelled == "skip":
            videos = videos.filter(pa.array([path in known for path in paths]))
            paths = videos["path"].to_pylist()
    if not paths:
        raise ConfigError("--labels: no video has a label; are the paths relative to --videos?")
    for name, column in (
        ("labels", pa.array([known.get(p, []) for p in paths], pa.list_(pa.string()))),
        ("group", pa.array([(group or {}).get(p) for p in paths], pa.string())),
        ("split", pa.array([(split or {}).get(p) for p in paths], pa.string())),
    ):
        videos = videos.append_column(name, column)
    return videos


def _match_errors(videos: set[str], labelled: set[str], settings: Manifest) -> None:
    missing, unlabelled = sorted(labelled - videos), sorted(videos - labelled)
    if missing and settings.missing == "error":
        raise ConfigError(
            f"--labels: {len(missing)} of {len(labelled)} labelled videos do not exist, such as "
            f"{_some(missing)}; paths are relative to --videos. To leave them out: "
            f"--set manifest.missing=skip{_spelling(missing, unlabelled)}"
        )
    if unlabelled and settings.unlabelled == "error":
        raise ConfigError(
            f"--labels: {len(unlabelled)} of {len(videos)} videos have no label, such as "
            f"{_some(unlabelled)}. To leave them out: --set manifest.unlabelled=skip; to encode them "
            "without label: --set manifest.unlabelled=encode"
        )


def _spelling(missing: list[str], unlabelled: list[str]) -> str:
    """Says so where names look the same, but have their accents in one character or in two."""
    there = {unicodedata.normalize("NFC", name) for name in unlabelled}
    same = [name for name in missing if unicodedata.normalize("NFC", name) in there]
    if not same:
        return ""
    return (
        f". {len(same)} of them, such as {same[0][:200]!a}, are there in another Unicode form (NFC, NFD): "
        "write the labels as the files are named"
    )
