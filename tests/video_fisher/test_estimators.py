"""Estimators: the numbers of the product's encoders and of scikit-image, the manners of
scikit-learn."""

import io

import joblib
import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from skimage.feature import fisher_vector
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.svm import LinearSVC

from encoders.codebooks.sample import FitSample
from encoders.registry import fit_encoder
from encoders.settings import BilinearSettings, FvVaeSettings, GmmFvSettings, VladSettings
from video_fisher.estimators import BilinearPooling, FisherVector, FvVae, Vlad

SIDE = 4
"""Of a patch, in pixels."""

EVERY = [
    (
        FisherVector(5, max_iterations=8, random_state=3),
        GmmFvSettings(num_components=5, max_iterations=8),
    ),
    (Vlad(6, intra=True, random_state=3), VladSettings(num_centroids=6, intra=True)),
    (
        Vlad(6, pca_components=4, pca_whiten=True, random_state=3),
        VladSettings(num_centroids=6, pca_components=4, pca_whiten=True),
    ),
    (
        FvVae(4, hidden=(8,), num_steps=20, batch_descriptors=64, random_state=3),
        FvVaeSettings(
            num_latents=4,
            hidden=(8,),
            num_steps=20,
            batch_frames=64,
            optimiser="adam",
            learning_rate=1e-3,
        ),
    ),
    (
        BilinearPooling("tensor_sketch", num_features=32, random_state=3),
        BilinearSettings(form="tensor_sketch", num_features=32),
    ),
    (BilinearPooling("upper", pca_components=5), BilinearSettings(form="upper", pca_components=5)),
]


@pytest.fixture(scope="module")
def patches() -> tuple[list[NDArray], NDArray]:
    """Pieces of two photographs, each as patches [n_i, 16] with n_i from 20 to 90, and labels."""
    draw = np.random.default_rng(0)
    videos, labels = [], []
    for label, picture in enumerate((skimage.data.camera(), skimage.data.brick())):
        for _ in range(12):
            corners = draw.integers(0, 512 - SIDE, size=(draw.integers(20, 90), 2))
            rows = [picture[y : y + SIDE, x : x + SIDE].ravel() for y, x in corners]
            videos.append(np.array(rows, np.float32) / 255)
            labels.append(label)
    return videos, np.array(labels)


