"""METRICS by tasks: the bytes are those of one process that reads SCORES and makes one result after
the other."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from encoders.descriptors.streams import Stream
from pipelines.errors import RunError
from pipelines.evaluate import results, step
from pipelines.evaluate.best import best_of
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.storage.store import Store
from pipelines.storage.tables import METRICS, SCORES

CLASSES = ["jump", "run", "wave"]
NUM = 48
STREAMS = ("n_appearance", "n_difference")


def make_job(root: Path, *settings: str, num_folds: int = 3, several: bool = False) -> Job:
    """A run of two encoders on two streams, with SCORES in files of one fold each."""
    config = Config().with_settings(
        [
            "encode.encoders=ave,vlad",
            "evaluate.bootstrap=20",
            "evaluate.top_k=2,9",
            "classify.fusions=",
            *settings,
        ]
    )
    labels = [
        sorted({CLASSES[i % 3], *(["wave"] if several and i % 5 == 0 else [])}) for i in range(NUM)
    ]
    manifest = pa.table(
        {
            "video_id": [f"v{i:02d}" for i in range(NUM)],
            "uri": [f"/v{i:02d}" for i in range(NUM)],
            "source": ["now"] * NUM,
            "labels": pa.array(labels, pa.list_(pa.string())),
            "group": [f"g{i // 4}" for i in range(NUM)],
            "fold": pa.array([i // 4 % num_folds for i in range(NUM)], pa.int32()),
        }
    )
    streams = {name: Stream(name, "n", name[2:], 50, 8) for name in STREAMS}
    weights = SimpleNamespace(identity="none", description="none", file="weights/w.json")
    job = Job(Store(str(root)), config, manifest, "given", num_folds, weights, streams)
    for seed, pair in enumerate(job.pairs()):
        _publish_scores(job, pair, np.random.default_rng(seed))
    return job


def _publish_scores(job: Job, pair: tuple[str, str], draw: np.random.Generator) -> None:
    rows = job.manifest.to_pylist()
    for fold in job.folds:
        scored = [
            {
                "video_id": row["video_id"],
                "encoder": pair[0],
                "stream": pair[1],
                "fold": fold,
                "label": label,
                "is_true": label in row["labels"],
                "score": float(draw.normal() + (label in row["labels"])),
            }
            for row in rows
            if row["fold"] == fold
            for label in CLASSES
        ]
        name = f"{job.scores(*pair)}/fold-{fold:05d}.parquet"
        job.store.publish_table(name, SCORES.build(scored), {})


def in_one_process(job: Job) -> tuple[list[dict], results.ScoreMatrix]:
    """All METRICS rows, and the matrix of the first of the best results."""

    def read(encoder: str, stream: str) -> results.ScoreMatrix:
        folder = job.scores(encoder, stream)
        return step.read_scores(job.store, encoder, stream, folder, job.failures)

    settings, rows, best, highest = job.config.evaluate, [], None, -1.0
    for matrix, best_part in results.results(job.pairs(), settings, read):
        seed = job.config.run.seed
        own = results.metric_rows(matrix, settings, job.protocol, seed)
        own += results.gain_rows(matrix, own, best_part, settings, seed)
        rows += own
        metric = results.headline_metric(matrix.multi_label)
        value = next(r["value"] for r in own if (r["split"], r["metric"]) == ("all", metric))
        if value > highest:
            best, highest = matrix, value
    return rows, best


@pytest.mark.ray
@pytest.mark.parametrize(("num_folds", "several"), [(3, False), (1, True)])
def test_tasks_make_the_bytes_of_one_process(
    local_ray: None, tmp_path: Path, num_folds: int, several: bool
) -> None:
    job = make_job(tmp_path / "job", num_folds=num_folds, several=several)
    evaluated = step.evaluate(job)
    rows, best = in_one_process(job)
    alone = Store(str(tmp_path / "alone"))
    alone.publish_table("metrics.parquet", METRICS.build(rows), job.footer("evaluate"))
    expected = alone.read("metrics.parquet")
    assert job.store.read(f"{job.metrics}/metrics.parquet") == expected
    assert evaluated.metrics.to_pylist() == rows
    assert {row["fusion"] for row in rows} >= {"none", "given", "two_stream"}
    assert "ave+vlad" in {row["encoder"] for row in rows}
    assert evaluated.best == best_of(best, first_fold=0)
    assert {stage.name for stage in evaluated.spent.stages} == {"read", "measure"}


@pytest.mark.ray
def test_scores_that_are_not_there_are_a_message(local_ray: None, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    pair = job.pairs()[1]
    (first, *_) = job.store.files(job.scores(*pair))
    rows = job.store.read_table(job.scores(*pair))
    kept = pa.Table.from_pylist(rows.to_pylist()[1:16], schema=SCORES.schema())
    job.store.publish_table(first, kept, {})
    with pytest.raises(RunError, match=r"expected a score for each class of each video.*'v00'"):
        step.evaluate(job)
    job.store.delete(first)
    job.store.delete_folder(job.scores(*pair))
    with pytest.raises(RunError, match="expected scores of tested videos, found none"):
        step.evaluate(job)


def test_facts_of_the_best_result_are_those_of_plain_loops() -> None:
    draw = np.random.default_rng(0)
    targets = np.eye(3)[np.arange(40) % 3]
    scores = draw.normal(size=targets.shape) + targets
    matrix = results.ScoreMatrix(
        encoder="e",
        stream="s",
        video_ids=[f"v{i:02d}" for i in range(40)],
        folds=np.arange(40) // 10,
        classes=CLASSES,
        scores=scores,
        targets=targets,
    )
    best = best_of(matrix, first_fold=2)
    guesses = [max(range(3), key=row.__getitem__) for row in scores.tolist()]
    found = sorted(range(40), key=lambda i: -max(scores[i]))
    wrong = [i for i in found if guesses[i] != i % 3]
    right = [i for i in found if guesses[i] == i % 3]
    picked = wrong[:6] + right[:6]
    assert len(wrong) > 6
    assert [pick.video_id for pick in best.picks] == [f"v{i:02d}" for i in picked]
    assert [pick.fold for pick in best.picks] == [i // 10 for i in picked]
    assert [pick.predicted for pick in best.picks] == [CLASSES[guesses[i]] for i in picked]
    assert [pick.score for pick in best.picks] == [max(scores[i]) for i in picked]
    assert best.chance == pytest.approx(14 / 40)
    assert sum(map(sum, best.confusion.matrix)) == 40
    assert best.queries == ("v00", "v07", "v15", "v23", "v31", "v39")
    assert best.first_queries == ("v20", "v21", "v23", "v25", "v27", "v29")
    assert best_of(matrix, first_fold=7).first_queries == ()
