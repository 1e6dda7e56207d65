"""What holds of every maker of results: a new entry of MAKERS has all of it checked."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.evaluate import step as evaluate_step
from pipelines.ledger import marks
from pipelines.ledger.accounts import Spent
from pipelines.run.folders import OF_RESULTS
from pipelines.run.job import Job
from pipelines.run.makers import MAKERS, Maker, Result
from pipelines.storage.store import DONE
from pipelines.storage.tables import SCORES
from tests.pipelines.run.examples import example

TRAINED = ("svm", "networks")
"""Makers that score with what earlier steps have trained."""

pytestmark = pytest.mark.parametrize("name", MAKERS)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return example(str(tmp_path / "run"), "classify.fusions=late_weighted")


def test_its_results_have_names_and_folders_of_their_own(name: str, job: Job) -> None:
    results = list(MAKERS[name].results(job))
    assert results
    assert {result.pair for result in results} <= {*job.results}
    folders = [job.scores(*result.pair) for result in results]
    assert len({*folders}) == len(folders)
    for result in results:
        assert {*result.tables} <= {*OF_RESULTS} - {"scores"}
        assert {*result.parts} <= {*job.results}, "what is fused is a result too"


def test_its_function_is_there_and_says_what_it_does(name: str) -> None:
    function = MAKERS[name].function()
    assert callable(function)
    assert function.__doc__


def test_other_videos_give_other_folders(name: str, tmp_path: Path) -> None:
    few, many = (example(str(tmp_path), videos=number) for number in (6, 8))
    for result in MAKERS[name].results(few):
        assert few.scores(*result.pair) != many.scores(*result.pair)


def test_the_step_is_complete_only_with_its_results(name: str, job: Job) -> None:
    job.finish("classify")
    assert job.is_complete("classify")
    result = next(iter(MAKERS[name].results(job)))
    marks.remove(job.store, f"{job.scores(*result.pair)}/{DONE}")
    assert not job.is_complete("classify")


def test_records_name_its_folders(name: str, job: Job) -> None:
    tables = job.tables()
    for result in MAKERS[name].results(job):
        assert tables["scores/" + "-".join(result.pair)] == job.scores(*result.pair)


def test_two_results_of_one_name_are_refused(
    name: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = next(iter(MAKERS[name].results(job))).pair
    monkeypatch.setitem(MAKERS, "again", Maker(lambda run: [Result(*pair, "other")], "x:y"))
    with pytest.raises(ValueError, match=f"expected each name once, got two of {'-'.join(pair)}"):
        _ = job.results


@pytest.mark.ray
def test_evaluation_takes_up_its_scores(name: str, local_ray: None, tmp_path: Path) -> None:
    """By SCORES alone: those of classifiers are random numbers here."""
    job = example(str(tmp_path / "run"), "classify.fusions=")
    draw = np.random.default_rng(0)
    for name_of, maker in MAKERS.items():
        if name_of not in TRAINED:
            assert maker.function()(job) == Spent(0.0, ())
            continue
        for result in maker.results(job):
            _publish_random(job, result, draw)
    metrics = evaluate_step.evaluate(job).metrics.to_pylist()
    for result in MAKERS[name].results(job):
        numbers = [
            row["value"]
            for row in metrics
            if (row["encoder"], row["metric"], row["split"]) == (result.encoder, "accuracy", "all")
            and result.stream in (row["stream"], row["fusion"])
        ]
        assert len(numbers) == 1
        assert 0 <= numbers[0] <= 1


def _publish_random(job: Job, result: Result, draw: np.random.Generator) -> None:
    for fold in job.folds:
        rows = [
            {
                "video_id": video["video_id"],
                "encoder": result.encoder,
                "stream": result.stream,
                "fold": fold,
                "label": label,
                "is_true": label in video["labels"],
                "score": float(draw.normal()),
            }
            for video in job.manifest.to_pylist()
            if video["fold"] == fold
            for label in "ab"
        ]
        name = f"{job.scores(*result.pair)}/fold-{fold:05d}.parquet"
        job.store.publish_table(name, SCORES.build(rows), {})
