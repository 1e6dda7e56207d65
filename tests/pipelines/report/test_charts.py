"""The charts of the report: lines that can be told apart, axes of their own, and what they say in
words."""

import re
from dataclasses import replace

import pytest

from pipelines.evaluate.results import Estimate
from pipelines.report.render import render
from tests.pipelines.report.examples import FULL
from tests.pipelines.report.page import Page, assert_colours_of_the_page


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(FULL))


def test_precision_against_recall_has_axes_of_its_own(full):
    (figure,) = [
        a["aria-label"] for t, a in full.elements if t == "figure" and "recall" in a["aria-label"]
    ]
    assert (
        "precision against recall, 2 line(s). mean ends at 0.6; run, AP 0.875 ends at 0.75"
        in figure
    )
    html = render(FULL)
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))


def test_curves_of_one_chart_share_axes_and_differ_in_dashes(full):
    figures = [a for t, a in full.elements if t == "figure"]
    assert len(figures) == 3
    figures = figures[1:]
    assert "fold 0 ends at 2.5; fold 1 ends at 2.25" in figures[0]["aria-label"]
    assert "loss ends at 7" in figures[1]["aria-label"], "a point that is not finite is left out"
    lines = [
        a["style"] for t, a in full.elements if t == "path" and "--line-" in a.get("style", "")
    ]
    legend = [style for style in lines if "stroke-width:2" in style]
    # Two of precision and recall, two of the folds.
    legend = legend[2:]
    assert len(legend) == 2
    assert len({style.split("dasharray:")[1] for style in legend}) == 2


def test_charts_take_their_colours_from_the_page():
    assert_colours_of_the_page(render(FULL))


def test_a_fusion_shows_what_it_gains_beside_the_best_single_stream() -> None:
    single = replace(FULL.results[0], fusion="", accuracy=Estimate(0.8, 0.7, 0.9))
    fused = replace(
        single,
        stream="late_weighted",
        fusion="late_weighted 0.25 : 0.75",
        output_dim=None,
        accuracy=Estimate(0.82, 0.72, 0.91),
        gain=Estimate(0.02, -0.01, 0.05),
    )
    page = render(replace(FULL, multi_label=False, results=(single, fused)))
    assert "The best result that is not fused has 0.800: AVE on pool5." in page
    assert "What fusing gains" in page
    assert f"{single.encoder}: late_weighted +0.020" in page, "the chart in words"
    alone = render(replace(FULL, multi_label=False, results=(single,)))
    assert "What fusing gains" not in alone
    assert "not fused" not in alone
