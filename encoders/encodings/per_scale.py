"""One vector of pictures that are described at several sizes (FK 2.3 and 4.4; METHODS 3.2).

With G_s the encoding of the descriptors of scale s by one codebook, without a last normalisation:

    nfk   the encoding of the descriptors of all scales alike (FK Eq. 2)
    csf   G_s / |G_s| of all scales, concatenated (FK Table 2)
    mpp   the mean over scales of G_s / |G_s|, multi-scale pyramid pooling (FK Eq. 1)

each followed by the last normalisation (FK: power and L2). With regions, the same of the whole
picture, its top, middle and bottom, concatenated and L2-normalised. Decision: the three are thirds
of the height, and a position belongs to the third that its centre is in, which is never on a
border.

Letters: f frames, T descriptors of a frame at all scales, C channels, S scales, B bands (1, or 3
with regions), D an encoder's length.
"""

from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import reduce
from operator import add
from typing import Any, Self

import torch
from torch import Tensor

from encoders.codebooks.sample import FitSample
from encoders.encodings.base import Encoder, State, header_of
from encoders.encodings.normalise import NORMALISATIONS, l2
from encoders.encodings.spatial import some_cells
from encoders.settings import CODEBOOK, UNIT_LENGTH, EncoderSettings
from encoders.stream_specs import Scale
from encoders.tensor_files import load_tensors

POOLINGS = ("nfk", "csf", "mpp")

NUM_BANDS = 3
"""Top, middle and bottom."""


