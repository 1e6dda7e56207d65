"""safetensors files with JSON beside the tensors: codebooks, classifiers, compressions."""

import json

import safetensors.torch
import torch
from torch import Tensor


def save_tensors(tensors: dict[str, Tensor], entry: str, header: dict[str, object]) -> bytes:
    """Return a safetensors file whose one metadata entry is `header` as JSON.

    Equal contents give equal bytes: more metadata entries would be written in any order.
    """
    contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
    # safetensors stores no tensor-free file.
    return safetensors.torch.save(
        contiguous or {"_": torch.zeros(1)}, metadata={entry: json.dumps(header, sort_keys=True)}
    )


def metadata_of(data: bytes) -> dict[str, str]:
    """Return the metadata {entry: JSON} of a safetensors file; empty if it has none."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]).get("__metadata__", {})
