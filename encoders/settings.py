"""Settings of the encoders that are fitted. No torch here: a wrong value must show at once.

The section of the run's configuration has the registry name of the encoder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

MIN_STEPS = 100
"""Least steps of an FV-VAE's training where num_steps is 0: before them it has learnt little, whatever the sample."""

EVALUATE_EVERY = 25
"""Steps of an FV-VAE's training between two evaluations of held-out frames."""


UNIT_LENGTH = ("signed_sqrt_l2", "l2")
"""The normalisations, of `encoders.encodings.normalise.NORMALISATIONS`, that give vectors of length 1."""


def require(condition: bool, where: str, expected: str, got: object) -> None:
    """Raises ValueError with where, what was expected and what was got, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{where}: expected {expected}, got {got!r}")


def more_than_0(record: object, section: str, *names: str) -> None:
    """Raises ValueError unless the numbers of those names are more than 0."""
    for name in names:
        value = getattr(record, name)
        require(value > 0, f"{section}.{name}", "more than 0", value)


def at_least(least: int, record: object, section: str, *names: str) -> None:
    """Raises ValueError unless the numbers of those names are not below `least`."""
    for name in names:
        value = getattr(record, name)
        expected = f"at least {least}" if least else "0 or more"
        require(value >= least, f"{section}.{name}", expected, value)


LARGEST_COUNT = 2**31 - 1
"""Of whole numbers, as columns of tables and libraries hold them."""

LARGEST = {"s": 10**9, "bytes": 2**50, "seed": 2**32 - 1}
"""Of the numbers whose names end so: seconds as timers take them, memory, seeds as NumPy and scikit-learn take them."""


def check_numbers(section: str, record: object) -> None:
    """Raises ValueError where a number of a section is not finite, or larger than anything can hold."""
    for name, value in vars(record).items():
        where, kind = f"{section}.{name}", name.rpartition("_")[2]
        most = LARGEST.get(kind, LARGEST_COUNT)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                require(math.isfinite(number), where, "a finite number", number)
            if isinstance(number, int) or (isinstance(number, float) and kind in LARGEST):
                require(number <= most, where, f"at most {most}", number)


def each_once(where: str, values: Sequence[object]) -> None:
    """Raises ValueError where a value comes twice."""
    require(len(set(values)) == len(values), where, "each once", values)


def one_or_more(where: str, values: Sequence[object], expected: str = "one or more") -> None:
    """Raises ValueError where there is no value, or one comes twice."""
    unique = 0 < len(values) == len(set(values))
    require(unique, where, f"{expected}, each once", values)


@dataclass(frozen=True, kw_only=True)
class PcaSettings:
    """What happens to descriptors before a codebook sees them (FK 4.3: PCA to 128).

    pca_components: 0 keeps the descriptors as they are.
    pca_whiten: scale each component to variance 1.
    """

    pca_components: int = 0
    pca_whiten: bool = False

    def check_pca(self, section: str) -> None:
        """Raises ValueError unless the two go together."""
        at_least(0, self, section, "pca_components")
        require(
            self.pca_components > 0 or not self.pca_whiten,
            f"{section}.pca_whiten",
            f"false where {section}.pca_components is 0",
            self.pca_whiten,
        )


@dataclass(frozen=True, kw_only=True)
class PyramidSettings:
    """Which descriptors of a spatial pyramid count, and with which others they are summed (`encoders.encodings.spatial`).

    levels: sides of the levels whose cells count; () is all. 1 alone is the maximum over the whole map: what is there, wherever.
    per_level: one codebook for each level, and their vectors side by side.
    """

    levels: tuple[int, ...] = ()
    per_level: bool = False

    def check_levels(self, section: str) -> None:
        """Raises ValueError unless the levels can be those of a pyramid."""
        require(
            all(side >= 1 for side in self.levels) and len(set(self.levels)) == len(self.levels),
            f"{section}.levels",
            "sides of at least 1, each once",
            self.levels,
        )

    @property
    def is_spatial(self) -> bool:
        """Whether places or levels play a part."""
        return self.per_level or bool(self.levels)


@dataclass(frozen=True, kw_only=True)
class AveSettings(PyramidSettings):
    """The mean descriptor, for which nothing is fitted. per_level keeps one mean for each level, side by side."""

    # A mean has neither; `Spatial.fit` reads both.
    pca_components: ClassVar[int] = 0
    position_weight: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        self.check_levels("ave")


@dataclass(frozen=True, kw_only=True)
class SpatialSettings(PcaSettings, PyramidSettings):
    """How a codebook uses where on the frame a descriptor is from (`encoders.encodings.spatial`).

    position_weight: x, y and scale of the descriptor's cell are appended to it, after the PCA; in -0.5 to 0.5, times
        this, times the descriptors' root mean square length. 0 appends nothing.
    """

    position_weight: float = 0.0

    size: ClassVar[str] = ""
    """The field that says how many words, components or latents are fitted; "" where none are."""

    @property
    def is_spatial(self) -> bool:
        """Whether places or levels play a part."""
        return self.position_weight > 0 or super().is_spatial

    def check_descriptors(self, section: str) -> None:
        """Raises ValueError unless what happens to descriptors is possible."""
        self.check_pca(section)
        self.check_levels(section)
        require(
            0 <= self.position_weight < math.inf,
            f"{section}.position_weight",
            "0 or more",
            self.position_weight,
        )


@dataclass(frozen=True, kw_only=True)
class VladSettings(SpatialSettings):
    """k-means codebook (DQ: 256 centroids, signed square root; VU 2.3.3: 100, intra-normalisation)."""

    size: ClassVar[str] = "num_centroids"
    num_centroids: int = 256
    intra: bool = False

    def __post_init__(self) -> None:
        at_least(1, self, "vlad", "num_centroids")
        self.check_descriptors("vlad")


@dataclass(frozen=True, kw_only=True)
class GmmFvSettings(SpatialSettings):
    """Diagonal mixture (DQ: 128 components on raw descriptors; FK 4.3: 256 after PCA to 128).

    max_iterations: each reads as many descriptors as the sample has.
    tolerance: EM stops when the mean log-likelihood of a descriptor rises by less in an iteration.
    variance_floor: relative to the descriptors' variance.
    batch_descriptors: 0 is EM over the whole sample; more is stepwise EM with batches of so many, for
        samples that do not fit in memory.
    step_exponent: of stepwise EM; step t moves the statistics by (t + 2)^-step_exponent of the way.
    """

    size: ClassVar[str] = "num_components"
    num_components: int = 128
    max_iterations: int = 100
    tolerance: float = 1e-3
    variance_floor: float = 1e-3
    batch_descriptors: int = 0
    step_exponent: float = 0.6

    def __post_init__(self) -> None:
        at_least(1, self, "gmm_fv", "num_components", "max_iterations")
        more_than_0(self, "gmm_fv", "tolerance", "variance_floor")
        at_least(0, self, "gmm_fv", "batch_descriptors")
        self.check_descriptors("gmm_fv")
        require(
            0.5 < self.step_exponent <= 1,
            "gmm_fv.step_exponent",
            "0.5 < x <= 1",
            self.step_exponent,
        )


@dataclass(frozen=True, kw_only=True)
class BilinearSettings(SpatialSettings):
    """Bilinear pooling (DQ 5.2), and its estimates in fewer values.

    form: all C^2 products; their upper triangle, with the same inner products; or a random map of
        them to num_features values.
    """

    form: Literal["full", "upper", "tensor_sketch", "random_maclaurin"] = "full"
    num_features: int = 8192

    def __post_init__(self) -> None:
        at_least(1, self, "bilinear", "num_features")
        self.check_descriptors("bilinear")


@dataclass(frozen=True, kw_only=True)
class CompressSettings:
    """What finished vectors become before a classifier or a search (DQ 5.4, VU 2.3.3).

    num_features: their length. VU 2.3.3 has 128, by a PCA with whitening.
    """

    kind: Literal["none", "pca", "random_maclaurin"] = "none"
    num_features: int = 128
    whiten: bool = False

    def __post_init__(self) -> None:
        at_least(1, self, "compress", "num_features")
        require(
            self.kind != "random_maclaurin" or not self.whiten,
            "compress.whiten",
            "False where compress.kind is random_maclaurin",
            self.whiten,
        )


@dataclass(frozen=True, kw_only=True)
class FvVaeSettings(SpatialSettings):
    """Network, loss and training of the FV-VAE (METHODS 3.1). The defaults are the preset `paper`
    without its class loss.

    hidden: widths of the encoder's hidden layers; None is one layer as wide as the descriptor.
    lambda3: weight of the class loss; 0 is FV-VAE^-, whose codebook uses no labels.
    class_pooling: classify each descriptor, or the frame by the largest score over its descriptors.
    sigma_learning_rate_factor: sigma_x and sigma_z learn that much faster (the released network: 10).
    num_steps: 0 means as many as read the sampled frames twice, and 100 at least (`steps_for`).
    early_stopping_steps: training ends where the evidence lower bound of held-out training videos (whole groups of
        them) has not risen for so many steps, and the best weights are kept; 0: after num_steps, with the last.
        Fine-tuning does not read it.
    information, damping: the Fisher information that whitens the gradient, and its relative damping. Both
        forms are estimated with the codebook, so changing these fits nothing again.
    gradient_power: of the length of each descriptor's gradient, before they are averaged; 1 is the paper's. A gradient grows
        with the square of a descriptor's deviation from the usual; with 0.5 it grows linearly, as VLAD's residuals do.
    """

    size: ClassVar[str] = "num_latents"
    hidden: tuple[int, ...] | None = None
    num_latents: int = 255
    scalar_sigma_x: bool = False
    lambda1: float = 1.0
    lambda2: float = 1.0
    lambda3: float = 0.0
    class_pooling: Literal["descriptor", "max"] = "descriptor"
    dropout: float = 0.5
    optimiser: Literal["adadelta", "adam"] = "adadelta"
    learning_rate: float = 1.0
    sigma_learning_rate_factor: float = 1.0
    batch_frames: int = 128
    num_steps: int = 5000
    early_stopping_steps: int = 0
    information: Literal["none", "diagonal", "kronecker"] = "diagonal"
    damping: float = 0.01
    gradient_power: float = 1.0

    def __post_init__(self) -> None:
        at_least(1, self, "fv_vae", "num_latents", "batch_frames")
        at_least(0, self, "fv_vae", "lambda1", "lambda2", "lambda3", "damping", "num_steps")
        more_than_0(self, "fv_vae", "learning_rate", "sigma_learning_rate_factor")
        require(
            self.early_stopping_steps == 0 or self.early_stopping_steps >= EVALUATE_EVERY,
            "fv_vae.early_stopping_steps",
            f"0, or at least {EVALUATE_EVERY}, the steps between two looks",
            self.early_stopping_steps,
        )
        self.check_descriptors("fv_vae")
        require(
            0 <= self.gradient_power <= 1, "fv_vae.gradient_power", "0 to 1", self.gradient_power
        )
        require(0 <= self.dropout < 1, "fv_vae.dropout", "0 <= x < 1", self.dropout)
        require(
            self.hidden is None or all(width >= 1 for width in self.hidden),
            "fv_vae.hidden",
            "widths of at least 1",
            self.hidden,
        )

    @property
    def uses_labels(self) -> bool:
        """Whether the codebook depends on labels, and so must be fitted without the test fold."""
        return self.lambda3 > 0

    def steps_for(self, num_frames: int) -> int:
        """Training steps on a sample of so many frames.

        Twice through it, as DQ 5.1's 5,000 batches of 128 go 2.7 times through UCF101's frames.
        """
        return self.num_steps or max(MIN_STEPS, math.ceil(2 * num_frames / self.batch_frames))


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Training of an FV-VAE through the backbone, end to end (METHODS 3.1); fv_vae has the rest.

    trainable_from: node behind which the backbone's parameters are trained, those before it stay as they
        are; "" trains all.
    learning_rate_factor: the backbone learns that much slower (below 1) than the FV-VAE.
    num_frames: frames of the training videos that are kept as pictures, about as many of each video.
    """

    trainable_from: str = ""
    learning_rate_factor: float = 0.01
    num_frames: int = 20_000

    def __post_init__(self) -> None:
        more_than_0(self, "finetune", "learning_rate_factor", "num_frames")


FV_VAE_PRESETS = {
    "paper": FvVaeSettings(lambda3=1000.0),
    "released": FvVaeSettings(
        hidden=(),
        num_latents=256,
        lambda3=1000.0,
        class_pooling="max",
        sigma_learning_rate_factor=10.0,
    ),
    "small": FvVaeSettings(
        hidden=(),
        num_latents=63,
        optimiser="adam",
        learning_rate=1e-3,
        num_steps=0,
        batch_frames=32,
    ),
}
"""The two published settings, and one for small corpora, which needs no labels; its steps grow with the sample. DQ does not
print its lambda3: 1,000 is the released network's, and what `jobs.sweep` picks (docs/encoders.md)."""
