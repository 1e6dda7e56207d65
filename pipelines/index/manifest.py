"""The files that `--videos` names, one row for each video.

Errors in them show here, before there is a cluster.
"""

import collections
import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import ConfigError
from pipelines.index import boxes, stretches
from pipelines.index.playlists import pieces
from pipelines.index.user_tables import (
    column_names,
    read_user_table,
    some,
    texts,
    user_filesystem,
    using,
)
from pipelines.ledger.source import modified
from pipelines.storage.uris import refuse_credentials
from pipelines.video.images.names import SUFFIXES, is_picture

log = logging.getLogger(__name__)

Media = Literal["auto", "videos", "images"]

_TEXTS = (
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
    ".pdf",
)
_ARRAYS = (".parquet", ".npy", ".npz", ".pt", ".pth", ".safetensors")
_OF_CAMERAS = (".thm", ".lrv")
"""Thumbnails, and small copies of the videos beside them."""
_OTHERS = (
    ".py",
    ".sh",
    ".ipynb",
    ".srt",
    ".vtt",
    ".part",
    ".tmp",
    ".lock",
    ".metadata",
    ".db",
    ".ini",
)
NOT_VIDEOS = frozenset((*_TEXTS, *_ARRAYS, *SUFFIXES, *_OF_CAMERAS, *_OTHERS))
"""Suffixes of files that stand beside videos.

A file with any other suffix is tried, and its row says what it was.
"""

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
"""Suffixes of files that may hold videos, but are not unpacked: a warning says so."""


def list_videos(
    videos: str,
    *,
    out: str = "",
    look: bool = True,
    media: Media = "auto",
    with_boxes: bool = False,
) -> pa.Table:
    """Return columns path, uri, size_bytes, modified, start_s and end_s of all videos, sorted by
    path.

    `videos` is a folder, a glob, one file, or a Parquet or CSV manifest with a column `path`, whose
    relative paths start at the manifest's folder. A row of a manifest with start_s and end_s is
    that stretch of the file; both are null of a whole file. In a folder, links are not followed,
    names that begin with a dot are left out; whatever is not a regular file that can be read, and
    the pieces of a playlist's video, are passed over; one warning tells of them all.

    Args:
        out: the output of the run, which is left out where it lies in the folder.
        look: look at each file that a manifest names. Without, sizes are 0, and missing files are
            not noticed.
        media: see `manifest.media`.
        with_boxes: with the columns of `pipelines.index.boxes`, where a manifest has them.

    Raises:
        ConfigError: nothing is there, it cannot be read, the root of a file system is named, or the
            manifest has no column `path`.
    """
    with using("--videos", videos):
        return _list_videos(videos, out, look, media, with_boxes)


def labels_file(videos: str, labels: str | None) -> str | None:
    """Return the file with the labels: that of --labels, else a manifest with a column label."""
    return videos if labels is None and _has_labels(videos) else labels


def _has_labels(videos: str) -> bool:
    """Return whether `videos` is a manifest with a column `label`.

    Raises:
        ConfigError: it is a manifest that cannot be read.
    """
    is_manifest = videos.lower().endswith((".csv", ".parquet"))
    return is_manifest and "label" in column_names("--videos", videos)


