"""Codebooks that use a descriptor's position on the frame: appended, or one codebook per level.

Appending positions is "Modeling the spatial layout of images beyond spatial pyramids" (Sanchez,
Perronnin, de Campos 2012), with the pyramid's cells in place of dense patches. Letters: f frames, T
cells of a frame, C channels of a stored descriptor, P channels after PCA and positions, L parts (1,
or the levels that are used).
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from encoders.codebooks.pca import Pca, fit_sample_pca, input_width, projected
from encoders.codebooks.sample import FitSample
from encoders.descriptors.pyramid import num_cells
from encoders.encodings.base import Encoder, State, header_of
from encoders.settings import CODEBOOK, UNIT_LENGTH, EncoderSettings
from encoders.tensor_files import load_tensors, save_tensors

POSITIONS = "places"
"""Name of the positions' tensor in codebook files."""

CHUNK_FRAMES = 64
"""Frames of a sample per chunk."""

SHARED: dict[str, Any] = {
    "pca_components": 0,
    "pca_whiten": False,
    "position_weight": 0.0,
    "levels": (),
    "per_level": False,
}
"""Settings that act before the parts, with the values that switch them off for the parts."""


def cell_levels(levels: tuple[int, ...], cells: int) -> Tensor:
    """Return the index [T] int64 of each cell's level.

    Cells are in the order of `encoders.descriptors.pyramid`, once for each view.

    Raises:
        ValueError: the pyramid does not have `cells` cells or a multiple of them.
    """
    if not levels or cells % num_cells(levels):
        raise ValueError(
            f"fit section: expected the {num_cells(levels)} cells of the pyramid {list(levels)}, "
            f"once for each view, got {cells}; places and levels are of pyramids alone: set "
            "position_weight=0 and per_level=false"
        )
    of_view = torch.arange(len(levels)).repeat_interleave(
        torch.tensor([side**2 for side in levels])
    )
    return of_view.repeat(cells // len(of_view))


def cell_positions(levels: tuple[int, ...], cells: int) -> Tensor:
    """Return x and y of each cell's centre, and its scale: [T, 3] float64 in -0.5 to 0.5.

    Scale is the logarithm of the cell's side, from the smallest of the pyramid to the largest; 0
    if all are equal.
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
    """Encoders of another kind ("parts"), each fitted on some of a frame's cells.

    Its descriptor is a whole frame, the T descriptors side by side. With one part, the vector is
    that of the part. With one for each level, the levels' vectors, each normalised by itself, stand
    side by side, and the whole is scaled to norm 1 if each of them is.

    Args:
        parts: fitted encoders of one kind, in the order of `used`.
        levels: sides of the pyramid's levels.
        used: the levels whose cells are used.
        cells: T, the number of cells of a frame.
        positions: [T, 3], appended to the descriptors after `pca`; None appends nothing.

    Raises:
        ValueError: there is neither one part nor one for each level, or levels or cells are not
            those of the pyramid.
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
        positions: Tensor | None = None,
        pca: Pca | None = None,
    ) -> None:
        if len(parts) not in (1, len(used)):
            raise ValueError(
                f"spatial: expected one codebook or one for each of {len(used)} levels, got "
                f"{len(parts)}"
            )
        self.parts, self.cells = tuple(parts), cells
        self.levels, self.used = tuple(levels), tuple(used)
        self.positions, self.pca = positions, pca
        self._cells_of = _cells_of_parts(self.levels, self.used, cells, per_level=len(parts) > 1)
        appended = 0 if positions is None else positions.shape[1]
        self.descriptor_dim = cells * input_width(
            pca, parts[0].descriptor_dim - appended, self.name
        )
        self.output_dim = sum(part.output_dim for part in parts)
        of_parts = parts[0].normalisation
        whole = "l2" if of_parts in UNIT_LENGTH else "none"
        self.normalisation = of_parts if len(parts) == 1 else whole

    @classmethod
    def fit(
        cls,
        sample: FitSample,
        settings: EncoderSettings,
        normalisation: str,
        *,
        kind: type[Encoder],
    ) -> Self:
        """Fit the PCA of the used levels, then the codebook of each part.

        Raises:
            ValueError: the descriptors are not those of a pyramid, or see the kind's own `fit`.
        """
        cells = sample.frames.shape[1]
        used = settings.levels or sample.levels
        index = _cells_of_parts(sample.levels, used, cells, per_level=settings.per_level)
        used_sample = sample
        if settings.levels and (settings.pca_components or settings.position_weight):
            used_sample = replace(sample, frames=some_cells(sample.frames, torch.cat(index)))
        pca = fit_sample_pca(used_sample, settings)
        positions = None
        if settings.position_weight:
            length = settings.position_weight * _root_mean_square(used_sample, pca)
            positions = cell_positions(sample.levels, cells) + (0.5 if kind.non_negative else 0.0)
            positions = (positions * length).float()
        part_settings = _part_settings(settings)
        state = sample.state or {"parts": [], "fit": None}
        parts = [_loaded(kind, _to_files(saved), part_settings) for saved in state["parts"]]
        for number in range(len(parts), len(index)):
            name = f" of level {used[number]}" if settings.per_level else ""
            fitted = [_to_tensors(part.files()) for part in parts]
            frames = _prepared(
                sample.frames, partial(_widened, pca=pca, positions=positions), index[number]
            )
            part = replace(
                sample,
                frames=frames,
                log=_logging(sample.log, name),
                state=state["fit"] if number == len(state["parts"]) else None,
                checkpoint=_checkpointing(sample.checkpoint, fitted),
            )
            parts.append(kind.fit(part, part_settings, normalisation))
        return cls(parts, sample.levels, used, cells, positions, pca)

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
            part.finalise(State(total, count * len(index)))
            for total, (part, index) in zip(sums, self._with_cells(), strict=True)
        ]
        return torch.cat(vectors).double()

    def attention(self, descriptors: Tensor) -> Tensor:
        """Return attention [f, T] of descriptors [f, T, C], see `FvVae.attention`.

        Cells of levels with different codebooks compare only roughly. Cells of levels that are not
        used have 0.
        """
        frames = self._frames(descriptors)
        attention = frames.new_zeros(frames.shape[:2])
        for part, index in self._with_cells():
            attention[:, index] = part.attention(frames[:, index])
        return attention

    def files(self) -> dict[str, bytes]:
        """Return files like those of one encoder: names of part 0's tensors begin with "0."."""
        files = [part.files() for part in self.parts]
        kind = type(self.parts[0])
        merged = {
            name: save_tensors(
                _joined([load_tensors(part_files[name]) for part_files in files]), "parts", {}
            )
            for name in files[0].keys() - {CODEBOOK}
        }
        # A part is more than its codebook: the Fisher information has another file.
        bare = self._with_parts([_built(kind, part_files[CODEBOOK]) for part_files in files])
        return {CODEBOOK: bare.to_bytes()} | merged

    def with_files(self, files: dict[str, bytes], settings: EncoderSettings) -> Self:
        """Return these parts, each with its share of the other files."""
        joined = {name: load_tensors(data) for name, data in files.items() if name != CODEBOOK}
        part_settings = _part_settings(settings)
        return self._with_parts(
            [
                part.with_files(
                    {
                        name: save_tensors(_split(tensors, k), "part", {})
                        for name, tensors in joined.items()
                    },
                    part_settings,
                )
                for k, part in enumerate(self.parts)
            ]
        )

    def tensors(self) -> dict[str, Tensor]:
        shared = {} if self.positions is None else {POSITIONS: self.positions}
        shared |= self.pca.tensors() if self.pca else {}
        return shared | _joined([part.tensors() for part in self.parts])

    def settings(self) -> dict[str, Any]:
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
        settings: dict[str, Any],
        kind: type[Encoder] | None = None,
    ) -> Self:
        """Build the encoder; `kind` is the class that `settings["kind"]` names in the registry."""
        if kind is None:
            raise TypeError("Spatial.build: expected the kind of its parts, got none")
        parts = [
            kind.build(_split(tensors, k), part_settings)
            for k, part_settings in enumerate(settings["parts"])
        ]
        shared = {key: value for key, value in tensors.items() if not key[0].isdigit()}
        levels, used = tuple(settings["levels"]), tuple(settings["used"])
        positions = shared.get(POSITIONS)
        return cls(parts, levels, used, settings["cells"], positions, Pca.from_tensors(shared))

    def rebuilt(self, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        """Build an encoder with parts of the same kind from other tensors and settings."""
        return self.build(tensors, settings, type(self.parts[0]))

    def _with_parts(self, parts: Sequence[Encoder]) -> Self:
        return type(self)(parts, self.levels, self.used, self.cells, self.positions, self.pca)

    def _with_cells(self) -> list[tuple[Encoder, Tensor]]:
        return list(zip(self.parts, self._cells_of, strict=True))

    def _frames(self, frames: Tensor) -> Tensor:
        """Return [f, T, P] of stored frames [f, T, C], in the dtype of the computation."""
        dtype = torch.promote_types(frames.dtype, torch.float32)
        return _widened(frames.to(dtype), self.pca, self.positions)


def _part_settings(settings: EncoderSettings) -> EncoderSettings:
    """Return the settings of one part."""
    names = {field.name for field in fields(settings)}
    return replace(settings, **{name: SHARED[name] for name in SHARED.keys() & names})


def _cells_of_parts(
    levels: tuple[int, ...], used: tuple[int, ...], cells: int, *, per_level: bool
) -> list[Tensor]:
    """Return the indices of each part's cells in a frame.

    Raises:
        ValueError: levels or cells are not those of the pyramid.
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
    """Return the root mean square length of all descriptors, after the PCA."""
    total = torch.zeros(2, dtype=torch.float64)
    for chunk in sample.frames.split(CHUNK_FRAMES):
        x = _widened(chunk.float(), pca, None).double()
        total += torch.stack([x.new_tensor(x[..., 0].numel()), x.square().sum()]).cpu()
    count, squares = sample.all_reduce(total).tolist()
    return math.sqrt(squares / max(count, 1))


def _widened(frames: Tensor, pca: Pca | None, positions: Tensor | None) -> Tensor:
    """Return [.., T, P] of frames [.., T, C]: their PCA, followed by their positions."""
    x = projected(frames, pca)
    if positions is None:
        return x
    return torch.cat([x, positions.to(x).expand(*x.shape[:-1], -1)], -1)


def _prepared(frames: Tensor, widen: Callable[[Tensor], Tensor], cells: Tensor) -> Tensor:
    """Return some cells of a sample's frames, widened, in its dtype.

    On the CPU they are in a mapped file, as the sample may be.
    """
    shape = (len(frames), len(cells), widen(frames[:1].float()).shape[2])
    is_mapped = frames.device.type == "cpu" and 0 not in shape
    prepared = _mapped(shape, frames.dtype) if is_mapped else frames.new_empty(shape)
    for start in range(0, len(frames), CHUNK_FRAMES):
        rows = slice(start, start + CHUNK_FRAMES)
        prepared[rows] = widen(frames[rows].float())[:, cells]
    return prepared


def some_cells(frames: Tensor, cells: Tensor) -> Tensor:
    """Return some cells of a sample's frames, as `_prepared` keeps them."""
    return _prepared(frames, lambda x: x, cells)


def _mapped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return memory that is a file without a name."""
    with tempfile.TemporaryFile() as file:
        kind = torch.empty(0, dtype=dtype).numpy().dtype
        return torch.from_numpy(np.memmap(file, kind, "w+", shape=shape))


def _logging(
    log: Callable[[str, int, float], None], name: str
) -> Callable[[str, int, float], None]:
    return lambda quantity, step, value: log(f"{quantity}{name}", step, value)


def _checkpointing(
    checkpoint: Callable[[Callable[[], dict]], None], fitted: list[dict[str, Tensor]]
) -> Callable[[Callable[[], dict]], None]:
    """Return a function that offers the state of a part's fit, with the fitted parts."""
    return lambda state: checkpoint(lambda: {"parts": fitted, "fit": state()})


def _to_tensors(files: dict[str, bytes]) -> dict[str, Tensor]:
    """Return files as tensors, for a checkpoint."""
    return {
        name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in files.items()
    }


def _to_files(saved: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: data.numpy().tobytes() for name, data in saved.items()}


def _built(kind: type[Encoder], data: bytes) -> Encoder:
    return kind.build(load_tensors(data), header_of(data)["settings"])


def _loaded(kind: type[Encoder], files: dict[str, bytes], settings: EncoderSettings) -> Encoder:
    return _built(kind, files[CODEBOOK]).with_files(files, settings)


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{k}.{name}": value for k, part in enumerate(parts) for name, value in part.items()}


def _split(joined: dict[str, Tensor], part: int) -> dict[str, Tensor]:
    start = f"{part}."
    return {
        name.removeprefix(start): value for name, value in joined.items() if name.startswith(start)
    }
