"""Settings of the encoders, of the compression of vectors, and of training end to end.

No torch here: a wrong value must show at once. The section of the run's configuration has
the registry name of the encoder.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from encoders.fields import (
    COUNTABLE,
    EACH_ONCE,
    Changes,
    Count,
    CountOrZero,
    NotNegative,
    Positive,
    Record,
    Rule,
    at_least,
    between,
    require,
    setting,
)

CODEBOOK = "codebook.safetensors"
"""The file of a fitted encoder, in the folder of its codebook."""

INFORMATION_FILE = "information.safetensors"
"""The file of an FV-VAE's Fisher information, beside its codebook."""

MIN_STEPS = 100
"""Least steps of an FV-VAE's training where num_steps is 0: with fewer it learns little."""

EVALUATE_EVERY = 25
"""Steps of an FV-VAE's training between two evaluations of held-out frames."""

UNIT_LENGTH = ("signed_sqrt_l2", "l2")
"""Names in `encoders.encodings.normalise.NORMALISATIONS` that give vectors of length 1."""

Side = Annotated[int, at_least(1), COUNTABLE]
"""Cells along a side of a level of the spatial pyramid."""


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(Record):
    """Base of every encoder's settings, and the settings of an encoder that has none."""

    size: ClassVar[str] = ""
    """Name of the field with the number of words, components or latents; "" if none are fitted."""

    # Properties, not fields: a subclass overrides those that it has by fields.

    @property
    def levels(self) -> tuple[int, ...]:
        """Sides of the pyramid's levels whose cells are used; () is all."""
        return ()

    @property
    def per_level(self) -> bool:
        """True if each level has its own codebook."""
        return False

    @property
    def pca_components(self) -> int:
        """Values of a descriptor after the PCA; 0 without a PCA."""
        return 0

    @property
    def pca_whiten(self) -> bool:
        """True if the PCA scales each component to variance 1."""
        return False

    @property
    def position_weight(self) -> float:
        """Weight of the position that is appended to a descriptor."""
        return 0.0

    @property
    def scales(self) -> str:
        """Pooling of several sizes of a picture; "" takes all descriptors alike."""
        return ""

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the pictures whose descriptors are read; () is all."""
        return ()

    @property
    def regions(self) -> bool:
        """True if thirds of the picture are pooled too."""
        return False

    @property
    def is_scaled(self) -> bool:
        """True if sizes of the picture or its regions are told apart
        (`encoders.encodings.per_scale`)."""
        return bool(self.scales or self.sides or self.regions)

    @property
    def is_spatial(self) -> bool:
        """True if positions or pyramid levels are used (`encoders.encodings.spatial`)."""
        return self.position_weight > 0 or self.per_level or bool(self.levels)

    @property
    def uses_labels(self) -> bool:
        """True if the codebook depends on labels, and so must be fitted without the test fold."""
        return False

    @property
    def holds_out(self) -> bool:
        """True if fitting holds out whole groups of videos."""
        return False


@dataclass(frozen=True, kw_only=True)
class PcaSettings(EncoderSettings):
    """PCA of descriptors before the codebook (FK 4.3: PCA to 128)."""

    pca_components: CountOrZero = setting(
        0, "Values of a descriptor after the PCA; 0 keeps the descriptors as they are."
    )
    pca_whiten: bool = setting(False, "Scale each component to variance 1.")

    def __post_init__(self) -> None:
        require(
            self.pca_components > 0 or not self.pca_whiten,
            "pca_whiten",
            "false where pca_components is 0",
            self.pca_whiten,
        )


@dataclass(frozen=True, kw_only=True)
class ScaleSettings(EncoderSettings):
    """Pooling of several sizes of a picture (picture.scales, `encoders.encodings.per_scale`)."""

    scales: Literal["", "mpp", "csf", "nfk"] = setting(
        "",
        "mpp: the mean over scales of the encodings, each of length 1 (FK's multi-scale pyramid "
        "pooling); csf: these side by side; nfk, or none: the descriptors of all scales alike.",
        added=True,
    )
    sides: Annotated[tuple[Side, ...], EACH_ONCE] = setting(
        (),
        "Sides, of picture.scales, that are read; none given is all. One alone is a picture of one "
        "size.",
        added=True,
    )
    regions: bool = setting(
        False,
        "The whole picture, its top, middle and bottom third side by side (FK's MPP + SP), of "
        "streams of positions.",
        added=True,
    )


@dataclass(frozen=True, kw_only=True)
class PyramidSettings(ScaleSettings):
    """Levels of the spatial pyramid that are used, and that are summed together
    (`encoders.encodings.spatial`)."""

    levels: Annotated[tuple[Side, ...], EACH_ONCE] = setting(
        (),
        "Sides of the pyramid's levels whose cells count; none given is all. 1 alone is the "
        "maximum over the whole map: what is there, wherever.",
    )
    per_level: bool = setting(
        False, "One codebook (of `ave`: one mean) for each level, and their vectors side by side."
    )


@dataclass(frozen=True, kw_only=True)
class AveSettings(PyramidSettings):
    """The mean descriptor; nothing is fitted."""


@dataclass(frozen=True, kw_only=True)
class SpatialSettings(PcaSettings, PyramidSettings):
    """Use of a descriptor's position on the frame by a codebook (`encoders.encodings.spatial`)."""

    position_weight: NotNegative = setting(
        0.0,
        "x, y and scale of the descriptor's cell are appended to it, after the PCA; in -0.5 to "
        "0.5, times this, times the descriptors' root mean square length. 0 appends nothing.",
    )


