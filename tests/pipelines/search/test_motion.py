"""What streams of motion tell and appearance cannot: the direction of time, and one motion over
many backgrounds.

The corpus is drawn: over each of eight backgrounds an object crosses the frame, once to the right
and once downwards, and both clips are there with their frames in reverse order too. The codec is
lossless and the sampling symmetric in time, so that a clip and its reverse show the same eight
frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL.Image import Image
from scipy.stats import binom

from encoders.codebooks.sample import FitSample
from encoders.registry import fit_encoder
from encoders.settings import VladSettings
from pipelines.demo.motions import CANVAS_SIDE, OBJECT_SIDE, Motion, draw_frames
from pipelines.demo.scenes import scene_canvas, scene_objects
from pipelines.describe.stage import DescribeFrames, described_streams
from pipelines.settings.config import Config
from pipelines.storage.columns import descriptors_from_arrow
from tests.encoders.in_memory import fit_one_vs_rest
from tests.pipelines.video.segments import decoded

pytestmark = pytest.mark.nightly

NUM_BACKGROUNDS, NUM_FRAMES, WIDTH_PX, HEIGHT_PX = 8, 24, 160, 120
CLASSES = ("right", "left", "down", "up")
"""The second of a pair is the first in reverse order."""
PAIRED = np.arange(4 * NUM_BACKGROUNDS) ^ 1
"""The place of each clip's reverse."""
APPEARANCE = "features_12_appearance"
DIFFERENCE = "features_12_difference_gap2_whole_map"
NEIGHBOURS = "features_12_difference"
FLOW = "features_12_flow"
STREAMS = "appearance,difference@gap=2:scaling=whole_map,difference,flow"


@dataclass(frozen=True, eq=False)
class Corpus:
    """V clips, background by background in the order of `CLASSES`.

    Attributes:
        frame_indices: int64 [V, 8].
        descriptors: {stream: float32 [V, frames, 50, C]}.
    """

    frame_indices: np.ndarray
    descriptors: dict[str, torch.Tensor]

    @property
    def background(self) -> np.ndarray:
        return np.repeat(np.arange(NUM_BACKGROUNDS), len(CLASSES))

    @property
    def motion(self) -> np.ndarray:
        """Places in `CLASSES`."""
        return np.tile(np.arange(len(CLASSES)), NUM_BACKGROUNDS)


def crossing(background: int, axis: int) -> list[Image]:
    """The frames of an object that moves along an axis, at a place across it that differs between
    backgrounds."""
    path = np.full((NUM_FRAMES, 1, 2), np.random.default_rng(background).uniform(-0.2, 0.2))
    reach = (0.45, 0.3)[axis]
    path[:, 0, axis] = np.linspace(-reach, reach, NUM_FRAMES)
    motion = Motion(
        centre=np.zeros((NUM_FRAMES, 2)),
        zoom=np.ones(NUM_FRAMES),
        angle_rad=np.zeros(NUM_FRAMES),
        brightness=np.ones(NUM_FRAMES),
        objects=path,
    )
    canvas = scene_canvas(0, background, round(CANVAS_SIDE * HEIGHT_PX))
    objects = scene_objects(0, background, round(OBJECT_SIDE * HEIGHT_PX))[:1]
    return list(draw_frames(canvas, objects, motion, WIDTH_PX, HEIGHT_PX))