def _list_videos(videos: str, out: str, look: bool, media: Media, with_boxes: bool) -> pa.Table:
    fs, root = user_filesystem("--videos", videos)
    is_local = isinstance(fs, LocalFileSystem)
    if not root or (is_local and root == "/"):
        raise ConfigError(
            f"--videos {videos}: expected the folder or bucket that holds the videos, got the root "
            "of a file system; name the folder, such as /data/videos or s3://bucket/videos"
        )
    if videos.lower().endswith((".csv", ".parquet")):
        return _from_manifest(videos, fs, root, look, with_boxes)
    skipped: dict[str, list[str]] = {}
    if fs.isdir(root):
        base = root.rstrip("/")
        files = _walk(base, skipped) if is_local else _infos(fs.find(root, detail=True))
    elif fs.exists(root):
        base, files = root.rpartition("/")[0], {root: fs.info(root)}
    elif any(mark in root for mark in "*?["):
        base = root[: min(root.find(m) for m in "*?[" if m in root)].rpartition("/")[0]
        files = _infos(fs.glob(root, detail=True))
    else:
        raise ConfigError(
            f"--videos {videos}: expected a folder, glob, file or manifest; nothing is there"
        )
    out_prefix = _prefix_below(fs, base, out) if out else None
    rows = _rows_of_files(videos, fs, base, files, skipped, out_prefix)
    rows = _of_media(videos, rows, media)
    if not rows:
        links = f"; {_LINKS}" if "link" in skipped else ""
        raise ConfigError(f"--videos {videos}: expected videos, found none{links}")
    return stretches.with_times(pa.Table.from_pylist(rows, schema=_LISTED))


def _infos(listing: Any) -> dict[str, dict]:
    # fsspec declares lists of names as well; with `detail` they are {path: info}.
    return listing


def _prefix_below(fs: fsspec.AbstractFileSystem, base: str, out: str) -> str | None:
    """Return the prefix of the output folder's paths below `base`, with a slash at its end; None if
    it is elsewhere.
    """
    out_fs, path = user_filesystem("--out", out)
    if type(out_fs) is not type(fs):
        return None
    if isinstance(fs, LocalFileSystem):
        base, path = os.path.realpath(base or "/"), os.path.realpath(path)
    base, path = f"{base.rstrip('/')}/", f"{path.rstrip('/')}/"
    return path.removeprefix(base) if path.startswith(base) and path != base else None


def _walk(base: str, skipped: dict[str, list[str]]) -> dict[str, dict]:
    """Return {path: info as fsspec gives it} of the files below a local folder.

    fsspec's own `find` is silent about folders that it cannot list; here they are added to
    `skipped`.
    """

    def cannot(error: OSError) -> None:
        skipped.setdefault("folder that cannot be read", []).append(str(error.filename))

    files = {}
    for folder, folders, names in os.walk(base, onerror=cannot):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                skipped.setdefault("link", []).append(os.path.join(folder, name))
        for name in names:
            path = os.path.join(folder, name)
            try:
                files[path] = _local_info(os.lstat(path))
            except OSError:
                skipped.setdefault("file that is gone or cannot be read", []).append(path)
    return files


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def _local_info(status: os.stat_result) -> dict:
    kind = _TYPES.get(stat.S_IFMT(status.st_mode), "other")
    return {"type": kind, "size": status.st_size, "mtime": status.st_mtime}


def _rows_of_files(
    videos: str,
    fs: fsspec.AbstractFileSystem,
    base: str,
    files: dict[str, dict],
    skipped: dict[str, list[str]],
    out_prefix: str | None,
) -> list[dict]:
    """Return the rows of the videos among the files.

    Args:
        out_prefix: the start of the output folder's paths, as `_prefix_below` gives it.
    """
    rows, companions = [], collections.Counter()
    cut = pieces(fs, sorted(files))
    for path, info in sorted(files.items()):
        relative = path[len(base) :].lstrip("/")
        suffix = os.path.splitext(path)[1].lower()
        if (
            _is_hidden(relative)
            or _is_marker(relative)
            or (out_prefix and relative.startswith(out_prefix))
        ):
            continue
        if odd := _oddity(fs, path, info):
            skipped.setdefault(odd, []).append(relative)
        elif path in cut:
            skipped.setdefault("piece of a video that a playlist names", []).append(relative)
        elif suffix in NOT_VIDEOS and not is_picture(relative):
            companions[suffix] += 1
        else:
            rows.append(_row(relative, fs.unstrip_protocol(path), info))
    if companions:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(companions.items()))
        log.info(
            "%s: passed over %d files that are no videos (%s)", videos, companions.total(), kinds
        )
    _warn(videos, skipped)
    return rows


