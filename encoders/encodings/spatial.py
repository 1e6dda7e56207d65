"""Codebooks that know where on the frame a descriptor is from: its place appended, or a codebook for each level.

Appending places is "Modeling the spatial layout of images beyond spatial pyramids" (Sanchez, Perronnin, de Campos
2012), with the pyramid's cells in place of dense patches. Letters: f frames, T cells of a frame, C channels of a
stored descriptor, P channels after PCA and places, L parts (1, or the levels that count).
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Self

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from encoders.codebooks.pca import Pca, fit_sample_pca, input_width, projected
from encoders.codebooks.sample import FitSample
from encoders.descriptors.pyramid import num_cells
from encoders.encodings.base import CODEBOOK, Encoder, State, header_of
from encoders.settings import UNIT_LENGTH, EncoderSettings, SpatialSettings

CHUNK_FRAMES = 64
"""Frames of a sample to work on at a time."""

SHARED = {
    "pca_components": 0,
    "pca_whiten": False,
    "position_weight": 0.0,
    "levels": (),
    "per_level": False,
}
"""Settings that act before the parts; the parts get them switched off."""


def cell_levels(levels: tuple[int, ...], cells: int) -> Tensor:
    """[T] int64: which of the levels each cell is of; `encoders.descriptors.pyramid`'s order, once for each view.

    Raises:
        ValueError: the pyramid does not have `cells` cells or a multiple of them.
    """
    if not levels or cells % num_cells(levels):
        raise ValueError(
            f"fit section: expected the {num_cells(levels)} cells of the pyramid {list(levels)}, once for each view, "
            f"got {cells}; places and levels are of pyramids alone: set position_weight=0 and per_level=false"
        )
    of_view = torch.arange(len(levels)).repeat_interleave(
        torch.tensor([side**2 for side in levels])
    )
    return of_view.repeat(cells // len(of_view))


def cell_places(levels: tuple[int, ...], cells: int) -> Tensor:
    """[T, 3] float64 in -0.5 to 0.5: x and y of each cell's centre, and its scale.

    Scale is the logarithm of the cell's side, from the smallest of the pyramid to the largest; 0 where all are alike.
    """
    of_cell = cell_levels(levels, cells)
    finest, coarsest = max(levels), min(levels)
    rows = []
    for side in levels:
        scale = (
            math.log(finest / side) / math.log(finest / coarsest) - 0.5
            if finest > coarsest
            else 0.0
        )
        rows += [
            ((k % side + 0.5) / side - 0.5, (k // side + 0.5) / side - 0.5, scale)
            for k in range(side**2)
        ]
    return torch.tensor(rows, dtype=torch.float64).repeat(len(of_cell) // len(rows), 1)


class Spatial(Encoder):
    """Encoders of another kind ("parts"), each fitted on some of a frame's cells. What it calls a descriptor is a whole
    frame, its T descriptors side by side.

    With one part its vector is the vector. With one for each level, the levels' vectors, each normalised by itself,
    stand side by side, and the whole is scaled to norm 1 where each of them is.

    Args:
        parts: fitted encoders of one kind, in the order of `used`.
        levels: sides of the pyramid, of whose cells a frame has `cells`.
        used: the levels whose cells count.
        places: [T, 3], what is appended to each descriptor after `pca`; None is nothing.

    Raises:
        ValueError: neither one part nor one for each level, or levels or cells that are not the pyramid's.
    """

    name = "spatial"
    per_frame = True
    has_attention = True

    def __init__(
        self,
        parts: Sequence[Encoder],
        levels: tuple[int, ...],
        used: tuple[int, ...],
        cells: int,
        places: Tensor | None = None,
        pca: Pca | None = None,
    ) -> None:
        if len(parts) not in (1, len(used)):
            raise ValueError(
                f"spatial: expected one codebook or one for each of {len(used)} levels, got {len(parts)}"
            )
        self.parts, self.cells = tuple(parts), cells
        self.levels, self.used = tuple(levels), tuple(used)
        self.places, self.pca = places, pca
        self._cells_of = _cells_of_parts(self.levels, self.used, cells, per_level=len(parts) > 1)
        appended = 0 if places is None else places.shape[1]
        self.descriptor_dim = cells * input_width(
            pca, parts[0].descriptor_dim - appended, self.name
        )
        self.output_dim = sum(part.output_dim for part in parts)
        own = parts[0].normalisation
        whole = "l2" if own in UNIT_LENGTH else "none"
        self.normalisation = own if len(parts) == 1 else whole

    @classmethod
    def fit(  # type: ignore[override]
        cls,
        sample: FitSample,
        settings: EncoderSettings,
        normalisation: str,
        *,
        kind: type[Encoder],
    ) -> Self:
        """Return the PCA and places of the levels that count, then the codebook of each part, one after the other.

        Raises:
            ValueError: the descriptors are not those of a pyramid, or what the kind's own `fit` raises.
        """
        cells = sample.frames.shape[1]
        used = settings.levels or sample.levels
        index = _cells_of_parts(sample.levels, used, cells, per_level=settings.per_level)
        seen = sample
        if settings.levels and (settings.pca_components or settings.position_weight):
            frames = _prepared(sample.frames, lambda x: x, torch.cat(index))
            seen = replace(sample, frames=frames)
        pca = fit_sample_pca(seen, settings)
        places = None
        if settings.position_weight:
            length = settings.position_weight * _root_mean_square(seen, pca)
            places = cell_places(sample.levels, cells) + (0.5 if kind.non_negative else 0.0)
            places = (places * length).float()
        own = _own(settings)
        state = sample.state or {"parts": [], "fit": None}
        parts = [_loaded(kind, _to_files(saved), own) for saved in state["parts"]]
        for number in range(len(parts), len(index)):
            name = f" of level {used[number]}" if settings.per_level else ""
            done = [_to_tensors(part.files()) for part in parts]
            frames = _prepared(
                sample.frames, partial(_widened, pca=pca, places=places), index[number]
            )
            part = replace(
                sample,
                frames=frames,
                log=_logging(sample.log, name),
                state=state["fit"] if number == len(state["parts"]) else None,
                checkpoint=_checkpointing(sample.checkpoint, done),
            )
            parts.append(kind.fit(part, own, normalisation))
        return cls(parts, sample.levels, used, cells, places, pca)

    def _batch_sums(self, descriptors: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        frames = self._frames(descriptors.unflatten(1, (self.cells, -1)))
        sums = [
            part._batch_sums(
                frames[:, index].flatten(0, 1), [length * len(index) for length in lengths]
            )
            for part, index in self._with_cells()
        ]
        return [torch.stack(of_parts) for of_parts in zip(*sums, strict=True)]

    def _vector(self, sums: Tensor, count: int) -> Tensor:
        if len(self.parts) == 1:
            return self.parts[0]._vector(sums[0], count * len(self._cells_of[0]))
        vectors = [
            part.finalise(State(own, count * len(index)))
            for own, (part, index) in zip(sums, self._with_cells(), strict=True)
        ]
        return torch.cat(vectors).double()

    def attention(self, descriptors: Tensor) -> Tensor:
        """[f, T] of descriptors [f, T, C], in the order of the pyramid; see `FvVae.attention`.

        Cells of different levels, where these have codebooks of their own, compare only roughly. Those of levels that
        do not count have 0.
        """
        frames = self._frames(descriptors)
        attention = frames.new_zeros(frames.shape[:2])
        for part, index in self._with_cells():
            attention[:, index] = part.attention(frames[:, index])
        return attention

    def files(self) -> dict[str, bytes]:
        """As of one encoder: the tensors of part 0 begin with "0.", and so on."""
        files = [part.files() for part in self.parts]
        kind = type(self.parts[0])
        merged = {
            name: safetensors.torch.save(
                _joined([safetensors.torch.load(own[name]) for own in files])
            )
            for name in files[0].keys() - {CODEBOOK}
        }
        # The codebook of a part may be less than the part: an information is in a file of its own.
        bare = self._of([_built(kind, own[CODEBOOK]) for own in files])
        return {CODEBOOK: bare.to_bytes()} | merged

    def with_files(self, files: dict[str, bytes], settings: SpatialSettings) -> Self:
        """These parts, each with its share of the other files."""
        others = {
            name: safetensors.torch.load(data) for name, data in files.items() if name != CODEBOOK
        }
        own = _own(settings)
        return self._of(
            part.with_files(
                {name: safetensors.torch.save(_split(found, k)) for name, found in others.items()},
                own,
            )
            for k, part in enumerate(self.parts)
        )

    def tensors(self) -> dict[str, Tensor]:
        shared = {} if self.places is None else {"places": self.places}
        shared |= self.pca.tensors() if self.pca else {}
        return shared | _joined([part.tensors() for part in self.parts])

    def settings(self) -> dict[str, object]:
        return {
            "kind": self.parts[0].name,
            "levels": list(self.levels),
            "used": list(self.used),
            "cells": self.cells,
            "parts": [part.settings() for part in self.parts],
        }

    @classmethod
    def build(
        cls,
        tensors: dict[str, Tensor],
        settings: dict[str, object],
        kind: type[Encoder] | None = None,
    ) -> Self:
        """Build the encoder again; `kind` is the class that `settings["kind"]` names in the registry."""
        if kind is None:
            raise TypeError("Spatial.build: expected the kind of its parts, got none")
        parts = [kind.build(_split(tensors, k), own) for k, own in enumerate(settings["parts"])]
        shared = {key: value for key, value in tensors.items() if not key[0].isdigit()}
        levels, used = tuple(settings["levels"]), tuple(settings["used"])
        places = shared.get("places")
        return cls(parts, levels, used, settings["cells"], places, Pca.from_tensors(shared))

    def _of(self, parts: Sequence[Encoder]) -> Self:
        return type(self)(list(parts), self.levels, self.used, self.cells, self.places, self.pca)

    def _with_cells(self) -> list[tuple[Encoder, Tensor]]:
        return list(zip(self.parts, self._cells_of, strict=True))

    def _frames(self, frames: Tensor) -> Tensor:
        """[f, T, P] of stored frames [f, T, C], in the dtype that is computed in."""
        dtype = torch.promote_types(frames.dtype, torch.float32)
        return _widened(frames.to(dtype), self.pca, self.places)


def _own(settings: EncoderSettings) -> EncoderSettings:
    """Return the settings of one part."""
    names = {field.name for field in fields(settings)}
    return replace(settings, **{name: SHARED[name] for name in SHARED.keys() & names})


def _cells_of_parts(
    levels: tuple[int, ...], used: tuple[int, ...], cells: int, *, per_level: bool
) -> list[Tensor]:
    """Return the places in a frame of the cells of each part.

    Raises:
        ValueError: a level that the pyramid does not have, or cells that are not the pyramid's.
    """
    of_cell = cell_levels(levels, cells)
    if not set(used) <= set(levels):
        raise ValueError(
            f"levels: expected some of the pyramid's levels {list(levels)}, got {list(used)}"
        )
    numbers = torch.tensor([levels.index(side) for side in used])
    if not per_level:
        return [torch.isin(of_cell, numbers).nonzero().flatten()]
    return [(of_cell == number).nonzero().flatten() for number in numbers]


def _root_mean_square(sample: FitSample, pca: Pca | None) -> float:
    """Of the lengths of all descriptors, after the PCA."""
    total = torch.zeros(2, dtype=torch.float64)
    for chunk in sample.frames.split(CHUNK_FRAMES):
        x = _widened(chunk.float(), pca, None).double()
        total += torch.stack([x.new_tensor(x[..., 0].numel()), x.square().sum()]).cpu()
    count, squares = sample.all_reduce(total).tolist()
    return math.sqrt(squares / max(count, 1))


def _widened(frames: Tensor, pca: Pca | None, places: Tensor | None) -> Tensor:
    """[.., T, P] of frames [.., T, C] in floating point: after the PCA, with their places behind."""
    x = projected(frames, pca)
    if places is None:
        return x
    return torch.cat([x, places.to(x).expand(*x.shape[:-1], -1)], -1)


def _prepared(frames: Tensor, widen: Callable[[Tensor], Tensor], cells: Tensor) -> Tensor:
    """These cells of a sample's frames, widened, in its dtype; on the CPU in a mapped file, as the sample may be."""
    shape = (len(frames), len(cells), widen(frames[:1].float()).shape[2])
    is_mapped = frames.device.type == "cpu" and 0 not in shape
    prepared = _mapped(shape, frames.dtype) if is_mapped else frames.new_empty(shape)
    for start in range(0, len(frames), CHUNK_FRAMES):
        rows = slice(start, start + CHUNK_FRAMES)
        prepared[rows] = widen(frames[rows].float())[:, cells]
    return prepared