@pytest.mark.parametrize(("estimator", "settings"), EVERY)
def test_vectors_are_those_of_a_run(estimator, settings, patches) -> None:
    videos, _ = patches
    counts = torch.tensor([len(video) for video in videos])
    sample = FitSample(
        frames=torch.from_numpy(np.concatenate(videos)).unsqueeze(1),
        video=torch.arange(len(videos)).repeat_interleave(counts),
        seed=3,
    )
    encoder = fit_encoder(estimator._base, sample, settings, "signed_sqrt_l2")
    expected = np.stack([encoder.encode(torch.from_numpy(video)) for video in videos])
    found = clone(estimator).fit(videos).transform(videos)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_fisher_vectors_are_those_of_scikit_image(patches) -> None:
    videos, _ = patches
    mine = FisherVector(5, max_iterations=8, normalisation="none", random_state=0).fit(videos)
    gmm = mine.encoder_.gmm
    theirs = GaussianMixture(5, covariance_type="diag")
    theirs.weights_, theirs.means_, theirs.covariances_ = (
        part.numpy() for part in (gmm.weights, gmm.means, gmm.variances)
    )
    theirs.precisions_cholesky_ = 1 / np.sqrt(theirs.covariances_)
    for video, vector in zip(videos, mine.transform(videos), strict=True):
        other = fisher_vector(video.astype(float), theirs)
        # First the weights' gradient, which is not ours; the sigma block has the opposite sign.
        expected = np.concatenate([other[5 : 5 + 80], -other[5 + 80 :]])
        np.testing.assert_allclose(vector, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("estimator", [one for one, _ in EVERY])
def test_pickles_give_the_same_vectors(estimator, patches) -> None:
    videos, _ = patches
    fitted = clone(estimator).fit(videos)
    file = io.BytesIO()
    joblib.dump(fitted, file)
    loaded = joblib.load(file)
    assert (loaded.transform(videos[:3]) == fitted.transform(videos[:3])).all()
    assert str(loaded.get_params()) == str(estimator.get_params())
    names = loaded.get_feature_names_out()
    prefix = type(estimator).__name__.lower()
    assert list(names[:2]) == [f"{prefix}0", f"{prefix}1"]
    assert len(names) == loaded.transform(videos[:1]).shape[1]
    unfitted = clone(fitted)
    assert not hasattr(unfitted, "encoder_")
    with pytest.raises(NotFittedError):
        unfitted.transform(videos)


def test_a_pipeline_is_searched(patches) -> None:
    videos, labels = patches
    steps = [("encode", FisherVector(max_iterations=5, random_state=0)), ("svm", LinearSVC())]
    grid = {"encode__num_components": [1, 4], "svm__C": [0.1, 10]}
    search = GridSearchCV(Pipeline(steps), grid, cv=3).fit(videos, labels)
    assert search.best_score_ > 0.9
    assert search.predict(videos[:2]).tolist() == labels[:2].tolist()


def test_random_states_are_those_of_scikit_learn(patches) -> None:
    videos, _ = patches
    drawn = [
        Vlad(3, random_state=state).fit(videos).transform(videos)
        for state in (np.random.RandomState(5), np.random.RandomState(5), 7)
    ]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


def test_a_class_loss_wants_labels(patches) -> None:
    videos, labels = patches
    plain = FvVae(3, num_steps=15, batch_descriptors=64, random_state=0)
    guided = clone(plain).set_params(lambda3=10.0)
    with pytest.raises(ValueError, match=r"y: expected a label for each of 24 .* got none"):
        guided.fit(videos)
    vectors = guided.fit_transform(videos, np.array(["camera", "brick"])[labels])
    assert np.abs(vectors - plain.fit_transform(videos)).max() > 1e-3


def test_videos_without_a_descriptor_are_zeros(patches) -> None:
    videos, _ = patches
    empty = np.empty((0, SIDE**2), np.float32)
    some = [empty, *videos[:4], empty]
    vectors = Vlad(3, random_state=0).fit(some).transform([*some, *videos * 60])
    assert not vectors[[0, 5]].any()
    np.testing.assert_allclose(vectors[1], vectors[6], rtol=1e-6)
    with pytest.raises(ValueError, match="X: expected at least one descriptor, got none"):
        Vlad(3).fit([empty])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda videos: videos[0], r"X: expected a list of arrays \[n_i, C\], .* 1 dimensions"),
        (lambda videos: [], r"X: expected arrays \[n_i, C\], .* got none"),
        (lambda videos: [videos[0], videos[1][:, 1:]], r"one C, got C of \[15, 16\]"),
        (lambda videos: [videos[0] * np.nan], "Input X contains NaN"),
        (
            lambda videos: [videos[0][:, 1:]],
            "X has 15 features, but Vlad is expecting 16 features as input",
        ),
    ],
)
def test_wrong_descriptors_are_refused(changed, message: str, patches) -> None:
    videos, _ = patches
    with pytest.raises(ValueError, match=message):
        Vlad(2, random_state=0).fit(videos).transform(changed(videos))


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (Vlad(0), "Vlad.num_centroids: expected at least 1, got 0"),
        (FvVae(optimiser="sgd"), "FvVae.optimiser: expected one of"),
        (FvVae(batch_descriptors=0), "FvVae.batch_descriptors: expected at least 1, got 0"),
        (FisherVector(normalisation="l3"), "normalisation: expected one of"),
        (BilinearPooling("half"), "BilinearPooling.form: expected one of"),
        (FisherVector(pca_whiten=True), "pca_whiten: expected false where pca_components is 0"),
    ],
)
def test_wrong_parameters_are_refused_by_fit(estimator, message: str, patches) -> None:
    with pytest.raises(ValueError, match=message):
        estimator.fit(patches[0])