class PerScale(Encoder):
    """Sums of an encoder of another kind ("part"), apart for each scale, pooled at the end.

    Its descriptor is a whole frame, the T descriptors side by side. A state is [S, B, ...]: so
    states of parts of a video add up scale by scale, and what is not linear comes last.

    Args:
        part: a fitted encoder, whose own normalisation is `none`.
        scales: of the stream, smallest first.
        pooling: nfk, csf or mpp.
        sides: the sides in px of the scales that are read; none given: all.
        regions: pool top, middle and bottom too.
        normalisation: the last one, of each region where there are some.

    Raises:
        ValueError: there is no such pooling, no such scale, or there are no positions for regions.
    """

    name = "per_scale"
    per_frame = True

    def __init__(
        self,
        part: Encoder,
        scales: Sequence[Scale],
        pooling: str,
        *,
        sides: Sequence[int] = (),
        regions: bool = False,
        normalisation: str = "none",
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"scales: expected one of {POOLINGS}, got {pooling!r}")
        self.part, self.scales, self.pooling = part, tuple(scales), pooling
        self.sides, self.regions, self.of_region = tuple(sides), regions, normalisation
        used = used_scales(scales, sides)
        self._spans = [
            _bands(scale, first) if regions else [slice(first, first + scale.rows)]
            for scale, first in used
        ]
        self.cells = sum(scale.rows for scale in scales)
        self.descriptor_dim = self.cells * part.descriptor_dim
        self.output_dim = part.output_dim * (len(used) if pooling == "csf" else 1)
        self.output_dim *= 1 + NUM_BANDS if regions else 1
        whole = "l2" if normalisation in UNIT_LENGTH else "none"
        self.normalisation = whole if regions else normalisation

    @classmethod
    def fit(
        cls,
        sample: FitSample,
        settings: EncoderSettings,
        normalisation: str,
        *,
        kind: type[Encoder],
    ) -> Self:
        """Fit one codebook to the descriptors of all scales that are read.

        Raises:
            ValueError: see the constructor, and the kind's own `fit`.
        """
        own = replace(sample, frames=read_rows(sample.frames, sample.scales, settings.sides))
        part = kind.fit(own, settings, "none")
        return cls(
            part,
            sample.scales,
            settings.scales or "nfk",
            sides=settings.sides,
            regions=settings.regions,
            normalisation=normalisation,
        )

    def _batch_sums(self, descriptors: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        frames = descriptors.unflatten(1, (self.cells, -1))
        sums = [self._span_sums(frames, span, lengths) for bands in self._spans for span in bands]
        shape = (len(self._spans), len(self._spans[0]))
        return [torch.stack(own).unflatten(0, shape) for own in zip(*sums, strict=True)]

    def _span_sums(self, frames: Tensor, span: slice, lengths: Sequence[int]) -> list[Tensor]:
        """Return the sums of some rows of each frame, for each video."""
        rows = span.stop - span.start
        own = frames[:, span].flatten(0, 1)
        return self.part._batch_sums(own, [length * rows for length in lengths])

    def _vector(self, sums: Tensor, count: int) -> Tensor:
        states = [
            [State(own, count * (span.stop - span.start)) for own, span in zip(*pair, strict=True)]
            for pair in zip(sums, self._spans, strict=True)
        ]
        whole = self._pooled([reduce(add, bands) for bands in states])
        if not self.regions:
            return whole
        parts = [whole, *(self._pooled(list(band)) for band in zip(*states, strict=True))]
        return torch.cat([NORMALISATIONS[self.of_region](part) for part in parts])

    def _pooled(self, states: list[State]) -> Tensor:
        if self.pooling == "nfk":
            return self._gradient(reduce(add, states))
        vectors = l2(torch.stack([self._gradient(state) for state in states]))
        return vectors.flatten() if self.pooling == "csf" else vectors.mean(0)

    def _gradient(self, state: State) -> Tensor:
        """Return the part's vector [D] in float64, without normalisation; zeros of no row."""
        if not state.count:
            return state.sums.new_zeros(self.part.output_dim)
        return self.part._vector(*state)

    @property
    def core(self) -> Encoder:
        return self.part

    def learned_rows(self, frames: Tensor) -> Tensor:
        return read_rows(frames, self.scales, self.sides).flatten(0, 1)

    def covers(self, side_px: int) -> bool:
        """Return whether the scale of this side is read."""
        return not self.sides or side_px in self.sides

    def encode_rows(self, x: Tensor, side_px: int, first: int) -> Tensor:
        """Return vectors [n, D'] as of n pictures that have but one of the rows x [n, C] each.

        Args:
            first: the place of the first of them in the map of the scale of this side.
        """
        used = used_scales(self.scales, self.sides)
        place, scale = next((p, s) for p, (s, _) in enumerate(used) if s.side_px == side_px)
        vectors = self.part.encode_batch(x, [1] * len(x)).double()
        if self.pooling != "nfk":
            vectors = l2(vectors)
        if self.pooling == "csf":
            side_by_side = vectors.new_zeros(len(x), len(used), vectors.shape[1])
            side_by_side[:, place] = vectors
            vectors = side_by_side.flatten(1)
        if self.regions:
            one = NORMALISATIONS[self.of_region](vectors)
            rows = torch.arange(first, first + len(x)) // scale.width
            band = (2 * rows + 1) * NUM_BANDS // (2 * scale.height)
            regions = one.new_zeros(len(x), 1 + NUM_BANDS, one.shape[1])
            regions[:, 0], regions[torch.arange(len(x)), 1 + band] = one, one
            vectors = regions.flatten(1)
        return NORMALISATIONS[self.normalisation](vectors).float()

    def files(self) -> dict[str, bytes]:
        """Return files like those of the part."""
        files = self.part.files()
        # A part is more than its codebook: the Fisher information has another file.
        data = files[CODEBOOK]
        bare = type(self.part).build(load_tensors(data), header_of(data)["settings"])
        return files | {CODEBOOK: self._with(bare).to_bytes()}

    def with_files(self, files: dict[str, bytes], settings: EncoderSettings) -> Self:
        """Return this encoder, whose part has its other files."""
        others = {name: data for name, data in files.items() if name != CODEBOOK}
        return self._with(self.part.with_files(others, settings))

    def tensors(self) -> dict[str, Tensor]:
        return self.part.tensors()

    def settings(self) -> dict[str, Any]:
        return {
            "kind": self.part.name,
            "part": self.part.settings(),
            "scales": [list(astuple(scale)) for scale in self.scales],
            "pooling": self.pooling,
            "sides": list(self.sides),
            "regions": self.regions,
            "normalisation": self.of_region,
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
            raise TypeError("PerScale.build: expected the kind of its part, got none")
        return cls(
            kind.build(tensors, settings["part"]),
            [Scale(*scale) for scale in settings["scales"]],
            settings["pooling"],
            sides=settings["sides"],
            regions=settings["regions"],
            normalisation=settings["normalisation"],
        )

    def rebuilt(self, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        """Build an encoder with a part of the same kind from other tensors and settings."""
        return self.build(tensors, settings, type(self.part))

    def _with(self, part: Encoder) -> Self:
        return type(self)(
            part,
            self.scales,
            self.pooling,
            sides=self.sides,
            regions=self.regions,
            normalisation=self.of_region,
        )


def read_rows(frames: Tensor, scales: Sequence[Scale], sides: Sequence[int]) -> Tensor:
    """Return the rows of frames [f, T, C] that are of these sides, all where none is given."""
    used = used_scales(scales, sides)
    if len(used) == len(scales):
        return frames
    return some_cells(
        frames, torch.cat([torch.arange(first, first + scale.rows) for scale, first in used])
    )


def used_scales(scales: Sequence[Scale], sides: Sequence[int]) -> list[tuple[Scale, int]]:
    """Return the scales of these sides, all where none is given, and the first row of each.

    Raises:
        ValueError: there is no such scale.
    """
    known = [scale.side_px for scale in scales]
    if not scales or not set(sides) <= set(known):
        raise ValueError(f"sides: expected some of picture.scales {known}, got {list(sides)}")
    firsts = [sum(scale.rows for scale in scales[:place]) for place in range(len(scales))]
    pairs = zip(scales, firsts, strict=True)
    return [(scale, first) for scale, first in pairs if not sides or scale.side_px in sides]


def _bands(scale: Scale, first: int) -> list[slice]:
    """Return the rows of the top, middle and bottom of a map whose first row is `first`."""
    height, width = scale.height, scale.width
    if not height:
        raise ValueError(
            "regions: expected a stream of positions, such as dense, got the cells of a pyramid; "
            "leave regions out, or set describe.streams=dense"
        )
    # Row r has its centre at (r + 1/2) / h.
    band = [(2 * row + 1) * NUM_BANDS // (2 * height) for row in range(height)]
    ends = [first + width * sum(of <= number for of in band) for number in range(NUM_BANDS)]
    return [slice(start, end) for start, end in zip([first, *ends], ends, strict=False)]