def _of_media(videos: str, rows: list[dict], media: Media) -> list[dict]:
    """Return the rows of videos, or of images; one message tells of what is passed over."""
    images = [row for row in rows if is_picture(row["path"])]
    films = [row for row in rows if not is_picture(row["path"])]
    if media == "images" or (media == "auto" and not films):
        taken, left, other = images, films, "videos"
    else:
        taken, left, other = films, images, "images"
    if left:
        log.info(
            "%s: passed over %d %s, such as %s; manifest.media=%s takes them, and a manifest may "
            "name both",
            videos,
            len(left),
            other,
            left[0]["path"][:200],
            other,
        )
    return taken


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))


def _is_marker(relative: str) -> bool:
    """Return whether an object stands for a folder, as consoles and Hadoop make them."""
    return relative == "" or relative.endswith(("/", "_$folder$"))


def _oddity(fs: fsspec.AbstractFileSystem, path: str, info: dict) -> str:
    """Return why a file is passed over with a warning; empty where there is no reason."""
    if info.get("islink"):
        return "link"
    if info["type"] != "file":
        return info["type"]
    if not _is_text(path):
        return "name that is no UTF-8"
    if path.lower().endswith(_ARCHIVES):
        return "archive"
    if _is_ambiguous(fs, path):
        return _AMBIGUOUS
    if isinstance(fs, LocalFileSystem) and not os.access(path, os.R_OK):
        return "file that is gone or cannot be read"
    return ""


_AMBIGUOUS = "name with :: or ?versionId=, which cannot be opened"