@dataclass(frozen=True, kw_only=True)
class VladSettings(SpatialSettings):
    """k-means codebook (DQ: 256 centroids, signed square root; VU 2.3.3: 100 centroids,
    intra-normalisation)."""

    size: ClassVar[str] = "num_centroids"
    num_centroids: Count = setting(256, "Centroids of k-means.")
    intra: bool = setting(False, "Normalise the part of each centroid by itself.")


@dataclass(frozen=True, kw_only=True)
class GmmFvSettings(SpatialSettings):
    """Diagonal mixture (DQ: 128 components on raw descriptors; FK 4.3: 256 after PCA to 128)."""

    size: ClassVar[str] = "num_components"
    num_components: Count = setting(128, "Components of the mixture.")
    max_iterations: Count = setting(
        100, "Iterations of EM at most; each reads as many descriptors as the sample has."
    )
    tolerance: Positive = setting(
        1e-3,
        "EM stops when the mean log-likelihood of a descriptor rises by less in an iteration.",
    )
    variance_floor: Positive = setting(
        1e-3, "Least variance of a component, relative to the descriptors' variance."
    )
    batch_descriptors: CountOrZero = setting(
        0,
        "0 is EM over the whole sample; more is stepwise EM with batches of so many, for samples "
        "that do not fit in memory.",
    )
    step_exponent: Annotated[float, Rule("0.5 < x <= 1", lambda x: 0.5 < x <= 1)] = setting(
        0.6, "Of stepwise EM: step t moves the statistics by (t + 2)^-step_exponent of the way."
    )


@dataclass(frozen=True, kw_only=True)
class BilinearSettings(SpatialSettings):
    """Bilinear pooling (DQ 5.2), and its estimates in fewer values."""

    form: Literal["full", "upper", "tensor_sketch", "random_maclaurin"] = setting(
        "full",
        "All C^2 products; their upper triangle, with the same inner products; or a random map of "
        "them to num_features values.",
    )
    num_features: Count = setting(8192, "Values of a random map.")


@dataclass(frozen=True, kw_only=True)
class CompressSettings(Record):
    """Compression of finished vectors before a classifier or a search (DQ 5.4, VU 2.3.3)."""

    kind: Literal["none", "pca", "random_maclaurin"] = setting("none", "The map.")
    num_features: Count = setting(
        128, "Length of a compressed vector. VU 2.3.3 has 128, by a PCA with whitening."
    )
    whiten: bool = setting(False, "Scale each component of the PCA to variance 1.")

    def __post_init__(self) -> None:
        require(
            self.kind != "random_maclaurin" or not self.whiten,
            "whiten",
            "false where compress.kind is random_maclaurin",
            self.whiten,
        )


