"""A remote file as a local one with holes: ranges are fetched when they are read, and kept.

A long video is read by its index and by the bytes of the frames that are wanted: where the
container lists its packets apart from their content (MP4, MOV), the pass over all packets that
lists them fetches none of the content.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, cast

from pipelines.storage.filesystems import filesystem

BLOCK_BYTES = 256 * 2**10
"""What is fetched at least, and kept whole."""

MAX_BLOCKS = 32
"""Blocks of one request at most."""

MOST_BYTES = MAX_BLOCKS * BLOCK_BYTES
"""Size of the largest request: 8 MiB."""


@dataclass(frozen=True)
class Traffic:
    """Requests to object storage, the bytes that came, and the seconds that it took."""

    requests: int = 0
    num_bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.requests + other.requests,
            self.num_bytes + other.num_bytes,
            self.seconds + other.seconds,
        )


_spent = Traffic()


def taken() -> Traffic:
    """Return the traffic of all files of this process since the last call."""
    global _spent
    traffic, _spent = _spent, Traffic()
    return traffic


def _spend(num_bytes: int, began: float) -> None:
    """Add a request that began at a time.perf_counter()."""
    global _spent
    _spent += Traffic(1, num_bytes, time.perf_counter() - began)


class RangeFile:
    """The file at a URI, for reading. Its copy has no name, so it is gone with the process.

    Reads that follow each other fetch ahead, twice as much each time. `expect` says what will be
    read, so that it comes in few requests.

    Args:
        on_block: called after each request.

    Raises:
        OSError: it is not there, or its storage fails; also while it is read.
    """

    def __init__(self, uri: str, on_block: Callable[[], None] = lambda: None) -> None:
        self._uri, self._on_block = uri, on_block
        self._position, self._ahead, self._end_of_last = 0, 1, 0
        self._expected = self._content = range(0)
        with _as_os_error():
            self._files, self._path = filesystem(uri)
            began = time.perf_counter()
            try:
                self.size = int(self._files.info(self._path)["size"])
            finally:
                _spend(0, began)
        self._here = bytearray(-(-self.size // BLOCK_BYTES))
        # Closed by `close`; unbuffered, because a buffer is stale when a hole is filled.
        self._copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._copy.truncate(self.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the copy, which then is gone."""
        self._copy.close()

    def fileno(self) -> int:
        """Return the descriptor of the copy, which has holes unless `fetch_all` was called."""
        return self._copy.fileno()

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position and return it."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, fewer at the end."""
        end = self.size if size < 0 else min(self._position + size, self.size)
        if end <= self._position:
            return b""
        self._fetch(self._position, end)
        content = os.pread(self.fileno(), end - self._position, self._position)
        self._position = self._end_of_last = end
        return content

    def fetch_all(self) -> None:
        """Fetch what is not here yet."""
        self.expect(0, self.size)
        self._fetch(0, self.size)

    def expect(self, start: int, end: int) -> None:
        """Fetch this span in large requests as soon as something of it is read."""
        self._expected = range(max(0, start), min(end, self.size))

    @contextmanager
    def without_content(self, start: int, end: int) -> Iterator[None]:
        """Read zeros in place of what lies in this span and is not here yet."""
        self._content = range(start, end)
        try:
            yield
        finally:
            self._content = range(0)

    def _fetch(self, start: int, end: int) -> None:
        """Fetch the blocks of a span that are not here."""
        follows = start == self._end_of_last
        block, last = start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        while block <= last:
            if self._here[block] or self._is_content(block):
                block += 1
                continue
            ahead = last
            if self._expected and self._expected.start < end and start < self._expected.stop:
                ahead = max(last, (self._expected.stop - 1) // BLOCK_BYTES)
            elif follows:
                ahead = max(last, block + self._ahead - 1)
                self._ahead = min(2 * self._ahead, MAX_BLOCKS)
            else:
                self._ahead = 1
            stop = block + 1
            while (
                stop <= min(ahead, block + MAX_BLOCKS - 1, len(self._here) - 1)
                and not self._here[stop]
                and not self._is_content(stop)
            ):
                stop += 1
            self._request(block, stop)
            block = stop

    def _is_content(self, block: int) -> bool:
        start = block * BLOCK_BYTES
        return self._content.start <= start and start + BLOCK_BYTES <= self._content.stop

    def _request(self, block: int, stop: int) -> None:
        """Fetch the blocks from `block` to before `stop`."""
        start, end = block * BLOCK_BYTES, min(stop * BLOCK_BYTES, self.size)
        began = time.perf_counter()
        with _as_os_error():
            content = cast(bytes, self._files.cat_file(self._path, start=start, end=end))
        _spend(len(content), began)
        self._on_block()
        if len(content) != end - start:
            raise OSError(
                f"expected {end - start} bytes at {start}, got {len(content)}; the file has changed"
            )
        os.pwrite(self.fileno(), content, start)
        self._here[block:stop] = b"\1" * (stop - block)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn errors of storage, whose libraries have their own, into OSError."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
