"""The encoders as scikit-learn estimators, for who has descriptors already.

`fit` and `transform` take a list with an array [n_i, C] for each video (or image, or recording):
its n_i local descriptors of C values, of any number that a video has. `transform` returns float32
[v, D], one row for each. They go into a `Pipeline` and a `GridSearchCV`, are cloned and pickled as
others are, and use one process and the CPU. Parameters have the names of the settings of a run
(docs/settings.md), and the same descriptors give the vectors that a run gives.

Letters: v videos, n descriptors, C values of a descriptor, D length of a vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_array, check_random_state
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted

from encoders.codebooks.sample import FitSample
from encoders.encodings.base import Encoder
from encoders.encodings.normalise import NORMALISATIONS
from encoders.registry import encoder_from_bytes, fit_encoder
from encoders.settings import (
    BilinearSettings,
    EncoderSettings,
    FvVaeSettings,
    GmmFvSettings,
    VladSettings,
)
from pipelines.settings.text import changed

__all__ = ["BilinearPooling", "FisherVector", "FvVae", "Vlad"]

_TOGETHER = 2**16
"""Descriptors that are encoded at a time, unless one video has more."""

_DTYPES: Any = (np.float32, np.float64)
_LARGEST_SEED = 2**31 - 1

Descriptors = Sequence[ArrayLike]


class _Encoding(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """An encoder of encoders/ with the manners of scikit-learn.

    Attributes:
        encoder_: the fitted encoder.
        n_features_in_: C.
    """

    _base: ClassVar[str]
    """The registry key."""
    _section: ClassVar[EncoderSettings]
    """The settings with the defaults of all fields that are no parameters."""

    normalisation: str
    random_state: Any
    encoder_: Encoder
    n_features_in_: int

    def fit(self, X: Descriptors, y: ArrayLike | None = None) -> Self:  # noqa: N803 - scikit-learn's name
        """Fit the codebook to the descriptors of videos.

        Args:
            X: v arrays [n_i, C], of which some may be empty.
            y: labels of the videos; only an `FvVae` with a class loss reads them.
        """
        videos = _checked(X)
        self.n_features_in_ = videos[0].shape[1]
        settings = self._settings()
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(
                f"normalisation: expected one of {sorted(NORMALISATIONS)}, got "
                f"{self.normalisation!r}"
            )
        counts = torch.tensor([len(video) for video in videos])
        if not counts.sum():
            raise ValueError("X: expected at least one descriptor, got none")
        sample = FitSample(
            frames=torch.from_numpy(np.concatenate(videos)).unsqueeze(1),
            video=torch.arange(len(videos)).repeat_interleave(counts),
            seed=self._seed(),
            **self._labelled(settings, y, len(videos)),
        )
        self.encoder_ = fit_encoder(self._base, sample, settings, self.normalisation)
        return self

    def transform(self, X: Descriptors) -> NDArray[np.float32]:  # noqa: N803 - scikit-learn's name
        """Return the vectors [v, D] float32 of v arrays [n_i, C]; zeros where n_i is 0."""
        check_is_fitted(self)
        videos = _checked(X)
        if (width := videos[0].shape[1]) != self.n_features_in_:
            raise ValueError(
                f"X has {width} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        vectors = np.empty((len(videos), self.encoder_.output_dim), np.float32)
        for first, last in _groups([len(video) for video in videos]):
            part = videos[first:last]
            rows = torch.from_numpy(np.concatenate(part))
            found = self.encoder_.encode_batch(rows, [len(video) for video in part])
            vectors[first:last] = found.numpy()
        return vectors

    @property
    def _n_features_out(self) -> int:
        """Return D, for the names of features."""
        return self.encoder_.output_dim

    def _settings(self) -> Any:
        """Return the encoder's settings.

        Raises:
            ValueError: a parameter is out of range.
        """
        parameters = self.get_params()
        names = [field.name for field in dataclasses.fields(self._section)]
        values = {name: parameters[name] for name in names if name in parameters}
        return changed(self._section, type(self).__name__, values)

    def _labelled(
        self, settings: EncoderSettings, y: ArrayLike | None, num_videos: int
    ) -> dict[str, Any]:
        """Return what the sample says of labels."""
        return {}

    def _seed(self) -> int:
        if isinstance(self.random_state, (int, np.integer)):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(_LARGEST_SEED))

    def __getstate__(self) -> dict[str, Any]:
        """Keep the encoder as the file that a run keeps of it, which is nothing but tensors."""
        state: dict[str, Any] = self.__dict__ | cast(dict, super().__getstate__())
        if isinstance(encoder := state.get("encoder_"), Encoder):
            state["encoder_"] = encoder.to_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(data := self.__dict__.get("encoder_"), bytes):
            self.encoder_ = encoder_from_bytes(data)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        return tags


class FisherVector(_Encoding):
    """Fisher vectors of a Gaussian mixture with diagonal covariances: D = 2 K C.

    Gradients in means, then in standard deviations, over the root of the Fisher information.

    Args:
        num_components: K of the mixture.
        pca_components: values of a descriptor after a PCA; 0 keeps descriptors as they are.
        pca_whiten: scale each component of the PCA to variance 1.
        max_iterations: of EM, which begins at k-means.
        tolerance: EM ends where the mean log-likelihood rises by less.
        normalisation: "signed_sqrt_l2", "signed_sqrt", "l2" or "none", of the vector.
        random_state: seed of k-means.
    """

    _base = "gmm_fv"
    _section = GmmFvSettings()

    def __init__(
        self,
        num_components: int = 128,
        *,
        pca_components: int = 0,
        pca_whiten: bool = False,
        max_iterations: int = 100,
        tolerance: float = 1e-3,
        normalisation: str = "signed_sqrt_l2",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.num_components = num_components
        self.pca_components = pca_components
        self.pca_whiten = pca_whiten
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.normalisation = normalisation
        self.random_state = random_state


class Vlad(_Encoding):
    """VLAD: sums of residuals to the nearest of K centroids of k-means, D = K C.

    Args:
        num_centroids: K.
        intra: normalise the part of each centroid by itself; `normalisation` is "l2" then.
        pca_components, pca_whiten, normalisation, random_state: see `FisherVector`.
    """

    _base = "vlad"
    _section = VladSettings()

    def __init__(
        self,
        num_centroids: int = 256,
        *,
        intra: bool = False,
        pca_components: int = 0,
        pca_whiten: bool = False,
        normalisation: str = "signed_sqrt_l2",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.num_centroids = num_centroids
        self.intra = intra
        self.pca_components = pca_components
        self.pca_whiten = pca_whiten
        self.normalisation = normalisation
        self.random_state = random_state


class BilinearPooling(_Encoding):
    """The mean of x x^T over descriptors x: D = C^2, C (C + 1) / 2, or num_features of a sketch.

    Args:
        form: "full"; "upper", the upper triangle with the same inner products; or
            "tensor_sketch" or "random_maclaurin", a random map whose inner products estimate them.
        num_features: D of a random map.
        pca_components, pca_whiten, normalisation: see `FisherVector`.
        random_state: seed of the random map.
    """

    _base = "bilinear"
    _section = BilinearSettings()

    def __init__(
        self,
        form: Literal["full", "upper", "tensor_sketch", "random_maclaurin"] = "full",
        *,
        num_features: int = 8192,
        pca_components: int = 0,
        pca_whiten: bool = False,
        normalisation: str = "signed_sqrt_l2",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.form = form
        self.num_features = num_features
        self.pca_components = pca_components
        self.pca_whiten = pca_whiten
        self.normalisation = normalisation
        self.random_state = random_state


class FvVae(_Encoding):
    """FV-VAE (DQ 3.4): the gradient of a variational auto-encoder's reconstruction loss in its
    decoder, D = C (L + 1).

    Args:
        num_latents: L.
        hidden: widths of the encoder's hidden layers; None is one as wide as the descriptor.
        num_steps: of training; 0: as many as read the descriptors twice, at least 100.
        batch_descriptors: of a training step.
        optimiser: "adam" or "adadelta".
        learning_rate: of the optimiser.
        lambda3: weight of the class loss, which wants `y`; 0 trains without labels.
        information: "diagonal", "kronecker" or "none", the Fisher information that whitens.
        gradient_power: of the length of each descriptor's gradient before they are averaged.
        pca_components, pca_whiten, normalisation: see `FisherVector`.
        random_state: seed of weights, batches and noise.
    """

    _base = "fv_vae"
    _section = FvVaeSettings()

    def __init__(  # noqa: PLR0913 - scikit-learn wants every parameter here
        self,
        num_latents: int = 63,
        *,
        hidden: tuple[int, ...] | None = (),
        num_steps: int = 0,
        batch_descriptors: int = 4096,
        optimiser: Literal["adadelta", "adam"] = "adam",
        learning_rate: float = 1e-3,
        lambda3: float = 0.0,
        information: Literal["none", "diagonal", "kronecker"] = "diagonal",
        gradient_power: float = 1.0,
        pca_components: int = 0,
        pca_whiten: bool = False,
        normalisation: str = "signed_sqrt_l2",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.num_latents = num_latents
        self.hidden = hidden
        self.num_steps = num_steps
        self.batch_descriptors = batch_descriptors
        self.optimiser = optimiser
        self.learning_rate = learning_rate
        self.lambda3 = lambda3
        self.information = information
        self.gradient_power = gradient_power
        self.pca_components = pca_components
        self.pca_whiten = pca_whiten
        self.normalisation = normalisation
        self.random_state = random_state

    def _settings(self) -> FvVaeSettings:
        """Return the settings; a descriptor is a frame of its own here."""
        settings, batch = super()._settings(), {"batch_frames": self.batch_descriptors}
        try:
            return changed(settings, type(self).__name__, batch)
        except ValueError as error:
            reason = str(error).replace("batch_frames", "batch_descriptors")
            raise ValueError(reason) from None

    def _labelled(
        self, settings: EncoderSettings, y: ArrayLike | None, num_videos: int
    ) -> dict[str, Any]:
        if not settings.uses_labels:
            return {}
        if y is None or len(np.asarray(y)) != num_videos:
            raise ValueError(
                f"y: expected a label for each of {num_videos} videos, because lambda3 is "
                f"{self.lambda3}, got {'none' if y is None else len(np.asarray(y))}"
            )
        targets = LabelBinarizer().fit_transform(y)
        if targets.shape[1] == 1:
            # Of two classes scikit-learn gives one column.
            targets = np.hstack([1 - targets, targets])
        return {
            "targets": torch.from_numpy(targets).float(),
            "multi_label": type_of_target(y) == "multilabel-indicator",
        }


def _checked(videos: Descriptors) -> list[NDArray]:
    """Return the arrays of videos, checked, as float32 or float64.

    Raises:
        ValueError: they are no arrays [n_i, C] of finite numbers with one C.
    """
    if not len(videos):
        raise ValueError("X: expected arrays [n_i, C], one for each video, got none")
    if np.ndim(videos[0]) != 2:
        raise ValueError(
            "X: expected a list of arrays [n_i, C], one for each video, got items with "
            f"{np.ndim(videos[0])} dimensions; one video alone is a list of one array"
        )
    found = [
        check_array(video, dtype=_DTYPES, ensure_min_samples=0, input_name="X") for video in videos
    ]
    widths = {video.shape[1] for video in found}
    if len(widths) > 1:
        raise ValueError(
            f"X: expected arrays [n_i, C] of one C, got C of {sorted(widths)}; descriptors of "
            "all videos must have the same length"
        )
    return found


def _groups(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Return (first, last + 1) of neighbouring videos that are encoded together."""
    bounds, total = [0], 0
    for place, count in enumerate(counts):
        if total and total + count > _TOGETHER:
            bounds.append(place)
            total = 0
        total += count
    return list(zip(bounds, [*bounds[1:], len(counts)], strict=True))
