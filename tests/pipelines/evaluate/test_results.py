"""METRICS rows from score matrices: every number with its inputs, and fusions as METHODS 4 has
them."""

import dataclasses

import numpy as np
import pytest
import sklearn.metrics

from pipelines.errors import ConfigError
from pipelines.evaluate.results import ScoreMatrix, gain_rows, mean_rows, metric_rows, results
from pipelines.run.combination import Combination
from pipelines.settings.config import Config
from pipelines.settings.sections import Evaluate
from pipelines.storage.tables import METRICS

CLASSES = ["a", "b", "c"]
STREAMS = ("n_appearance", "n_difference")
QUICK = Evaluate(top_k=(2, 9), bootstrap=0)


def matrix(stream: str, encoder: str = "e", seed: int = 0, **changes) -> ScoreMatrix:
    rng = np.random.default_rng([seed, len(stream)])
    targets = np.eye(3)[np.arange(24) * 5 % 3]
    fields = {
        "encoder": encoder,
        "stream": stream,
        "video_ids": [f"v{i:02d}" for i in range(24)],
        "folds": np.repeat([0, 1, 3], [12, 8, 4]),
        "classes": CLASSES,
        "scores": targets + rng.normal(size=targets.shape),
        "targets": targets,
    }
    return ScoreMatrix(**fields | changes)


def numbers(rows: list[dict]) -> dict:
    found = {tuple(row[name] for name in METRICS.key): row for row in rows}
    assert len(found) == len(rows), "the key names a row"
    return found


def all_of(pairs: list[tuple[str, str]], settings: Evaluate, **changes) -> dict:
    read = {pair: matrix(pair[1], pair[0], seed, **changes) for seed, pair in enumerate(pairs)}
    return {m.key: m for m, _ in results(pairs, settings, lambda *pair: read[pair])}


def test_numbers_of_all_folds_of_each_and_of_their_mean() -> None:
    one = matrix("n_appearance")
    rows = numbers(metric_rows(one, QUICK, "group_kfold, 3 folds"))
    METRICS.build(list(rows.values()))
    first, truth = one.scores.argmax(1), one.targets.argmax(1)
    for split, mask in {
        "all": one.folds >= 0,
        "fold:0": one.folds == 0,
        "fold:3": one.folds == 3,
    }.items():

        def value(metric: str, label: str | None = None, split: str = split) -> float:
            return rows["e", "n_appearance", "none", split, metric, label]["value"]

        assert value("accuracy") == pytest.approx(np.mean(first[mask] == truth[mask]))
        assert value("top_3") == 1, "K is no more than there are classes"
        expected = sklearn.metrics.top_k_accuracy_score(truth[mask], one.scores[mask], k=2)
        assert value("top_2") == pytest.approx(expected)
        expected = sklearn.metrics.balanced_accuracy_score(truth[mask], first[mask])
        assert value("balanced_accuracy") == pytest.approx(expected)
        own = [
            sklearn.metrics.average_precision_score(one.targets[mask, k], one.scores[mask, k])
            for k in range(3)
        ]
        assert [value("AP", label) for label in CLASSES] == pytest.approx(own)
        assert value("mAP") == pytest.approx(np.mean(own))
        assert rows["e", "n_appearance", "none", split, "AP", "b"]["num_videos"] == mask.sum()
        positives = one.targets[mask, 1].sum()
        assert rows["e", "n_appearance", "none", split, "AP", "b"]["num_positives"] == positives
    accuracies = [np.mean(first[one.folds == f] == truth[one.folds == f]) for f in (0, 1, 3)]
    mean = rows["e", "n_appearance", "none", "mean", "accuracy", None]
    assert mean["value"] == pytest.approx(np.mean(accuracies))
    assert mean["sd"] == pytest.approx(np.std(accuracies, ddof=1))
    assert {row["protocol"] for row in rows.values()} == {"group_kfold, 3 folds"}
    assert {key[3] for key in rows} == {"all", "fold:0", "fold:1", "fold:3", "mean"}


def test_one_fold_has_no_mean_and_intervals_are_of_all_videos_together() -> None:
    settings = dataclasses.replace(QUICK, bootstrap=50)
    single = metric_rows(matrix("s", folds=np.zeros(24, int)), settings, "given, 1 fold")
    assert {row["split"] for row in single} == {"all"}
    rows = metric_rows(matrix("s"), settings, "given, 1 fold")
    for row in rows:
        if row["split"] == "all":
            assert 0 <= row["ci_low"] <= row["ci_high"] <= 1
            assert row["ci_low"] - 0.1 <= row["value"] <= row["ci_high"] + 0.1
        else:
            assert row["ci_low"] is row["ci_high"] is None
    again = metric_rows(matrix("s"), settings, "given, 1 fold")
    assert rows == again, "the same draws"


