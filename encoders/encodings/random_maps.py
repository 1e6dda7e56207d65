"""Random maps whose inner product estimates <x, y>^2: tensor sketch and random Maclaurin features.

Both are linear in x x^T, so that the map of a set of descriptors costs no more than that of one: it
is the map of the sum of x x^T. Sources: Pham and Pagh, KDD 2013 (tensor sketch); Kar and
Karnick, AISTATS 2012 (random Maclaurin; DQ 5.4).

Letters: C channels, P features.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

BLOCK_FEATURES = 1024
"""Random Maclaurin features per chunk whose signs are converted to floating point."""

BLOCK_SIGNS = 2**24
"""Signs per chunk of `SeededMaclaurin`: 64 MiB in float32."""


def random_signs(seed: int, stream: int, *shape: int) -> Tensor:
    """Return independent signs +1 and -1 of a shape, int8, on the CPU.

    The bits of a counter-based generator, which numpy keeps the same for all versions and machines.
    Other streams of one seed are independent.
    """
    count = int(np.prod(shape))
    words = np.random.Philox(key=[seed, stream]).random_raw(-(-count // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=count)
    return torch.from_numpy(bits.astype(np.int8) * 2 - 1).view(shape)


@dataclass(frozen=True, eq=False)
class TensorSketch:
    """The convolution of two count sketches of x, which is a count sketch of x x^T.

    Value (j, k) of x x^T goes to feature bins[0, j] + bins[1, k] modulo P with the sign
    signs[0, j] signs[1, k].

    Attributes:
        bins: [2, C] int64, in 0 .. P - 1.
        signs: [2, C] int8.
    """

    name: ClassVar[str] = "tensor_sketch"
    bins: Tensor
    signs: Tensor
    num_features: int

    @classmethod
    def draw(cls, width: int, num_features: int, seed: int) -> Self:
        """Return the map of C = `width` channels that belongs to a seed."""
        generator = torch.Generator().manual_seed(seed)
        bins = torch.randint(num_features, (2, width), generator=generator)
        return cls(bins, random_signs(seed, 0, 2, width), num_features)

    def of_moment(self, moment: Tensor) -> Tensor:
        """Return the sum [P] of the sketches of descriptors with sum `moment` [C, C] of x x^T."""
        signs = self.signs.to(moment)
        values = (moment * signs[0].unsqueeze(1) * signs[1]).flatten()
        # On the CPU, which adds in a fixed order, unlike a GPU.
        sums = torch.zeros(self.num_features, dtype=moment.dtype)
        return sums.index_add_(0, self._features, values.cpu()).to(moment.device)

    @cached_property
    def _features(self) -> Tensor:
        """The feature of each value of x x^T, on the CPU in 4 bytes."""
        bins = self.bins.int().cpu()
        return (bins[0].unsqueeze(1) + bins[1]).remainder_(self.num_features).flatten()

    def tensors(self) -> dict[str, Tensor]:
        """Return the drawn tensors by name, for an encoder to store with its own."""
        return {"bins": self.bins, "signs": self.signs}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], num_features: int) -> Self:
        """Build the map from its `tensors`."""
        return cls(tensors["bins"], tensors["signs"], num_features)


@dataclass(frozen=True, eq=False)
class RandomMaclaurin:
    """Feature p of x is (w1_p . x) (w2_p . x) / sqrt(P), with random signs w1 and w2.

    Attributes:
        signs: [2, P, C] int8, w1 and w2.
    """

    name: ClassVar[str] = "random_maclaurin"
    signs: Tensor
    num_features: int

    @classmethod
    def draw(cls, width: int, num_features: int, seed: int) -> Self:
        """Return the map of C = `width` channels that belongs to a seed."""
        return cls(random_signs(seed, 0, 2, num_features, width), num_features)

    def of_moment(self, moment: Tensor) -> Tensor:
        """Return the sum [P] of the features of descriptors with sum `moment` [C, C] of x x^T."""
        blocks = [
            ((first.to(moment) @ moment) * second.to(moment)).sum(1)
            for first, second in self.signs.split(BLOCK_FEATURES, 1)
        ]
        return torch.cat(blocks) / self.num_features**0.5

    def tensors(self) -> dict[str, Tensor]:
        """Return the drawn tensors by name, for an encoder to store with its own."""
        return {"signs": self.signs}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], num_features: int) -> Self:
        """Build the map from its `tensors`."""
        return cls(tensors["signs"], num_features)


@dataclass(frozen=True)
class SeededMaclaurin:
    """Random Maclaurin features of long vectors, without stored signs (DQ 5.4).

    The signs of feature p are drawn again from (seed, p) each time, in blocks: at D = 131,072 and
    P = 4,096 they would take 1 GiB as bytes and 4 GiB as float32.

    Attributes:
        width: D, the length of the vectors.
    """

    width: int
    num_features: int
    seed: int

    def transform(self, x: Tensor) -> Tensor:
        """Return features [.., P] of x [.., D], in its dtype and on its device."""
        features = []
        step = max(1, BLOCK_SIGNS // (2 * self.width))
        block = x.new_empty(step, 2, self.width)
        for start in range(0, self.num_features, step):
            signs = block[: self.num_features - start]
            for row in range(len(signs)):
                # Stream 0 belongs to sketches of descriptors.
                signs[row] = random_signs(self.seed, start + row + 1, 2, self.width)
            features.append((x @ signs.flatten(0, 1).T).unflatten(-1, (-1, 2)).prod(-1))
        return torch.cat(features, -1) / self.num_features**0.5


Sketch = TensorSketch | RandomMaclaurin

SKETCHES: dict[str, type[Sketch]] = {
    sketch.name: sketch for sketch in (TensorSketch, RandomMaclaurin)
}
