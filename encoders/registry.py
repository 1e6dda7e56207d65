"""The registry of encoders: name -> class. A new encoder is one file and one line here.

No torch until a class is asked for: names are checked with the settings.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING

from encoders.settings import EncoderSettings

if TYPE_CHECKING:
    from encoders.codebooks.sample import FitSample
    from encoders.encodings.base import Encoder


class Registry(MutableMapping[str, "type[Encoder]"]):
    """Mapping of names to classes; a class given as "module.Class" is imported on first use."""

    def __init__(self, classes: dict[str, str]) -> None:
        self._classes: dict[str, str | type[Encoder]] = dict(classes)

    def __getitem__(self, name: str) -> type[Encoder]:
        kind = self._classes[name]
        if isinstance(kind, str):
            module, _, attribute = kind.rpartition(".")
            kind = self._classes[name] = getattr(importlib.import_module(module), attribute)
        return kind

    def __setitem__(self, name: str, kind: str | type[Encoder]) -> None:
        self._classes[name] = kind

    def __delitem__(self, name: str) -> None:
        del self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)


ENCODERS = Registry(
    {
        "ave": "encoders.encodings.pooling.Average",
        "bilinear": "encoders.encodings.bilinear.Bilinear",
        "concat": "encoders.encodings.pooling.Concatenation",
        "fv_vae": "encoders.fv_vae.encoder.FvVae",
        "ga": "encoders.encodings.pooling.GlobalActivation",
        "gmm_fv": "encoders.encodings.gmm_fisher.GmmFisher",
        "vlad": "encoders.encodings.vlad.Vlad",
    }
)


def fit_encoder(
    name: str, sample: FitSample, settings: EncoderSettings, normalisation: str
) -> Encoder:
    """Fit the named encoder with its settings, on positions and pyramid levels, or apart for sizes
    of the picture, if they say so.

    Raises:
        ValueError: see `Encoder.fit`.
    """
    kind = ENCODERS[name]
    if settings.is_spatial:
        from encoders.encodings.spatial import Spatial

        return Spatial.fit(sample, settings, normalisation, kind=kind)
    if settings.is_scaled:
        from encoders.encodings.per_scale import PerScale

        return PerScale.fit(sample, settings, normalisation, kind=kind)
    return kind.fit(sample, settings, normalisation)


def encoder_from_bytes(data: bytes) -> Encoder:
    """Load the encoder that `Encoder.to_bytes` wrote.

    Raises:
        ValueError: the file names an encoder that is not in `ENCODERS`, or none.
    """
    from encoders.encodings.base import header_of
    from encoders.encodings.per_scale import PerScale
    from encoders.encodings.spatial import Spatial
    from encoders.tensor_files import load_tensors

    tensors, header = load_tensors(data), header_of(data)
    name = header.get("name")
    wrappers = {wrapper.name: wrapper for wrapper in (Spatial, PerScale)}
    if name not in (*ENCODERS, *wrappers):
        raise ValueError(
            f"codebook file: expected an encoder out of {sorted(ENCODERS)}, got {name!r}; "
            "was the file written by this version?"
        )
    settings = header["settings"]
    if name in wrappers:
        # The registry imports them, so they cannot look their parts up there.
        return wrappers[name].build(tensors, settings, ENCODERS[settings["kind"]])
    return ENCODERS[name].build(tensors, settings)
