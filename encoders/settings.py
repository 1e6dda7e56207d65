"""Settings of the encoders that are fitted. No torch here: a wrong value must show at once.

The section of the run's configuration has the registry name of the encoder.
"""

from dataclasses import dataclass
from typing import Literal


def require(condition: bool, where: str, expected: str, got: object) -> None:
    """Raises ValueError with where, what was expected and what was got, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{where}: expected {expected}, got {got!r}")


@dataclass(frozen=True, kw_only=True)
class VladSettings:
    """k-means codebook (DQ: 256 centroids, signed square root; VU 2.3.3: 100, intra-normalisation).

    pca_components = 0 keeps the descriptors as they are.
    """

    num_centroids: int = 256
    intra: bool = False
    pca_components: int = 0

    def __post_init__(self) -> None:
        require(self.num_centroids >= 1, "vlad.num_centroids", "at least 1", self.num_centroids)
        require(self.pca_components >= 0, "vlad.pca_components", "0 or more", self.pca_components)


@dataclass(frozen=True, kw_only=True)
class GmmFvSettings:
    """Diagonal mixture (DQ: 128 components on raw descriptors; FK 4.3: 256 after PCA to 128).

    tolerance: EM stops when the mean log-likelihood of a descriptor rises by less.
    variance_floor: relative to the descriptors' variance.
    """

    num_components: int = 128
    max_iterations: int = 100
    tolerance: float = 1e-3
    variance_floor: float = 1e-3
    pca_components: int = 0

    def __post_init__(self) -> None:
        for name in ("num_components", "max_iterations"):
            require(getattr(self, name) >= 1, f"gmm_fv.{name}", "at least 1", getattr(self, name))
        for name in ("tolerance", "variance_floor"):
            require(getattr(self, name) > 0, f"gmm_fv.{name}", "more than 0", getattr(self, name))
        require(self.pca_components >= 0, "gmm_fv.pca_components", "0 or more", self.pca_components)


@dataclass(frozen=True, kw_only=True)
class FvVaeSettings:
    """Network, loss and training of the FV-VAE (METHODS 3.1). The defaults are the preset `paper`.

    hidden: widths of the encoder's hidden layers; None is one layer as wide as the descriptor.
    lambda3: weight of the class loss; 0 is FV-VAE^-, whose codebook uses no labels.
    class_pooling: classify each descriptor, or the frame by the largest score over its descriptors.
    sigma_learning_rate_factor: the two covariances learn that much faster (the released network: 10).
    information: the Fisher information that whitens the gradient, with its relative damping.
    """

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
    information: Literal["none", "diagonal", "kronecker"] = "diagonal"
    damping: float = 0.01

    def __post_init__(self) -> None:
        for name in ("num_latents", "batch_frames", "num_steps"):
            require(getattr(self, name) >= 1, f"fv_vae.{name}", "at least 1", getattr(self, name))
        for name in ("lambda1", "lambda2", "lambda3", "damping"):
            require(getattr(self, name) >= 0, f"fv_vae.{name}", "0 or more", getattr(self, name))
        for name in ("learning_rate", "sigma_learning_rate_factor"):
            require(getattr(self, name) > 0, f"fv_vae.{name}", "more than 0", getattr(self, name))
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


FV_VAE_PRESETS = {
    "paper": FvVaeSettings(),
    "released": FvVaeSettings(
        hidden=(),
        num_latents=256,
        lambda3=1000.0,
        class_pooling="max",
        sigma_learning_rate_factor=10.0,
    ),
    "small": FvVaeSettings(
        num_latents=63, optimiser="adam", learning_rate=1e-3, num_steps=400, batch_frames=32
    ),
}
"""The two published settings, and one for corpora of some hundred videos. `paper` is FV-VAE^- until
lambda3 is set: the paper picks it by a sweep (DQ Figure 4(b))."""