def _is_ambiguous(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Return whether a URI of the path means something else: fsspec chains file systems by ::, and
    s3fs takes a version.
    """
    return not isinstance(fs, LocalFileSystem) and ("::" in path or "?versionId=" in path)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


_LINKS = (
    "links are not followed in a folder; a manifest follows them: --videos FILE.csv with a column "
    "path that names them"
)


def _warn(videos: str, skipped: dict[str, list[str]]) -> None:
    if not skipped:
        return
    kinds = "; ".join(
        f"{len(paths)} x {kind}, such as {min(paths)[:200]!a}"
        for kind, paths in sorted(skipped.items())
    )
    total = sum(len(paths) for paths in skipped.values())
    hint = f"; {_LINKS}" if "link" in skipped else ""
    log.warning("%s: passed over %d entries: %s%s", videos, total, kinds, hint)


_LISTED = pa.schema(
    [
        ("path", pa.string()),
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("modified", pa.string()),
    ]
)


def _row(relative: str, uri: str, info: dict) -> dict:
    return {
        "path": relative,
        "uri": uri.removeprefix("file://"),
        "size_bytes": info["size"],
        "modified": modified(info),
    }


def _from_manifest(
    videos: str, fs: fsspec.AbstractFileSystem, path: str, look: bool, with_boxes: bool
) -> pa.Table:
    table = read_user_table("--videos", videos)
    if "path" not in table.column_names:
        raise ConfigError(f"--videos {videos}: expected a column 'path', got {table.column_names}")
    base = path.rpartition("/")[0]
    column = texts("--videos", videos, table, "path").to_pylist()
    if not all(column):
        raise ConfigError(f"--videos {videos}: a row has no path")
    names, uris, name_of = _once(fs, base, column)
    of_rows = [
        f"{name_of[path]}{video_id.removeprefix(path)}"
        for video_id, path in zip(
            stretches.ids("--videos", videos, table, column), column, strict=True
        )
    ]
    found = boxes.read_boxes("--videos", videos, table, of_rows) if with_boxes else None
    ids = sorted(set(of_rows))
    if len(ids) < len(column):
        log.warning(
            "%s: %d of %d rows repeat a video and count once",
            videos,
            len(column) - len(ids),
            len(column),
        )
    if not look:
        unknown = pa.nulls(len(names), pa.string())
        sizes = pa.repeat(pa.scalar(0, pa.int64()), len(names))
        listed = [pa.array(names), pa.array(uris), sizes, unknown]
        return _of_ids(pa.Table.from_arrays(listed, schema=_LISTED), ids, found)
    # On object storage each look is a request.
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        looks = list(pool.map(lambda name: _look(fs, base, name), names, chunksize=1))
    missing = [name for name, row in zip(names, looks, strict=True) if row is None]
    if missing:
        raise ConfigError(
            f"--videos {videos}: {len(missing)} files do not exist, such as {some(missing)}; paths "
            f"are relative to {base}"
        )
    skipped: dict[str, list[str]] = {}
    for name, row in zip(names, looks, strict=True):
        if isinstance(row, str):
            skipped.setdefault(row, []).append(name)
    _warn(videos, skipped)
    rows = [row for row in looks if isinstance(row, dict)]
    if not rows:
        raise ConfigError(f"--videos {videos}: expected videos, found none")
    return _of_ids(pa.Table.from_pylist(rows, schema=_LISTED), ids, found)


def _of_ids(files: pa.Table, ids: list[str], found: dict[str, boxes.Box] | None) -> pa.Table:
    """Return a row for each video of a manifest, from the rows of its files."""
    row_of = {path: row for row, path in enumerate(files["path"].to_pylist())}
    there = [name for name in ids if stretches.split(name)[0] in row_of]
    rows = files.take(pa.array([row_of[stretches.split(name)[0]] for name in there], pa.int64()))
    listed = stretches.with_times(rows.set_column(0, "path", pa.array(there, pa.string())))
    return listed if found is None else boxes.with_boxes(listed, found)


_LOOKS_AT_ONCE = 16


def _once(
    fs: fsspec.AbstractFileSystem, base: str, names: list[str]
) -> tuple[list[str], list[str], dict[str, str]]:
    """Return each file of a manifest once: its name, sorted, its path or URI, and {spelling: name}.

    Of several spellings of a file, such as `a.mp4`, `./a.mp4` and its absolute path, the shortest
    is its name.
    """
    name_at: dict[str, str] = {}
    name_of = {
        name: name_at.setdefault(_resolve(fs, base, name), name)
        for name in sorted(set(names), key=lambda name: (len(name), name))
    }
    pairs = sorted((name, uri) for uri, name in name_at.items())
    return [name for name, _ in pairs], [uri for _, uri in pairs], name_of


def _resolve(fs: fsspec.AbstractFileSystem, base: str, name: str) -> str:
    """Return the absolute path or URI of a file that a manifest names.

    A local path loses its `..`, as in `filesystem`.
    """
    if "://" in name:
        # Finding the filesystem of a URI takes a quarter of a millisecond, and a manifest may name
        # millions.
        if name.startswith(("file://", "local://")):
            return user_filesystem("--videos", name)[1]
        refuse_credentials("--videos", name)
        return name
    full = name if name.startswith("/") else f"{base}/{name}"
    if name.startswith("/") or isinstance(fs, LocalFileSystem):
        return os.path.normpath(full)
    return fs.unstrip_protocol(f"{base}/{name.removeprefix('./')}")


def _look(fs: fsspec.AbstractFileSystem, base: str, name: str) -> dict | str | None:
    """Return the row of a file that a manifest names, the reason for none, or None without such a
    file.

    A link is followed, because the manifest names it.
    """
    uri = _resolve(fs, base, name)
    if "://" in uri:
        path = f"{base}/{name.removeprefix('./')}"
        if "://" in name:
            fs, path = user_filesystem("--videos", name)
        with using("--videos", name):
            try:
                info, uri = fs.info(path), fs.unstrip_protocol(path)
            except FileNotFoundError:
                return None
        if _is_ambiguous(fs, path):
            return _AMBIGUOUS
    else:
        try:
            info = _local_info(os.stat(uri))
        except (OSError, ValueError):
            return None
        if info["type"] == "file" and not os.access(uri, os.R_OK):
            return "file that cannot be read"
    return _row(name, uri, info) if info["type"] == "file" else info["type"]