@dataclass(frozen=True, kw_only=True)
class FvVaeSettings(SpatialSettings):
    """Network, loss and training of the FV-VAE (METHODS 3.1). The defaults are the preset `paper`
    without its class loss."""

    size: ClassVar[str] = "num_latents"
    hidden: tuple[Side, ...] | None = setting(
        None, "Widths of the encoder's hidden layers; none is one layer as wide as the descriptor."
    )
    num_latents: Count = setting(255, "Latent values.")
    scalar_sigma_x: bool = setting(False, "One sigma_x for all channels, instead of one for each.")
    lambda1: NotNegative = setting(1.0, "Weight of the reconstruction loss.")
    lambda2: NotNegative = setting(1.0, "Weight of the divergence from the prior.")
    lambda3: NotNegative = setting(
        0.0, "Weight of the class loss; 0 is FV-VAE^-, whose codebook uses no labels."
    )
    class_pooling: Literal["descriptor", "max"] = setting(
        "descriptor",
        "Classify each descriptor, or the frame by the largest score over its descriptors.",
    )
    dropout: Annotated[float, Rule("0 <= x < 1", lambda x: 0 <= x < 1)] = setting(
        0.5, "Share of a descriptor's values that a training step takes for 0."
    )
    optimiser: Literal["adadelta", "adam"] = setting("adadelta", "Of the training.")
    learning_rate: Positive = setting(1.0, "Of the optimiser.")
    sigma_learning_rate_factor: Positive = setting(
        1.0, "sigma_x and sigma_z learn that much faster (the released network: 10)."
    )
    batch_frames: Count = setting(128, "Frames of a training step.")
    num_steps: CountOrZero = setting(
        5000, f"Training steps; 0: as many as read the sampled frames twice, at least {MIN_STEPS}."
    )
    early_stopping_steps: Annotated[
        int,
        Rule(
            f"0, or at least {EVALUATE_EVERY}, the steps between two looks",
            lambda steps: steps == 0 or steps >= EVALUATE_EVERY,
        ),
        COUNTABLE,
    ] = setting(
        0,
        "Training ends where the evidence lower bound of held-out training videos (whole groups "
        "of them) has not risen for so many steps, and the best weights are kept; 0: after "
        "num_steps, with the last. Fine-tuning does not read it.",
    )
    information: Literal["none", "diagonal", "kronecker"] = setting(
        "diagonal",
        "The Fisher information that whitens the gradient. Both forms are estimated with the "
        "codebook.",
        Changes.VECTORS,
    )
    information_frames: Literal["sample", "all"] = setting(
        "sample",
        "The frames that the information is estimated on: those the codebook is fitted on, or all "
        "of the training videos, which are read once more before they are encoded.",
        Changes.VECTORS,
        added=True,
    )
    damping: NotNegative = setting(0.01, "Relative damping of the information.", Changes.VECTORS)
    gradient_power: Annotated[float, between(0, 1)] = setting(
        1.0,
        "Of the length of each descriptor's gradient, before they are averaged; 1 is the paper's. "
        "A gradient grows with the square of a descriptor's deviation from the usual; with 0.5 it "
        "grows linearly, as VLAD's residuals do.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.information_frames == "sample" or not self.is_spatial,
            "information_frames",
            "sample with levels, per_level or position_weight",
            self.information_frames,
        )

    @property
    def uses_labels(self) -> bool:
        return self.lambda3 > 0

    @property
    def holds_out(self) -> bool:
        return self.early_stopping_steps > 0

    def steps_for(self, num_frames: int) -> int:
        """Return the number of training steps on a sample of `num_frames` frames.

        Twice through it, as DQ 5.1's 5,000 batches of 128 go 2.7 times through UCF101's frames.
        """
        return self.num_steps or max(MIN_STEPS, math.ceil(2 * num_frames / self.batch_frames))


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Record):
    """Training of an FV-VAE through the backbone, end to end (METHODS 3.1); fv_vae has the rest.
    Only `jobs.finetune` reads it."""

    trainable_from: str = setting(
        "",
        "Node behind which the backbone's parameters are trained, those before it stay as they "
        "are; empty trains all.",
    )
    learning_rate_factor: Positive = setting(
        0.01, "The backbone learns that much slower (below 1) than the FV-VAE."
    )
    num_frames: Count = setting(
        20_000,
        "Frames of the training videos that are kept as pictures, about as many of each video.",
    )


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
"""The two published settings, and one for small corpora, which needs no labels; its steps grow
with the sample. DQ does not print its lambda3: 1,000 is what `jobs.sweep` picks (docs/encoders.md).
The released training file has 1,000 too, but of a loss that is summed over 128 frames, not their
mean as here, so that it does not say which value is the paper's."""
