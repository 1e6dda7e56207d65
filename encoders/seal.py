"""A digest inside a file, by which its reader sees that not one byte of it has changed.

A writer puts BLANK in the file, under ENTRY, and `seal` puts the sha256 of the whole file in its
place. So a file says of itself whether it is whole: no list is needed that tasks on many nodes
would have to fill, and that a kill would lose. Files of before this was written have no seal.
"""

import hashlib
import re

ENTRY = "video_fisher.sealed.by-sha256"
BLANK = "0" * 64

_PARTS = (b"video_fisher.se", b"by-sha256")
"""Parts of ENTRY, so far apart that a few damaged bytes of the entry itself leave one of them."""

_SEAL = re.compile(re.escape(ENTRY.encode()) + rb"[^0-9a-f]{1,4}(?:content=\")?([0-9a-f]{64})")


class DamagedError(ValueError):
    """An error of bytes that are not those that were written."""


_EDGE = 2**20
"""The entry is so near the beginning of a file (safetensors) or its end (Parquet)."""


def seal(data: bytes) -> bytes:
    """Return a file that has ENTRY with BLANK, sealed.

    Raises:
        ValueError: it has none.
    """
    match = _found(data)
    if match is None or match[1] != BLANK.encode():
        raise ValueError(f"seal: expected an entry {ENTRY} of {len(BLANK)} zeros, found none")
    first, last = match.span(1)
    return b"".join((memoryview(data)[:first], _digest(data, first, last), memoryview(data)[last:]))


def is_whole(data: bytes) -> bool | None:
    """Return whether a file is as it was sealed; None where it has no seal."""
    match = _found(data)
    if match is None:
        edges = (data[:_EDGE], data[-_EDGE:])
        return False if any(part in edge for part in _PARTS for edge in edges) else None
    return match[1] == _digest(data, *match.span(1))


def _found(data: bytes) -> re.Match[bytes] | None:
    late = _SEAL.search(data, max(0, len(data) - _EDGE))
    return late or _SEAL.search(data, 0, _EDGE)


def _digest(data: bytes, first: int, last: int) -> bytes:
    sha = hashlib.sha256(memoryview(data)[:first])
    sha.update(BLANK.encode())
    sha.update(memoryview(data)[last:])
    return sha.hexdigest().encode()