def test_several_labels_have_no_balanced_accuracy_and_a_class_may_have_no_value() -> None:
    targets = np.eye(3)[np.arange(24) % 2]
    targets[0] = [1, 1, 0]
    rows = numbers(
        metric_rows(matrix("s", targets=targets), dataclasses.replace(QUICK, bootstrap=9), "p")
    )
    assert "balanced_accuracy" not in {key[4] for key in rows}
    empty = rows["e", "s", "none", "all", "AP", "c"]
    assert (empty["value"], empty["ci_low"], empty["num_positives"]) == (None, None, 0)
    known = [rows["e", "s", "none", "all", "AP", label]["value"] for label in "ab"]
    assert rows["e", "s", "none", "all", "mAP", None]["value"] == pytest.approx(np.mean(known))


def test_fusions_of_two_streams() -> None:
    pairs = [("e", stream) for stream in STREAMS]
    found = all_of(pairs, dataclasses.replace(QUICK, stream_weights=(1.0, 3.0)))
    name = "+".join(STREAMS)
    assert list(found) == [
        *(("e", stream, "none") for stream in STREAMS),
        *(("e", name, kind) for kind in ("given", "two_stream")),
    ]
    parts = [found["e", stream, "none"].scores for stream in STREAMS]
    given = found["e", name, "given"]
    np.testing.assert_allclose(given.scores, (parts[0] + 3 * parts[1]) / 4)
    assert given.weights == dict.fromkeys((0, 1, 3), (0.25, 0.75))
    two = found["e", name, "two_stream"]
    scaled = [part / np.abs(part).sum(1, keepdims=True) for part in parts]
    np.testing.assert_allclose(two.scores, (scaled[0] + 1.5 * scaled[1]) / 2.5)
    assert two.weights[0] == (0.4, 0.6)


def test_two_modalities_keep_their_ratio_however_many_streams_they_have() -> None:
    names = ["a_appearance", *(f"a_difference_gap{gap}" for gap in range(1, 5))]
    found = all_of(
        [("e", name) for name in names], dataclasses.replace(QUICK, fusions=("two_stream",))
    )
    weights = found["e", "+".join(names), "two_stream"].weights[0]
    assert weights == pytest.approx([0.4] + [0.15] * 4)


def test_weights_are_stated_with_every_number() -> None:
    pairs = [("e", stream) for stream in STREAMS]
    given = all_of(pairs, QUICK)["e", "+".join(STREAMS), "given"]
    chosen = dataclasses.replace(given, weights={0: (1.0, 0.0), 1: (0.5, 0.5), 3: (0.0, 1.0)})
    rows = numbers(metric_rows(chosen, QUICK, "p"))
    stated = {key[3]: row["weights"] for key, row in rows.items()}
    assert stated["fold:1"] == [0.5, 0.5]
    # 12, 8 and 4 videos; a mean over folds is one over three.
    assert stated["all"] == pytest.approx([(12 + 4) / 24, (4 + 4) / 24])
    assert stated["mean"] == pytest.approx([0.5, 0.5])
    single = metric_rows(matrix("s"), QUICK, "p")
    assert {row["weights"] for row in single} == {None}


def test_all_encoders_together_and_streams_that_are_not_fused() -> None:
    pairs = [(e, s) for s in (*STREAMS, "n_positions") for e in ("x", "y")]
    found = all_of(pairs, dataclasses.replace(QUICK, fusions=()))
    name = "+".join(STREAMS)
    assert [key for key in found if key[2] != "none"] == [("x+y", name, "given")]
    everything = found["x+y", name, "given"]
    parts = [found[e, s, "none"].scores for e in "xy" for s in STREAMS]
    np.testing.assert_allclose(everything.scores, np.mean(parts, 0))
    assert everything.weights[3] == (0.25,) * 4


def test_what_cannot_be_fused_is_left_out() -> None:
    one_kind = all_of([("e", "a_appearance"), ("e", "bb_appearance")], QUICK)
    assert {key[2] for key in one_kind} == {"none", "given"}
    one_fold = all_of([("e", s) for s in STREAMS], QUICK, folds=np.zeros(24, int))
    assert {key[2] for key in one_fold} == {"none", "given", "two_stream"}


def test_scores_that_are_lost_take_their_fusions_with_them() -> None:
    pairs = [(e, s) for e in ("x", "y") for s in STREAMS]

    def read(encoder: str, stream: str) -> ScoreMatrix | None:
        return None if (encoder, stream) == ("x", STREAMS[0]) else matrix(stream, encoder)

    keys = [m.key for m, _ in results(pairs, QUICK, read)]
    assert [key[:2] for key in keys if key[2] == "none"] == pairs[1:]
    assert {key[0] for key in keys if key[2] != "none"} == {"y"}


def test_parts_are_fused_over_the_videos_that_all_of_them_have() -> None:
    """A video without pictures has no score of a network, one without descriptors no other."""
    whole = {stream: matrix(stream, seed=seed) for seed, stream in enumerate(STREAMS)}
    lacking = {
        stream: part.of_videos(set(part.video_ids) - {f"v{number:02d}"})
        for number, (stream, part) in enumerate(whole.items())
    }
    pairs = [("e", stream) for stream in STREAMS]

    def found(parts: dict[str, ScoreMatrix]) -> dict[tuple, ScoreMatrix]:
        return {m.key: m for m, _ in results(pairs, QUICK, lambda _, name: parts[name])}

    shared = whole[STREAMS[0]].video_ids[len(STREAMS) :]
    for key, fused in found(lacking).items():
        if key[2] != "none":
            assert fused.video_ids == shared
            expected = found(whole)[key].of_videos(set(shared))
            np.testing.assert_allclose(fused.scores, expected.scores, rtol=1e-13)
            np.testing.assert_array_equal(fused.targets, expected.targets)
    assert any(key[2] != "none" for key in found(lacking))


