"""Name -> encoder class. A new encoder is one file and one line here."""

import safetensors.torch

from encoders.codebooks.sample import FitSample
from encoders.encodings.base import Encoder, header_of
from encoders.encodings.bilinear import Bilinear
from encoders.encodings.gmm_fisher import GmmFisher
from encoders.encodings.pooling import Average, Concatenation, GlobalActivation
from encoders.encodings.spatial import Spatial
from encoders.encodings.vlad import Vlad
from encoders.fv_vae.encoder import FvVae

ENCODERS: dict[str, type[Encoder]] = {
    "ave": Average,
    "bilinear": Bilinear,
    "concat": Concatenation,
    "fv_vae": FvVae,
    "ga": GlobalActivation,
    "gmm_fv": GmmFisher,
    "vlad": Vlad,
}


def fit_encoder(name: str, sample: FitSample, settings: object, normalisation: str) -> Encoder:
    """The named encoder fitted as its settings want it, with places and levels where they say so.

    Raises:
        ValueError: what `Encoder.fit` raises.
    """
    kind = ENCODERS[name]
    if getattr(settings, "is_spatial", False):
        return Spatial.fit(sample, settings, normalisation, kind=kind)
    return kind.fit(sample, settings, normalisation)


def encoder_from_bytes(data: bytes) -> Encoder:
    """The encoder that `Encoder.to_bytes` wrote.

    Raises:
        ValueError: the file names an encoder that is not in `ENCODERS`, or none.
    """
    header = header_of(data)
    name = header.get("name")
    kinds = ENCODERS | {Spatial.name: Spatial}
    if name not in kinds:
        raise ValueError(
            f"codebook file: expected an encoder out of {sorted(ENCODERS)}, got {name!r}; "
            "was the file written by this version?"
        )
    tensors, settings = safetensors.torch.load(data), header["settings"]
    if name == Spatial.name:
        # The registry imports Spatial, which therefore cannot look its parts up there.
        return Spatial.build(tensors, settings, ENCODERS[settings["kind"]])
    return kinds[name].build(tensors, settings)
