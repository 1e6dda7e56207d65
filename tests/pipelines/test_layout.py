"""Folders of a run are named by what made what is in them: what changes a result changes its folder, and nothing else."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from encoders.descriptors import Stream
from pipelines.config import Config
from pipelines.layout import Job
from pipelines.storage import Store

STREAM = Stream("pool5_appearance", "pool5", "appearance", 50, 20)


def job(root: str, *settings: str, split: str = "given") -> Job:
    names = [f"v{n}" for n in range(6)]
    columns = {
        "video_id": names,
        "uri": names,
        "source": names,
        "labels": [["ab"[n % 2]] for n in range(6)],
        "group": names,
        "fold": pa.array([n % 2 for n in range(6)], pa.int32()),
    }
    config = Config().with_settings(["encode.encoders=ave", *settings])
    weights = SimpleNamespace(identity="w", description="w")
    return Job(Store(root), config, pa.table(columns), split, 2, weights, {STREAM.name: STREAM})


def scores(one: Job) -> list[str]:
    return [one.scores(*pair) for pair in one.scored()]


@pytest.mark.parametrize(
    ("settings", "is_drawn"),
    [
        ([], False),
        (["classify.c=1,10"], True),
        (["compress.kind=random_maclaurin"], True),
        (["compress.kind=pca", "compress.num_features=2"], True),
    ],
)
def test_the_seed_counts_where_something_is_drawn_with_it(
    tmp_path, settings: list[str], is_drawn: bool
) -> None:
    first, other = (job(str(tmp_path), *settings, f"run.seed={seed}") for seed in (0, 7))
    assert (scores(first) != scores(other)) == is_drawn
    assert first.metrics != other.metrics, "bootstrap draws"


def test_numbers_of_another_protocol_are_in_another_folder(tmp_path) -> None:
    first, other = (job(str(tmp_path), split=kind) for kind in ("given", "leave_one_group_out"))
    assert scores(first) == scores(other)
    assert first.metrics != other.metrics


@pytest.mark.parametrize(
    "setting", ["plan.num_cpus=8", "cluster.currency=EUR", "decode.timeout_s=9"]
)
def test_what_changes_no_result_changes_no_folder(tmp_path, setting: str) -> None:
    first, other = job(str(tmp_path)), job(str(tmp_path), setting)
    assert (first.descriptors, first.metrics) == (other.descriptors, other.metrics)
    assert scores(first) == scores(other)