def write_lossless(path: Path, frames: list[Image]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def corpus(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("motion")
    paths = []
    for background in range(NUM_BACKGROUNDS):
        for axis in (0, 1):
            frames = crossing(background, axis)
            for ordered in (frames, frames[::-1]):
                paths.append(folder / f"{len(paths):02d}.mp4")
                write_lossless(paths[-1], ordered)
    config = Config().with_settings(
        [
            "sampling.policy=uniform",
            "sampling.num_frames=8",
            "describe.backbone=squeezenet1_0",
            "describe.nodes=features.12",
            f"describe.streams={STREAMS}",
            "picture.resize_px=112",
            "picture.crop_px=112",
        ]
    )
    frames = pa.concat_tables(decoded(config, *paths))
    weights = (data / "weights" / "squeezenet1_0.safetensors").read_bytes()
    streams = described_streams(config)
    described = DescribeFrames(lambda: weights, config, streams, num_threads=1)(frames)
    assert described["status"].to_pylist() == ["ok"] * len(paths)
    descriptors = {}
    for name, stream in streams.items():
        clips = np.stack([descriptors_from_arrow(value) for value in described[name]])
        shape = (len(paths), -1, stream.cells, stream.width)
        descriptors[name] = torch.from_numpy(clips).float().view(shape)
    return Corpus(np.array(described["frame_indices"].to_pylist()), descriptors)


Fold = tuple[np.ndarray, np.ndarray]
"""Which clips train, [V] bool: those of all backgrounds but one; and the vectors [V, D] of all
clips, by the codebook of those that train."""


@pytest.fixture(scope="module")
def folds(corpus: Corpus) -> dict[str, list[Fold]]:
    """{stream: a fold for each background}."""
    streams = (APPEARANCE, DIFFERENCE, FLOW)
    return {name: list(left_out(corpus, corpus.descriptors[name])) for name in streams}


def left_out(corpus: Corpus, descriptors: torch.Tensor) -> Iterator[Fold]:
    for background in range(NUM_BACKGROUNDS):
        is_training = corpus.background != background
        own = descriptors[torch.from_numpy(is_training)]
        video = torch.arange(len(own)).repeat_interleave(own.shape[1])
        sample = FitSample(frames=own.flatten(0, 1), video=video)
        vlad = fit_encoder("vlad", sample, VladSettings(num_centroids=8), "signed_sqrt_l2")
        lengths = [descriptors[0, ..., 0].numel()] * len(descriptors)
        yield is_training, vlad.encode_batch(descriptors.flatten(0, 2), lengths).numpy()


def scores_of(fold: Fold, motion: np.ndarray) -> np.ndarray:
    """[m, 4] of the m clips that the fold leaves out."""
    is_training, vectors = fold
    targets = np.eye(len(CLASSES))[motion[is_training]]
    return fit_one_vs_rest(vectors[is_training], targets).decision(vectors[~is_training])


def num_right(folds: list[Fold], motion: np.ndarray) -> int:
    """Of all clips, each told by the SVM that did not see its background."""
    return sum(int((scores_of(fold, motion).argmax(1) == motion[~fold[0]]).sum()) for fold in folds)


def nearest(folds: list[Fold], is_candidate: np.ndarray) -> np.ndarray:
    """[V]: the clip nearest to each, among those that `is_candidate` [V, V] gives it, by the
    codebook that did not see its background."""
    found = np.empty(len(PAIRED), np.int64)
    for is_training, vectors in folds:
        near = np.where(is_candidate, vectors @ vectors.T, -np.inf).argmax(1)
        found[~is_training] = near[~is_training]
    return found


def test_appearance_is_the_same_in_both_directions_of_time(
    corpus: Corpus, folds: dict[str, list[Fold]]
) -> None:
    """So nothing made of it can tell them apart, and an SVM is as sure of one as of the other."""
    indices = corpus.frame_indices
    assert (indices[PAIRED] == NUM_FRAMES - 1 - indices[:, ::-1]).all()
    assert (indices[PAIRED] == np.arange(1, NUM_FRAMES, 3)).all()
    found = corpus.descriptors[APPEARANCE]
    torch.testing.assert_close(found[PAIRED], found.flip(1), rtol=0, atol=1e-3)
    for fold in folds[APPEARANCE]:
        np.testing.assert_allclose(fold[1][PAIRED], fold[1], atol=1e-4)
        scores = scores_of(fold, corpus.motion)
        np.testing.assert_allclose(scores[:, [1, 0, 3, 2]], scores, atol=1e-2)


def test_differences_of_a_reversed_clip_have_the_other_sign(corpus: Corpus) -> None:
    """Of sampled neighbours, which are the same pairs of frames: what was positive is negative."""
    found = corpus.descriptors[NEIGHBOURS]
    other = found.flip(1).roll(found.shape[-1] // 2, dims=-1)
    torch.testing.assert_close(found[PAIRED], other, rtol=0, atol=2e-3)
    assert (found[PAIRED] - found.flip(1)).abs().max() > 0.1


@pytest.mark.parametrize(("stream", "least"), [(DIFFERENCE, 28), (FLOW, 31)])
def test_motion_tells_the_directions_of_time_apart(
    corpus: Corpus, folds: dict[str, list[Fold]], stream: str, least: int
) -> None:
    """Of 32 clips over backgrounds that neither codebook nor SVM has seen.

    Who knows the axis and guesses the direction is right on 28 or more in one of 100,000 cases.
    """
    assert num_right(folds[stream], corpus.motion) >= least


def test_neighbours_share_the_background_in_appearance_and_the_motion_in_flow(
    corpus: Corpus, folds: dict[str, list[Fold]]
) -> None:
    clip = np.arange(len(PAIRED))
    is_other = clip != clip[:, None]
    near = nearest(folds[APPEARANCE], is_other)
    assert (near == PAIRED).all()
    near = nearest(folds[APPEARANCE], is_other & (clip != PAIRED[:, None]))
    assert (corpus.background[near] == corpus.background).sum() >= 29
    near = nearest(folds[FLOW], is_other)
    assert (corpus.motion[near] == corpus.motion).sum() >= 30


@pytest.mark.parametrize(
    ("stream", "least", "most"), [(APPEARANCE, 0, 16), (DIFFERENCE, 20, 32), (FLOW, 30, 32)]
)
def test_the_same_motion_over_another_background_is_near_where_motion_is_described(
    corpus: Corpus, folds: dict[str, list[Fold]], stream: str, least: int, most: int
) -> None:
    """Neighbours over other backgrounds. Chance is 8 of 32: more than 16 is one case in 1,600, 20
    or more one in 100,000."""
    near = nearest(folds[stream], corpus.background != corpus.background[:, None])
    assert least <= (corpus.motion[near] == corpus.motion).sum() <= most


@pytest.mark.parametrize("stream", [APPEARANCE, FLOW])
def test_labels_that_mean_nothing_are_told_at_chance(
    folds: dict[str, list[Fold]], stream: str
) -> None:
    """Neither less nor more than a binomial allows but one time in a million, though flow tells
    true labels well."""
    rng, num_trials = np.random.default_rng(0), 25
    # Drawn for each clip: of a mere permutation those that are left out are known to be the rarer
    # ones in training.
    labels = rng.integers(len(CLASSES), size=(num_trials, len(PAIRED)))
    right = sum(num_right(folds[stream], own) for own in labels)
    low, high = binom.interval(1 - 1e-6, labels.size, 1 / len(CLASSES))
    assert low <= right <= high
