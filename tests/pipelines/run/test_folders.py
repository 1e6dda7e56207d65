"""Folders of a run are named by what made what is in them: what changes a result changes its
folder, and nothing else."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from encoders.descriptors.streams import Stream
from pipelines import corpus
from pipelines.ledger.accounts import Account, Spent
from pipelines.run import record
from pipelines.run.job import Job
from pipelines.run.steps import STEPS
from pipelines.settings.config import Config
from pipelines.storage.store import Store

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
    weights = SimpleNamespace(identity="w", description="w", file="weights/w.json")
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


def run(one: Job, monkeypatch: pytest.MonkeyPatch, *steps: str, restore: bool = True) -> list[str]:
    """The steps that were run, none of which does more than finish and publish what marks name."""
    done = []

    def step(name: str):
        def act(given: Job) -> tuple[Account, Spent]:
            done.append(name)
            if name == "describe":
                given.store.publish(given.weights.file, b"{}")
            if name == "evaluate":
                given.store.publish(given.report, b"</html>")
                file = f"{given.metrics}/metrics.parquet"
                given.store.publish_table(file, pa.table({"split": ["all"], "class": ["a"]}), {})
            return Account("x", 0, 0, 0), Spent(0.0, ())

        return act

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(corpus, name, step(name))
        patch.setattr(corpus.connect, "connect", lambda *_: None)
        patch.setattr(corpus, "outcome", lambda *_: None)
        patch.setattr("ray.cluster_resources", dict)
        corpus.run(one, steps or tuple(STEPS), None, restore=restore)
    return done


@pytest.mark.parametrize("names", [("", ""), ("split1", "split2")])
def test_run_json_and_the_report_are_of_the_configuration_that_was_run_last(
    tmp_path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    def made(encoder: str, name: str) -> Job:
        return job(str(tmp_path), f"encode.encoders={encoder}", f"split.name={name}")

    first, other = made("ave", names[0]), made("vlad", names[1])
    early = tuple(STEPS)[:4]
    for one in (first, other):
        assert run(one, monkeypatch) != []
        assert record.is_described(one)
        assert record.is_reported(one)
    # Nothing that cost something goes because another setting was tried.
    assert first.is_complete("evaluate")
    assert run(first, monkeypatch, *early, restore=False) == []
    assert not record.is_described(first)
    assert run(first, monkeypatch, *early) == []
    assert record.is_described(first)
    assert first.store.read_json("run.json")["tables"] == first.tables()
    assert not record.is_reported(first), "there is one page, and it was rendered for the other one"
    assert run(first, monkeypatch) == ["evaluate"]
    assert record.is_reported(first)
    assert run(first, monkeypatch) == []
    assert not record.is_described(other)
    assert not record.is_reported(other)


def test_a_setting_that_changes_no_result_is_in_run_json_and_renders_no_report(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = job(str(tmp_path)), job(str(tmp_path), "decode.timeout_s=9")
    run(first, monkeypatch)
    assert run(other, monkeypatch) == []
    assert other.store.read_json("run.json")["config"]["decode"]["timeout_s"] == 9


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_run_json_is_written_anew(
    tmp_path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    one = job(str(tmp_path))
    run(one, monkeypatch)
    one.store.publish("run.json", damage)
    assert not record.is_described(one)
    run(one, monkeypatch)
    assert record.is_described(one)
    assert run(one, monkeypatch) == []


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
