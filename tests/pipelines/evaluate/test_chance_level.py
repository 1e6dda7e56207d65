"""Labels that mean nothing are told at chance, also by codebooks with a class loss, which see
labels.

Descriptors are noise, so that only a label that reached a codebook could make a difference. What a
codebook is fitted on is what `corpus.fit` would give it; Ray takes no part.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import binom

from encoders.descriptors.streams import Stream
from encoders.registry import fit_encoder
from pipelines.cluster.checkpoints import Checkpoints
from pipelines.cluster.teams import Team
from pipelines.fit import step
from pipelines.fit.codebooks import Curves, fit_sample
from pipelines.index.folds import assign_folds
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.storage.store import Store
from tests.encoders.in_memory import fit_one_vs_rest

NUM_VIDEOS, NUM_GROUPS, NUM_CLASSES = 60, 3, 4
FRAMES, CELLS, WIDTH = 2, 2, 48
ENCODER = (
    "fv_vae@lambda3=1000:hidden=:num_latents=3:optimiser=adam:learning_rate=0.03:dropout=0"
    ":num_steps=100:batch_frames=64"
)
"""Strong and quick enough to learn by heart the label of every video that it sees."""

NUM_TRIALS = 9


def make_job(root: Path, kind: str, seed: int) -> Job:
    """A run on labels that are drawn for each video; a split into two tests one group.

    Of a mere permutation the labels that are left out are known to be the rarer ones in training.
    """
    names = [f"v{i:02d}" for i in range(NUM_VIDEOS)]
    group = np.arange(NUM_VIDEOS) % NUM_GROUPS
    drawn = np.random.default_rng(seed).integers(NUM_CLASSES, size=NUM_VIDEOS)
    videos = pa.table(
        {
            "video_id": names,
            "uri": names,
            "source": names,
            "labels": [[f"c{k}"] for k in drawn],
            "group": [f"g{k}" for k in group],
            "split": ["test" if k == seed % NUM_GROUPS else "train" for k in group],
        }
    )
    config = Config().with_settings([f"encode.encoders={ENCODER}", f"split.kind={kind}"])
    manifest, used, num_folds = assign_folds(videos, config.split, seed)
    weights = SimpleNamespace(identity="none", description="none", is_random=False)
    streams = {"n_appearance": Stream("n_appearance", "n", "appearance", CELLS, WIDTH)}
    return Job(Store(str(root)), config, manifest, used, num_folds, weights, streams)


def noise(seed: int) -> torch.Tensor:
    """[videos, frames, cells, channels], not negative; a video's descriptors are much alike."""
    rng = np.random.default_rng([seed, 1])  # not what the labels are drawn with
    own = rng.normal(size=(NUM_VIDEOS, 1, 1, WIDTH))
    within = 0.3 * rng.normal(size=(NUM_VIDEOS, FRAMES, CELLS, WIDTH))
    return torch.from_numpy(own + within + 1).clamp_min(0).float()


def num_right(job: Job, descriptors: torch.Tensor, fold: int) -> tuple[int, int]:
    """Of the videos that a fold tests, how many its classifier tells; and how many there are."""
    book = job.codebook(ENCODER, "n_appearance", fold)
    (task,) = [one for one in step.fit_tasks(job) if one.codebook == book]
    names = job.manifest["video_id"].to_pylist()
    share = descriptors.flatten(0, 1), np.repeat(names, FRAMES).tolist()
    team, curves = Team(), Curves(book, 1, None)
    kept = Checkpoints(job.store, np.inf, team)
    sample = fit_sample(task, share, job.config, team, curves, kept, None)
    encoder = fit_encoder(book.base, sample, book.settings, book.normalisation)
    lengths = [FRAMES * CELLS] * NUM_VIDEOS
    vectors = encoder.encode_batch(descriptors.flatten(0, 2), lengths).numpy()

    label = np.array([int(names[0][1:]) for names in job.manifest["labels"].to_pylist()])
    is_tested = job.manifest["fold"].to_numpy() == fold
    targets = np.eye(NUM_CLASSES)[label[~is_tested]]
    svm = fit_one_vs_rest(vectors[~is_tested], targets, c=1.0, tolerance=1e-2)
    told = svm.decision(vectors[is_tested]).argmax(1)
    return int((told == label[is_tested]).sum()), int(is_tested.sum())


def right_of_all(root: Path, kind: str) -> tuple[int, tuple[float, float]]:
    """Videos told over all trials, and between which numbers that is by chance but one time in
    10,000.

    Each trial tests one fold, on labels of its own: then the number is exactly binomial. The folds
    of one draw would depend on each other.
    """
    found = []
    for seed in range(NUM_TRIALS):
        job = make_job(root, kind, seed)
        found.append(num_right(job, noise(seed), seed % job.num_folds))
    right, tested = np.sum(found, axis=0)
    return right, binom.interval(1 - 1e-4, tested, 1 / NUM_CLASSES)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train knows the device of its own workers only."""
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))


@pytest.mark.parametrize("kind", ["leave_one_group_out", "given"])
def test_shuffled_labels_are_told_at_chance_by_a_codebook_that_sees_labels(
    tmp_path: Path, kind: str
) -> None:
    right, (low, high) = right_of_all(tmp_path, kind)
    assert low <= right <= high


def test_a_codebook_that_saw_the_tested_labels_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By fewer videos told than by chance allows: a bound from above alone would not see it."""
    everything = frozenset(f"v{i:02d}" for i in range(NUM_VIDEOS))
    monkeypatch.setattr(Job, "training_videos", lambda self, fold: everything)
    right, (low, _) = right_of_all(tmp_path, "leave_one_group_out")
    assert right < low
