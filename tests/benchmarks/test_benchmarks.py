"""The benchmarks run, compare results first, and write what docs quote. Times are not tested."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import driver_resume, encoders, harness, networks, products
from benchmarks.harness import Disagreement, Options, Row, at_least, at_most

KEYS = {"measure", "against", "ratio", "target", "met", "detail"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    """Tiny sizes, and the thread count of the other tests afterwards."""
    for name, value in {"C": 16, "L": 7, "CELLS": 4}.items():
        monkeypatch.setattr(encoders, name, value)
    encoders._network.cache_clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    encoders._network.cache_clear()


@pytest.mark.parametrize(
    ("case", "num_rows"),
    [
        (encoders.fv_vae_against_product, 1),
        (encoders.gmm_against_skimage, 1),
        (encoders.gmm_against_product, 1),
        (encoders.whitening_against_encoding, 1),
        (networks.train, 1),
        (networks.score, 1),
        (networks.workers, 1),
        (networks.long_clips, 1),
    ],
)
@pytest.mark.nightly
def test_a_case_finds_equal_results_and_times_both_sides(case, num_rows: int) -> None:
    rows = case(Options(quick=True, threads=1))
    assert len(rows) == num_rows
    for row in rows:
        assert row.ratio > 0
        assert len(row.detail["seconds"]) in (2, 4)
        assert min(row.detail["seconds"].values()) > 0


def test_a_side_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    autograd = encoders._autograd
    monkeypatch.setattr(encoders, "_autograd", lambda x: 1.001 * autograd(x))
    with pytest.raises(Disagreement, match=r"FV-VAE against autograd: expected results within"):
        encoders.fv_vae_against_product(Options(quick=True, threads=1))


def one_case(options: Options) -> list[Row]:
    """A case
    of two rows"""
    assert options == Options(quick=True, threads=1)
    return [
        at_least("fast", "slow", 2.0, 3.0, videos=4),
        at_most("cost", "whole", 0.01, 0.05, videos=5),
    ]


def arguments(*given: str):
    return harness.parser("text").parse_args(["--quick", "--threads", "1", *given])


def test_the_file_and_the_table_say_what_was_met(tmp_path, capsys) -> None:
    file = tmp_path / "folder" / "rows.json"
    assert harness.main([one_case], arguments("--json", str(file))) == 0
    rows = json.loads(file.read_text())
    assert [row.keys() == KEYS for row in rows] == [True, True]
    assert [row["met"] for row in rows] == [False, True]
    assert (rows[0]["ratio"], rows[0]["target"], rows[0]["detail"]["videos"]) == (2.0, 3.0, 4)
    for row in rows:
        assert row["detail"]["quick"] is True
        assert row["detail"]["threads"] == 1
        assert row["detail"]["machine"]["torch"] == torch.__version__
    out, progress = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["fast", "slow", "2", ">=", "3", "missed"]
    assert lines[2] == ["cost", "whole", "0.01", "<=", "0.05", "met"]
    assert progress.startswith("[1/1] A case\n[1/1] ")


def test_results_that_disagree_end_in_an_error_and_no_file(tmp_path, capsys) -> None:
    def wrong(options: Options) -> list[Row]:
        """Wrong"""
        harness.check_close("both", torch.ones(2), torch.zeros(2) + options.threads / 2, 0.1)
        return []

    file = tmp_path / "rows.json"
    assert harness.main([wrong], arguments("--json", str(file))) == 1
    assert not file.exists()
    assert (
        "error: both: expected results within 0.1 of each other, got 1" in capsys.readouterr().err
    )


@pytest.mark.parametrize("bad", [np.nan, 1.2])
def test_close_is_relative_to_the_norm(bad: float) -> None:
    error = harness.check_close("x", torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]), 0.1)
    assert error == pytest.approx(0.1)
    with pytest.raises(Disagreement):
        harness.check_close("x", torch.tensor([bad]), torch.ones(1), 0.1)


def test_sides_take_turns_after_a_round_that_does_not_count(monkeypatch) -> None:
    clock = iter([0, 9, 30, 31, 40, 42, 50, 53, 60, 64, 70, 75, 80, 86])
    calls: list[str] = []
    watch = SimpleNamespace(perf_counter=lambda: next(clock), sleep=lambda _: calls.append("pause"))
    monkeypatch.setattr(harness, "time", watch)
    seconds = harness.medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["pause", "a", "pause", "b"] * 4
    assert seconds == {"a": 3, "b": 4}


def test_a_short_run_is_warmed_up_before_it_counts(monkeypatch) -> None:
    """The time after a pause, with cold caches, is not the one that is measured."""
    clock = iter([0, 1.0, 1.1, 2.0, 2.2, 3.0, 3.1])
    calls: list[str] = []
    watch = SimpleNamespace(perf_counter=lambda: next(clock), sleep=lambda _: None)
    monkeypatch.setattr(harness, "time", watch)
    seconds = harness.medians({"a": lambda: calls.append("a")}, 3)
    assert len(calls) == 1 + 1 + 2 + 2
    assert seconds["a"] == pytest.approx(0.1)


@pytest.mark.nightly
def test_what_a_run_that_goes_on_reads_is_counted() -> None:
    rows = driver_resume.resume(160)(Options())
    assert [row.measure.split(" ")[0] for row in rows] == ["bytes", "seconds"]
    for row in rows:
        assert row.met
        assert row.detail["left"] == 16
        assert row.detail["bytes"] > 10 * 5000


def test_ways_to_a_product_agree_and_a_core_that_is_not_there_is_left_out(monkeypatch) -> None:
    a, b = products._factors((40, 24, 16))
    exact = a.double() @ b.double()
    with torch.inference_mode():
        ways = products.torch_ways(a, b).items()
        found = {name: run().clone() for name, run in ways}  # they share their output
    for name, product in found.items():
        # oneDNN may round to bfloat16 where the processor multiplies it.
        bound = {"plain": 1e-6, "onednn": 1e-2}.get(name, 1e-4)
        assert float((product - exact).norm() / exact.norm()) < bound, name
    rates = {"": {"x": [50.0, 0.0]}, "Haswell": {"x": [60.0, 0.0]}, "SkylakeX": {}}
    monkeypatch.setattr(products, "by_numpy", lambda core, *_: rates.get(core, {}))
    assert products.best_core(1) == "Haswell"
