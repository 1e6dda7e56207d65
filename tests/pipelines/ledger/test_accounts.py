"""Planned = done + failed, or an error that names what is missing."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import RunError
from pipelines.ledger.accounts import Spent, Stage, merged, settle

names = st.frozensets(st.sampled_from("abcdefgh"))


@given(names, names, names)
def test_planned_is_done_and_failed_or_an_error(
    planned: frozenset[str], done: frozenset[str], failed: frozenset[str]
) -> None:
    missing = planned - done - failed
    if missing:
        with pytest.raises(
            RunError, match=f"{len(missing)} of {len(planned)} planned videos"
        ) as said:
            settle("describe", "videos", planned, done, failed)
        for name in sorted(missing)[:5]:
            assert name in str(said.value)
    else:
        account = settle("describe", "videos", planned, done, failed)
        assert account.planned == account.done + account.failed == len(planned)
        assert account.done == len(planned & done)


def test_it_reads_as_a_sentence() -> None:
    account = settle("index", "videos", {"a", "b", "c"}, {"a", "c", "old"}, {"b"})
    assert str(account) == "3 videos planned = 2 done + 1 failed"


def stage(name: str, busy_s: float, waited_s: float, workers: int = 1) -> Stage:
    return Stage(name, workers, busy_s, 2.0, waited_s)


def test_a_step_is_bound_by_its_busiest_stage() -> None:
    spent = Spent(
        2.0, (stage("decode", 97.0, 3.0), stage("describe", 40.0, 60.0), stage("write", 1.0, 99.0))
    )
    assert spent.bound_by(100.0) == "decode-bound"
    assert (
        spent.words(100.0)
        == "decode-bound: decode 0.97 busy, describe 0.40 busy, write 0.01 busy, 2 s until the"
        " first work"
    )
    assert spent.sentence(100.0) == "waiting for decoding 97 % of the time"
    assert spent.sentence(3.9) == "2 s until workers had started"
    assert spent.bound_by(3.9) == "start-bound"
    network = Spent(2.0, (stage("decode", 40.0, 60.0), stage("describe", 160.0, 40.0, workers=2)))
    assert network.bound_by(100.0) == "network-bound"
    assert "describe x 2 0.80 busy" in network.words(100.0)
    assert network.sentence(100.0) == "waiting for the network 80 % of the time"
    assert dataclasses.replace(network, on_gpu=True).bound_by(100.0) == "GPU-bound"
    assert (
        Spent(1.0, (stage("read", 9.0, 1.0), stage("encode", 2.0, 8.0))).bound_by(9.0)
        == "storage-bound"
    )
    assert Spent(0.0, ()).words(5.0) == Spent(0.0, ()).bound_by(5.0) == ""
    assert Spent(0.0, ()).sentence(5.0) == ""


def test_passes_of_a_step_are_added_up() -> None:
    both = merged(
        [
            Spent(2.0, (stage("read", 10.0, 5.0),), working_s=15.0),
            Spent(0.0, ()),
            Spent(
                3.0,
                (stage("read", 20.0, 5.0, workers=3), stage("fit", 4.0, 5.0)),
                working_s=9.0,
                on_gpu=True,
            ),
        ]
    )
    assert (both.start_s, both.working_s) == (5.0, 24.0)
    # Three readers, and one that fits, in 15 + 9 s.
    assert both.stages == (
        stage("read", 30.0, 3 * 24.0 - 30.0, workers=3),
        stage("fit", 4.0, 24.0 - 4.0),
    )
    assert both.on_gpu


@given(
    st.lists(
        st.builds(
            Stage,
            st.sampled_from(["decode", "describe", "write"]),
            st.integers(1, 9),
            st.floats(0, 1e6),
            st.floats(0, 1e6),
            st.floats(0, 1e6),
        ),
        unique_by=lambda stage: stage.name,
        max_size=3,
    ),
    st.floats(0, 1e6),
)
def test_what_run_json_holds_reads_the_same(stages: list[Stage], start_s: float) -> None:
    spent = Spent(start_s, tuple(stages), on_gpu=True)
    record = json.loads(json.dumps(spent.record(100.0)))
    assert set(record) == ({"bound_by", "start_s", "stages"} if stages else set())
    again = Spent.of_record(record)
    for old, new in zip(spent.stages, again.stages, strict=True):
        assert (new.name, new.workers) == (old.name, old.workers)
        assert new.busy_s == pytest.approx(old.busy_s, abs=1e-3)
        assert 0 <= new.share <= 1
