"""safetensors files without torch: the header by hand, the values one piece at a time."""

import json
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from pipelines.doctor.vectors import is_not_finite
from pipelines.storage.store import Store

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_PIECE_BYTES = 16 * 2**20


def read_tensors(
    store: Store, name: str, num_bytes: int, header_only: bool
) -> Iterator[tuple[str, int | None, bool]]:
    """Yield name, width (None where it is no matrix) and `is_finite` of each tensor of a file.

    Args:
        header_only: read no values, and take them for finite.

    Raises:
        StorageError: the storage does not answer.
        OSError, ValueError, KeyError, TypeError: the file is damaged.
    """
    with store.open(name) as file:
        entries, start = _header(file, num_bytes)
        for key, entry in entries.items():
            width = entry["shape"][1] if len(entry["shape"]) == 2 else None
            yield key, width, header_only or _is_finite(file, start, entry)


def _header(file: BinaryIO, num_bytes: int) -> tuple[dict[str, dict], int]:
    """Return the tensors' entries, and where their bytes begin.

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


def _is_finite(file: BinaryIO, start: int, entry: dict) -> bool:
    kind = _DTYPES.get(entry["dtype"])
    if kind is None:
        return True
    first, last = entry["data_offsets"]
    file.seek(start + first)
    pieces = (min(_PIECE_BYTES, last - place) for place in range(first, last, _PIECE_BYTES))
    return not any(is_not_finite(np.frombuffer(file.read(n), kind)).any() for n in pieces)