def _mapped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory that is a file without a name."""
    with tempfile.TemporaryFile() as file:
        kind = torch.empty(0, dtype=dtype).numpy().dtype
        return torch.from_numpy(np.memmap(file, kind, "w+", shape=shape))


def _logging(
    log: Callable[[str, int, float], None], name: str
) -> Callable[[str, int, float], None]:
    return lambda quantity, step, value: log(f"{quantity}{name}", step, value)


def _checkpointing(
    checkpoint: Callable[[Callable[[], dict]], None], done: list[dict[str, Tensor]]
) -> Callable[[Callable[[], dict]], None]:
    """Offer the state of a part's fit, with the parts that are finished."""
    return lambda state: checkpoint(lambda: {"parts": done, "fit": state()})


def _to_tensors(files: dict[str, bytes]) -> dict[str, Tensor]:
    """Files as a checkpoint may hold them."""
    return {
        name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in files.items()
    }


def _to_files(saved: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: data.numpy().tobytes() for name, data in saved.items()}


def _built(kind: type[Encoder], data: bytes) -> Encoder:
    return kind.build(safetensors.torch.load(data), header_of(data)["settings"])


def _loaded(kind: type[Encoder], files: dict[str, bytes], settings: SpatialSettings) -> Encoder:
    return _built(kind, files[CODEBOOK]).with_files(files, settings)


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{k}.{name}": value for k, own in enumerate(parts) for name, value in own.items()}


def _split(joined: dict[str, Tensor], part: int) -> dict[str, Tensor]:
    start = f"{part}."
    return {
        name.removeprefix(start): value for name, value in joined.items() if name.startswith(start)
    }
