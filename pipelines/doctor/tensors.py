"""safetensors files without torch: the header by hand, the values one piece at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from pipelines.doctor.gather import is_not_finite
from pipelines.storage.retries import StorageError
from pipelines.storage.store import Store

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Tensors:
    """A safetensors file: shapes by name, and what is wrong with the file or its values."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    error: str = ""
    not_finite: tuple[str, ...] = ()


def read_tensors(store: Store, name: str, num_bytes: int, header_only: bool) -> Tensors:
    """What a file holds, read in pieces.

    Raises:
        StorageError: the storage does not answer.
    """
    try:
        with store.open(name) as file:
            entries, start = _header(file, num_bytes)
            shapes = {key: tuple(entry["shape"]) for key, entry in entries.items()}
            odd = () if header_only else tuple(_not_finite(file, start, entries))
    except StorageError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Tensors(name, {}, f"{type(error).__name__}: {error}".splitlines()[0][:200])
    return Tensors(name, shapes, "", odd)


def _header(file: BinaryIO, num_bytes: int) -> tuple[dict[str, dict], int]:
    """The tensors' entries, and where their bytes begin.

    Raises:
        ValueError: the file does not hold what its header says.
    """
    size = int.from_bytes(file.read(8), "little")
    if not 2 <= size <= num_bytes - 8:
        raise ValueError(f"expected a header of at most {num_bytes - 8} bytes, got {size}")
    entries = json.loads(file.read(size))
    entries.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if 8 + size + end != num_bytes:
        raise ValueError(f"expected {8 + size + end} bytes by its header, got {num_bytes}")
    return entries, 8 + size


def _not_finite(file: BinaryIO, start: int, entries: dict[str, dict]) -> Iterator[str]:
    for key, entry in entries.items():
        kind = _DTYPES.get(entry["dtype"])
        if kind is None:
            continue
        first, last = entry["data_offsets"]
        file.seek(start + first)
        for place in range(first, last, _CHUNK_BYTES):
            data = file.read(min(_CHUNK_BYTES, last - place))
            if is_not_finite(np.frombuffer(data, kind)).any():
                yield key
                break
