"""Name -> encoder class. A new encoder is one file and one line here."""

import json

import safetensors.torch

from encoders.base import Encoder
from encoders.bilinear import Bilinear
from encoders.fisher import GmmFisher
from encoders.fv_vae import FvVae
from encoders.pooling import Average, Concatenation, GlobalActivation
from encoders.vlad import Vlad

ENCODERS: dict[str, type[Encoder]] = {
    "ave": Average,
    "bilinear": Bilinear,
    "concat": Concatenation,
    "fv_vae": FvVae,
    "ga": GlobalActivation,
    "gmm_fv": GmmFisher,
    "vlad": Vlad,
}


def encoder_from_bytes(data: bytes) -> Encoder:
    """The encoder that `Encoder.to_bytes` wrote.

    Raises:
        ValueError: the file names an encoder that is not in `ENCODERS`, or none.
    """
    header_size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + header_size]).get("__metadata__", {})
    header = json.loads(metadata.get("encoder", "{}"))
    name = header.get("name")
    if name not in ENCODERS:
        raise ValueError(
            f"codebook file: expected an encoder out of {sorted(ENCODERS)}, got {name!r}; "
            "was the file written by this version?"
        )
    return ENCODERS[name].build(safetensors.torch.load(data), header["settings"])
