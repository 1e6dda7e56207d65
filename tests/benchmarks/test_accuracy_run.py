"""Switches: which runs they take, and gains over what they change."""

import dataclasses

import numpy as np
import pytest

from benchmarks import accuracy_run
from benchmarks.accuracy_run import BASE, SWITCHES, Switch
from pipelines.evaluate.results import ScoreMatrix
from pipelines.settings.recipes import recipe

RECIPE = recipe("actions").with_settings(["describe.weights=random:0"])


def matrix(predicted: list[int], *, videos: str = "v") -> ScoreMatrix:
    """Three videos a class of two classes, told as given."""
    targets = np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 1, 1]]
    names = [f"{videos}{k}" for k in range(6)]
    return ScoreMatrix(
        encoder="e",
        stream="s",
        video_ids=names,
        folds=np.zeros(6, np.int64),
        classes=["a", "b"],
        scores=np.eye(2)[predicted],
        targets=targets,
    )


def test_every_switch_is_measured_once_and_its_reference_too() -> None:
    runs = accuracy_run.configurations(RECIPE, SWITCHES)
    measured = [switch for _, own in runs for switch in own]
    assert sorted(s.says for s in measured) == sorted(s.says for s in (BASE, *SWITCHES))
    for config, own in runs:
        results = len(config.describe.streams) * len(config.encode.encoders)
        assert results == len(own), "a run makes no result that is not shown"
        assert {s.stream for s in own} == set(config.describe.streams)
        assert {s.encoder for s in own} == set(config.encode.encoders)


def test_what_a_switch_is_compared_with_is_measured_though_left_out() -> None:
    halves = next(s for s in SWITCHES if s.encoder.startswith("fv_vae@temporal"))
    plain = accuracy_run.compared_with(halves)
    assert plain.encoder == "fv_vae"
    assert [own for _, own in accuracy_run.configurations(RECIPE, [halves])] == [
        [BASE, plain, halves]
    ]
    assert accuracy_run.compared_with(plain) == BASE


def test_each_switch_changes_the_configuration() -> None:
    runs = accuracy_run.configurations(RECIPE, SWITCHES)
    named = {
        (config.picture, *dataclasses.astuple(switch)[1:3])
        for config, own in runs
        for switch in own
    }
    assert len(named) == len(SWITCHES) + 1


def test_a_gain_is_the_difference_of_accuracies_and_pairs_videos() -> None:
    base, better = matrix([0, 0, 1, 1, 0, 0]), matrix([0, 0, 0, 1, 1, 0])
    found = accuracy_run.measured(Switch("a"), better, base)
    assert found.accuracy == pytest.approx(5 / 6)
    assert found.gain == pytest.approx(5 / 6 - 3 / 6)
    # Nothing that the base tells is lost, so no draw has a loss.
    assert found.gain_low is not None
    assert found.gain_low >= 0
    same = accuracy_run.measured(Switch("a"), base, base)
    assert (same.gain, same.gain_low, same.gain_high) == (0, 0, 0)
    with pytest.raises(ValueError, match="videos it is compared on"):
        accuracy_run.measured(Switch("a"), better, matrix([0] * 6, videos="w"))