def test_parts_without_a_common_video_are_refused() -> None:
    def read(encoder: str, stream: str) -> ScoreMatrix:
        return matrix(stream, encoder, video_ids=[f"{stream}{i}" for i in range(24)])

    with pytest.raises(ValueError, match="expected parts with scores of the same videos"):
        list(results([("e", stream) for stream in STREAMS], QUICK, read))


def test_gains_are_over_the_best_part() -> None:
    pairs, settings = [("e", stream) for stream in STREAMS], dataclasses.replace(QUICK, bootstrap=9)
    read = {pair: matrix(pair[1], pair[0], seed) for seed, pair in enumerate(pairs)}
    found = list(results(pairs, settings, lambda *pair: read[pair]))
    assert [part for one, part in found if one.fusion == "none"] == [None, None]
    accuracy = {s: np.mean(m.scores.argmax(1) == m.targets.argmax(1)) for (_, s), m in read.items()}
    for fused, best in found[2:]:
        assert best.stream == max(STREAMS, key=accuracy.get)
        rows = metric_rows(fused, settings, "p")
        own = {row["metric"]: row for row in gain_rows(fused, rows, best, settings)}
        assert set(own) == {"accuracy_gain", "mAP_gain"}
        values = {
            r["metric"]: r["value"] for r in rows if (r["split"], r["class"]) == ("all", None)
        }
        others = {
            r["metric"]: r["value"]
            for r in metric_rows(best, settings, "p")
            if (r["split"], r["class"]) == ("all", None)
        }
        for name in ("accuracy", "mAP"):
            row = own[f"{name}_gain"]
            assert row["value"] == pytest.approx(values[name] - others[name])
            assert row["ci_low"] <= row["ci_high"]
            assert row["weights"] == rows[0]["weights"]
        METRICS.build([*rows, *own.values()])
    assert gain_rows(found[0][0], rows, None, settings) == []


def test_a_combination_is_read_as_it_is_and_knows_its_best_part() -> None:
    pairs = [(e, s) for e in ("x", "y") for s in STREAMS]
    read = {pair: matrix(pair[1], pair[0], seed) for seed, pair in enumerate(pairs)}
    own = matrix("late_weighted", "all", 9, fusion="late_weighted", weights={})
    combination = Combination("all", "late_weighted", tuple(pairs))
    everything = {**read, combination.pair: own}
    found = list(results(pairs, QUICK, lambda *pair: everything[pair], (combination,)))
    fused, best = found[-1]
    assert fused.scores is own.scores
    rows = metric_rows(fused, QUICK, "p")
    assert rows[0]["parts"] == [f"{e}-{s}" for e in ("x", "y") for s in STREAMS]
    assert metric_rows(read[pairs[0]], QUICK, "p")[0]["parts"] is None
    accuracy = {p: np.mean(m.scores.argmax(1) == m.targets.argmax(1)) for p, m in read.items()}
    assert accuracy[best.encoder, best.stream] == max(accuracy.values())
    lost = {**everything, pairs[2]: None}
    fused, best = list(results(pairs, QUICK, lambda *pair: lost[pair], (combination,)))[-1]
    assert fused.scores is own.scores
    assert best is None, "nobody knows what it gains"


def test_means_leave_out_what_has_no_value() -> None:
    row = {"encoder": "e", "stream": "s", "fusion": "none", "metric": "mAP", "class": None}
    row |= {"weights": None, "num_videos": 3}
    rows = [row | {"split": s, "value": v} for s, v in (("1", 0.5), ("2", None), ("3", 1.0))]
    (mean,) = mean_rows(rows)
    assert (mean["value"], mean["num_videos"]) == (0.75, 9)
    assert mean["sd"] == pytest.approx(np.std([0.5, 1.0], ddof=1))
    (mean,) = mean_rows(rows[:1])
    assert (mean["value"], mean["sd"]) == (0.5, None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluate.top_k=0,3", r"evaluate\.top_k: expected at least 1, got 0"),
        ("evaluate.fusions=given,given", r"evaluate\.fusions: expected each once"),
        ("evaluate.fusions=best", "expected one of"),
        ("evaluate.stream_weights=1,-1", r"evaluate\.stream_weights: expected none below 0"),
        ("evaluate.bootstrap=-1", r"evaluate\.bootstrap: expected at least 0"),
        ("split.name=../x", r"split\.name: expected letters"),
    ],
)
def test_wrong_settings_say_which(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config().with_settings([setting])


def test_a_named_split_is_a_given_one() -> None:
    with pytest.raises(ConfigError, match=r"split\.name: expected a name only where split\.kind"):
        Config().with_settings(["split.kind=random", "split.name=split2"])
