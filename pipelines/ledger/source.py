"""The `source` of a file: a digest of where it is, its size, and when it changed.

It changes with the file.
"""

import hashlib
import os

from fsspec.implementations.local import LocalFileSystem

from pipelines.storage.filesystems import filesystem


def modified(info: dict) -> str | None:
    """Return etag or modification time of what fsspec says of a file; None where it has none."""
    names = ("ETag", "mtime", "LastModified", "etag", "last_modified")
    changed = next((info[name] for name in names if info.get(name)), None)
    return None if changed is None else str(changed)


def source_of(
    uri: str,
    size_bytes: int,
    modified: str | None,
    box: tuple[float, float, float, float] | None = None,
) -> str:
    """Return the source of a file, or of a box in its pictures, as VIDEOS has it."""
    of_file = (uri, size_bytes, modified)
    parts = of_file if box is None else (*of_file, box)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def source_now(uri: str, box: tuple[float, float, float, float] | None = None) -> str | None:
    """Return the present source of a video; None where there is no file any more."""
    fs, path = filesystem(uri)
    try:
        # fsspec tells when a link was made, not its file.
        info = _local(path) if isinstance(fs, LocalFileSystem) else fs.info(path)
    except FileNotFoundError:
        return None
    return source_of(uri, info["size"], modified(info), box)


def _local(path: str) -> dict:
    status = os.stat(path)
    return {"size": status.st_size, "mtime": status.st_mtime}
