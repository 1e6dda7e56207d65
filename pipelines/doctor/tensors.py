"""safetensors files without torch."""

from collections.abc import Iterator

import numpy as np

from pipelines.doctor.vectors import is_not_finite
from pipelines.ledger.marks import tensor_entries

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def tensors_in(data: bytes) -> Iterator[tuple[str, int | None, bool]]:
    """Yield name, width (None where it is no matrix) and `is_finite` of each tensor of a file.

    Raises:
        ValueError, KeyError, TypeError: the file is damaged.
    """
    entries, start = tensor_entries(data)
    for key, entry in entries.items():
        width = entry["shape"][1] if len(entry["shape"]) == 2 else None
        first, last = entry["data_offsets"]
        kind = _DTYPES.get(entry["dtype"])
        values = np.frombuffer(data[start + first : start + last], kind) if kind else np.zeros(0)
        yield key, width, not is_not_finite(values).any()
