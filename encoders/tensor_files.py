"""safetensors files with JSON beside the tensors, sealed: codebooks, classifiers, weights."""

import json

import safetensors.torch
import torch
from torch import Tensor

from encoders.seal import BLANK, ENTRY, DamagedError, is_whole, seal


def save_tensors(tensors: dict[str, Tensor], entry: str, header: dict[str, object]) -> bytes:
    """Return a sealed safetensors file with `header` as JSON in an entry of its metadata.

    Equal contents give equal bytes.
    """
    contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
    # safetensors stores no tensor-free file.
    data = safetensors.torch.save(contiguous or {"_": torch.zeros(1)})
    return sealed(data, **{entry: json.dumps(header, sort_keys=True)})


def sealed(data: bytes, **entries: str) -> bytes:
    """Return a safetensors file with more entries in its metadata, and sealed.

    safetensors itself would write several entries in any order.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = header.get("__metadata__", {}) | entries | {ENTRY: BLANK}
    text = json.dumps(header, separators=(",", ":")).encode()
    # Tensors begin at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    return seal(len(text).to_bytes(8, "little") + text + data[8 + size :])


def load_tensors(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        DamagedError: it is not as it was sealed.
    """
    if is_whole(data) is False:
        raise DamagedError(
            "safetensors file: expected the bytes that were written, got others; "
            "`python -m jobs.doctor --out OUT` names the file, and the job's command makes it again"
        )
    return safetensors.torch.load(data)


def metadata_of(data: bytes) -> dict[str, str]:
    """Return the metadata {entry: JSON} of a safetensors file; empty if it has none."""
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    metadata.pop(ENTRY, None)
    return metadata
