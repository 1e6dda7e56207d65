"""Retrieval average precision: worked examples, the programs' own loop, and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from encoders.scores.retrieval import average_precision, mean_average_precision


def ranking(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """similarity, relevant and ignored of results from best to worst: r relevant, j junk, q query,
    . other."""
    letters = np.array(list(text))
    similarity = np.linspace(1, 0, len(letters)) if len(letters) else np.empty(0)
    return similarity, letters == "r", np.isin(letters, ("j", "q"))


def loop_of_the_benchmarks(text: str) -> float:
    """The area as those programs add it up: result by result, from recall 0 and precision 1."""
    positives = text.count("r")
    old_recall, old_precision, area, hits, seen = 0.0, 1.0, 0.0, 0, 0
    for letter in text:
        if letter in "jq":
            continue
        hits += letter == "r"
        seen += 1
        recall, precision = hits / positives, hits / seen
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


@pytest.mark.parametrize(
    ("text", "expected", "steps"),
    [
        ("r", 1, 1),
        ("rr..", 1, 1),
        (".r", (0 + 1 / 2) / 2, 1 / 2),
        # Ranks 1 and 3: (1 + 1) / 2 and (1/2 + 2/3) / 2, halved.
        ("r.r", (1 + (1 / 2 + 2 / 3) / 2) / 2, (1 + 2 / 3) / 2),
        ("q.r", (0 + 1 / 2) / 2, 1 / 2),
        ("qjjr.jr", (1 + (1 / 2 + 2 / 3) / 2) / 2, (1 + 2 / 3) / 2),
    ],
)
def test_worked_examples(text: str, expected: float, steps: float) -> None:
    assert average_precision(*ranking(text)) == pytest.approx(expected)
    assert average_precision(*ranking(text), trapezoid=False) == pytest.approx(steps)


@given(st.text("r.jq", min_size=1, max_size=40).filter(lambda text: "r" in text), st.randoms())
def test_it_is_the_loop_of_the_benchmarks_and_scikit_learns(text: str, draw) -> None:
    similarity, relevant, ignored = ranking(text)
    order = list(range(len(text)))
    draw.shuffle(order)
    shuffled = similarity[order], relevant[order], ignored[order]
    assert average_precision(*shuffled) == pytest.approx(loop_of_the_benchmarks(text))
    expected = average_precision_score(relevant[~ignored], similarity[~ignored])
    assert average_precision(*shuffled, trapezoid=False) == pytest.approx(expected)


def test_what_is_ignored_need_not_be_there() -> None:
    similarity, relevant, ignored = ranking("qr.j.r")
    relevant = relevant | ignored
    kept = ~ignored
    with_them = average_precision(similarity, relevant, ignored)
    assert with_them == average_precision(similarity[kept], relevant[kept])


def test_equal_similarities_rank_in_the_order_given() -> None:
    relevant = np.array([False, True])
    assert average_precision(np.ones(2), relevant) == pytest.approx(1 / 4)
    assert average_precision(np.ones(2), relevant[::-1]) == 1


def test_queries_without_an_answer_are_left_out_of_the_mean() -> None:
    assert math.isnan(average_precision(*ranking("q..")))
    assert mean_average_precision(np.array([1.0, np.nan, 0.5])) == 0.75
    assert math.isnan(mean_average_precision(np.array([np.nan])))


@pytest.mark.parametrize(
    ("similarity", "relevant", "message"),
    [
        (np.ones(3), np.ones(2, bool), r"one shape \[N\], got \[\(3,\), \(2,\)\]"),
        (np.ones((1, 2)), np.ones((1, 2), bool), r"one shape \[N\]"),
        (np.array([1, np.nan]), np.ones(2, bool), "finite similarities, got NaN .* at 1 of 2"),
    ],
)
def test_what_cannot_be_ranked_is_refused(similarity, relevant, message) -> None:
    with pytest.raises(ValueError, match=message):
        average_precision(similarity, relevant)
