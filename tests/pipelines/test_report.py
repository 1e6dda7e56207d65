"""The report: a page that stands alone, says every number, and shows hostile text as text."""

import base64
import io
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipelines.attention_picture import MAX_COLUMNS, attention_map, picture
from pipelines.ledger import Account
from pipelines.papers import DQ_TABLE_5, BesidePaper, Compared, Comparison
from pipelines.report import render
from pipelines.report_data import (
    NUM_FAILURES_LISTED,
    AttentionStrip,
    ClassRow,
    Confusion,
    Curve,
    Failure,
    Failures,
    Ledger,
    Near,
    Neighbours,
    NeighbourSearch,
    Report,
    Result,
    Sample,
    Solved,
    StepFact,
)
from pipelines.results import Estimate
from tests.pipelines.page import (
    HOSTILE,
    Page,
    assert_colours_of_the_page,
    assert_fits,
    assert_stands_alone,
    assert_structure,
)

JPEG = b"\xff\xd8\xff\xe0 not much of a picture"
LEVELS = (3, 2, 1)


def strip(cells: np.ndarray | None = None, num_shown: int = 3, **changes) -> AttentionStrip:
    """Frames half a second apart; without cells, 5 frames whose second looks at the top right."""
    if cells is None:
        cells = np.ones((5, 14), np.float32)
        cells[1, 2] = 29.0
    shown = np.linspace(0, len(cells) - 1, num_shown).astype(int)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (num_shown, 60, 60, 3), dtype=np.uint8)
    fields = {
        "video_id": "v/1.mp4",
        "encoder": "fv_vae",
        "stream": "pool5_appearance",
        "times_s": tuple(0.5 * np.arange(len(cells))),
        "values": cells.sum(1),
        "frames": tuple(frames),
        "shown": tuple(shown.tolist()),
        "cells": cells,
        "levels": LEVELS,
    }
    return AttentionStrip(**fields | changes)


EMPTY = Report(
    title="Empty",
    recipe="fcvid",
    weights="none",
    num_videos=0,
    num_classes=0,
    ledger=Ledger(0, 0, 0, 0),
)
FULL = Report(
    title="A run",
    recipe="demo",
    weights="squeezenet1_0, random filters",
    num_videos=1234,
    num_classes=3,
    ledger=Ledger(planned=1300, ok=1296, partial=1, failed=3),
    chance=0.3333,
    top_k=2,
    notes=("random filters: published weights could not be fetched",),
    facts=(("Sampling", "uniform, 8 frames"),),
    steps=(
        StepFact(
            "describe",
            3725.0,
            Account("segments", 1300, 1297, 3),
            59600.0,
            3725.0,
            12.5,
            "decode-bound: decode x 4 0.97 busy",
        ),
        StepFact("fit", 12.345, Account("codebooks", 7, 7, 0), 197.52, 12.345, 0.0525),
        StepFact("evaluate", None, None),
    ),
    results=(
        Result(
            encoder="ave",
            stream="pool5",
            accuracy=Estimate(0.51249, 0.48, 0.5425),
            top_k=Estimate(0.75, 0.7, 0.8),
            map=Estimate(0.4, 0.35, 0.45),
            num_videos=1200,
            output_dim=512,
            fold_mean=0.52,
            fold_sd=0.082,
        ),
        Result(
            encoder="fv_vae",
            stream="pool5",
            accuracy=Estimate(0.6),
            top_k=Estimate(0.8125),
            map=Estimate(0.35),
            num_videos=1200,
            output_dim=131072,
        ),
        Result(
            encoder="ave+fv_vae",
            stream="pool5",
            accuracy=Estimate(0.853, 0.8, 0.9),
            top_k=Estimate(1.0),
            map=Estimate(),
            num_videos=1199,
            fusion="chosen 0.25 : 0.75",
        ),
    ),
    per_class=(
        ClassRow("walk", Estimate(0.25, 0.125, 0.5), 4),
        ClassRow("jump", Estimate(), 0),
        ClassRow("run", Estimate(0.875, 0.75, 1.0), 2),
    ),
    precision_recall=(
        Curve("Precision against recall", "mean", "recall", "precision", (0, 1), (0.9, 0.6)),
        Curve(
            "Precision against recall", "run, AP 0.875", "recall", "precision", (0, 1), (1, 0.75)
        ),
    ),
    confusion=Confusion(("walk", "jump", "run"), ((3, 0, 1), (0, 0, 0), (2, 0, 6))),
    curves=(
        Curve(
            "gmm_fv, pool5", "fold 0", "EM iteration", "log-likelihood", (0, 1, 2), (1.0, 2.0, 2.5)
        ),
        Curve(
            "gmm_fv, pool5", "fold 1", "EM iteration", "log-likelihood", (0, 1, 2), (1.5, 2.0, 2.25)
        ),
        Curve("fv_vae, pool5", "loss", "batch", "loss", (0, 1000), (7.0, float("nan"))),
    ),
    solved=(
        Solved(
            encoder="fv_vae",
            stream="pool5",
            form="gram",
            values_of_c=(1.0, 100.0),
            num_svms=30,
            num_trivial=2,
            num_unsolved=1,
            largest_gap=1.25e-6,
            rounds=17,
        ),
        Solved(
            encoder="ave",
            stream="pool5",
            form="primal",
            values_of_c=(0.5,),
            num_svms=3,
            num_trivial=3,
            num_unsolved=0,
            largest_gap=None,
            rounds=None,
        ),
    ),
    failures=Failures.of(
        [
            Failure("a.mp4", "decode", "failed", "TimeoutError", "no frame for 120 s"),
            Failure("b.mp4", "probe", "failed", "NoVideoStream", "no video stream"),
            Failure("c.mp4", "probe", "failed", "NoVideoStream", "no video stream"),
            Failure("d.mp4", "decode", "partial", "InvalidDataError", "2 of 8 frames"),
        ]
    ),
    samples=(
        Sample("v/2.mp4", ("run",), "jump", 1.25, (JPEG,)),
        Sample("v/3.mp4", ("run",), "walk", 1.0, missing="cannot be read any more (damaged)"),
        Sample("v/1.mp4", ("walk",), "walk", 2.5, (JPEG, JPEG)),
        Sample("v/4.mp4", ("walk",), "walk", 2.0, (JPEG,), attention=strip()),
        Sample(
            "v/5.mp4", ("walk",), "walk", 1.5, (JPEG,), attention=strip(stream="pool5_difference")
        ),
    ),
    neighbours=NeighbourSearch(
        "fv_vae",
        "pool5",
        1000,
        1234,
        (
            Neighbours(
                Near("v/1.mp4", ("walk",), 1.0, JPEG),
                (
                    Near("v/6.mp4", ("run",), 0.75, JPEG),
                    Near("v/7.mp4", ("walk", "run"), 0.5, None),
                ),
            ),
        ),
    ),
    currency="EUR",
    paper_tables=(
        BesidePaper(
            DQ_TABLE_5,
            (("ave on pool5", (Estimate(0.51249, 0.48, 0.5425), Estimate(0.75), Estimate())),),
            "60 own clips",
        ),
    ),
    paper=Comparison(
        (Compared("ave", "pool5", "AVE", 512, 0.51249), Compared("sum", "pool5", None, 77, None)),
        data="60 own clips",
        differences="other clips, other network.",
    ),
    provenance={"code revision": "312e83c"},
)


def hostile() -> Report:
    """Hostile text in every place that takes text."""
    return Report(
        title=HOSTILE,
        recipe=HOSTILE,
        weights=HOSTILE,
        num_videos=1,
        num_classes=2,
        ledger=Ledger(1, 0, 0, 1),
        notes=(HOSTILE,),
        facts=((HOSTILE, HOSTILE),),
        steps=(StepFact(HOSTILE, 1.0, Account(HOSTILE, 1, 1, 0), 2.0, 0.0, 3.0, HOSTILE, 4.0),),
        planned_for=HOSTILE,
        results=(replace(FULL.results[0], encoder=HOSTILE, stream=HOSTILE, fusion=HOSTILE),),
        per_class=(ClassRow(HOSTILE, Estimate(0.5), 1),),
        precision_recall=tuple(
            Curve("Precision", HOSTILE + n, "recall", "precision", (0, 1), (1, 0)) for n in "ab"
        ),
        confusion=Confusion((HOSTILE, "b"), ((1, 2), (0, 1))),
        curves=tuple(Curve(HOSTILE, HOSTILE + n, HOSTILE, HOSTILE, (0, 1), (0, 1)) for n in "ab"),
        solved=(replace(FULL.solved[0], encoder=HOSTILE, stream=HOSTILE, form=HOSTILE),),
        failures=Failures.of([Failure(HOSTILE, HOSTILE, "failed", HOSTILE, HOSTILE)]),
        samples=(
            Sample(HOSTILE, (HOSTILE,), HOSTILE, 0.0, (JPEG,)),
            Sample(HOSTILE, (HOSTILE,), "b", 0.0, missing=HOSTILE),
            Sample(
                HOSTILE,
                (HOSTILE,),
                "b",
                0.0,
                attention=strip(video_id=HOSTILE, encoder=HOSTILE, stream=HOSTILE),
            ),
        ),
        neighbours=NeighbourSearch(
            HOSTILE,
            HOSTILE,
            1,
            1,
            (
                Neighbours(
                    Near(HOSTILE, (HOSTILE,), 1.0, JPEG), (Near(HOSTILE, (HOSTILE,), 0.5, None),)
                ),
            ),
        ),
        currency=HOSTILE,
        paper_tables=(BesidePaper(DQ_TABLE_5, ((HOSTILE, (Estimate(),) * 3),), HOSTILE),),
        paper=Comparison((Compared(HOSTILE, HOSTILE, None, None, None),), HOSTILE, HOSTILE),
        provenance={HOSTILE: HOSTILE},
    )


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(FULL))


def _results(page: Page) -> list[list[str]]:
    return page.tables["Results by encoder and stream"]


@pytest.mark.parametrize("report", [EMPTY, FULL, hostile()], ids=["empty", "full", "hostile"])
def test_the_page_stands_alone(report):
    assert_stands_alone(render(report))


@pytest.mark.parametrize("report", [EMPTY, FULL], ids=["empty", "full"])
def test_structure_for_phones_and_screen_readers(report):
    html = render(report)
    assert_structure(html)
    elements = Page(html).elements
    links = [a["href"][1:] for t, a in elements if t == "a"]
    assert len(links) == (13 if report.paper else 12)
    assert set(links) <= {a["id"] for _, a in elements if "id" in a}


def test_the_page_fits_a_phone_and_a_desktop(tmp_path):
    assert_fits(render(FULL), tmp_path)


def test_empty_sections_say_why():
    text = Page(render(EMPTY)).text
    for reason in (
        'No results: the step "evaluate" has not been run',
        "No classes: there are no results",
        "No confusion matrix: there are no results",
        "No curves: no class has a tested video",
        "No videos: nothing was evaluated",
        "No neighbours: there are no results",
        "No curves: no codebook",
        'No SVMs: the step "classify" has not been run',
        "No failures: nothing was planned.",
        "No steps: nothing has been run.",
        "No result: nothing was evaluated.",
    ):
        assert reason in text
    assert "several labels" in Page(render(replace(EMPTY, multi_label=True))).text
    all_ok = replace(EMPTY, ledger=Ledger(5, 5, 0, 0))
    assert "every planned segment was described in full" in Page(render(all_ok)).text


def test_every_number_of_the_results_is_in_its_column(full):
    header, *rows = _results(full)
    columns = ["encoder", "stream", "accuracy", "top-2", "mAP", "mean of folds", "D", "videos"]
    assert header[:-1] == columns
    # The stream is repeated below the encoder, for narrow screens.
    assert [row[1:-1] for row in rows] == [
        ["pool5", "0.8530.800 to 0.900", "1.000", "\u2013", "\u2013", "\u2013", "1,199"],
        ["pool5", "0.600", "0.812", "0.350", "\u2013", "131,072", "1,200"],
        [
            "pool5",
            "0.5120.480 to 0.542",
            "0.7500.700 to 0.800",
            "0.4000.350 to 0.450",
            "0.520\u00b1 0.082",
            "512",
            "1,200",
        ],
    ]
    assert [row[0] for row in rows] == [
        "ave+fv_vaebestchosen 0.25 : 0.75pool5",
        "fv_vaepool5",
        "avepool5",
    ]


def test_without_intervals_none_is_spoken_of():
    bare = replace(
        FULL,
        results=(FULL.results[1],),
        per_class=(ClassRow("run", Estimate(0.875), 2),),
        paper_tables=(),
    )
    page = Page(render(bare))
    assert "interval" not in page.text
    assert page.tables["Average precision by class"][1] == ["run", "0.875", "2"]


def test_no_per_cent_anywhere(full):
    assert "%" not in full.text.replace("95 % interval", "")


def test_the_headline_is_the_best_result_and_map_where_videos_have_several_labels(full):
    before = full.text[: full.text.index("Sorted by")]
    assert "Best accuracy" in before
    assert "0.853" in before
    assert "chance 0.333" in before
    page = Page(render(replace(FULL, multi_label=True, confusion=None)))
    before = page.text[: page.text.index("Sorted by mAP")]
    assert "Best mAP" in before
    assert "0.400" in before
    ranks = [row[0] for row in _results(page)[1:]]
    assert ranks == ["avebestpool5", "fv_vaepool5", "ave+fv_vaechosen 0.25 : 0.75pool5"]
    assert "Hit@1 and Hit@2" in page.text
    assert _results(page)[0][2:5] == ["mAP", "accuracy", "top-2"]


def test_results_without_a_value_have_no_best():
    unknown = replace(FULL, results=(replace(FULL.results[0], accuracy=Estimate()),))
    page = Page(render(unknown))
    assert "nothing was evaluated" in page.text
    assert _results(page)[1][0] == "avepool5"


def test_summary_and_ledger(full):
    for text in (
        "1,234",
        "1,300 segments planned = 1,296 ok + 1 partial + 3 failed",
        "random filters: published weights could not be fetched",
        "1 h 02 min",
        "12.3 s",
    ):
        assert text in full.text


def test_classes_are_sorted_and_their_bars_have_their_length(full):
    rows = full.tables["Average precision by class"][1:]
    assert rows == [
        ["run", "0.875", "0.750 to 1.000", "2"],
        ["walk", "0.250", "0.125 to 0.500", "4"],
        ["jump", "\u2013", "\u2013", "0"],
    ]
    widths = [a["style"] for t, a in full.elements if t == "span" and "style" in a]
    assert widths[-2:] == ["width:87.5%", "width:25.0%"]
    whiskers = [a["style"] for t, a in full.elements if t == "i"]
    assert whiskers[-2:] == ["left:75.0%;width:25.0%", "left:12.5%;width:37.5%"]


def test_many_classes_are_folded_away_with_the_extremes_on_top():
    rows = tuple(ClassRow(f"c{i:03d}", Estimate(i / 100), 1) for i in range(100))
    tables = Page(render(replace(FULL, per_class=(*rows, ClassRow("none", Estimate(), 0))))).tables
    assert [r[0] for r in tables["Strongest classes"][1:]] == [
        f"c{i:03d}" for i in range(99, 89, -1)
    ]
    assert [r[0] for r in tables["Weakest classes"][1:]] == [f"c{i:03d}" for i in range(9, -1, -1)]
    assert len(tables["All classes"]) == 102


def test_confusion_matrix_and_pairs(full):
    _, *rows = full.tables["Confusion matrix"]
    assert rows == [["walk", "3", "0", "1"], ["jump", "0", "0", "0"], ["run", "2", "0", "6"]]
    assert full.tables["Most confused pairs of classes"][1:] == [
        ["run", "walk", "2", "0.250"],
        ["walk", "run", "1", "0.250"],
    ]


@pytest.mark.parametrize(("size", "shown"), [(20, "numbers"), (50, "colours"), (51, "pairs")])
def test_confusion_stays_readable(size, shown):
    labels = tuple(f"c{i}" for i in range(size))
    matrix = tuple(
        tuple(7 if i == j else int(j == i + 1) for j in range(size)) for i in range(size)
    )
    page = Page(render(replace(FULL, confusion=Confusion(labels, matrix))))
    assert ("Confusion matrix" in page.tables) == (shown != "pairs")
    if shown == "numbers":
        assert page.tables["Confusion matrix"][1][:4] == ["c0", "7", "1", "0"]
    if shown == "colours":
        assert page.tables["Confusion matrix"][1][:4] == ["c0", "", "", ""]
        assert any(a.get("title") == "c0 taken for c1: 1" for _, a in page.elements)
    if shown == "pairs":
        assert len(page.tables["Most confused pairs of classes"]) == 21


def test_right_and_wrong_are_said_in_words(full):
    shown = full.text[full.text.index("Most confident") : full.text.index("For some tested videos")]
    shown = re.sub(r"\s+", " ", shown)
    assert shown.count("\u2713 right walk") == 3
    assert "\u2717 wrong jump instead of run score 1.25 v/2.mp4" in shown
    assert "v/3.mp4 No frames: cannot be read any more (damaged)." in shown
    sources = [a["src"] for t, a in full.elements if t == "img"][:3]
    assert all(base64.b64decode(s.partition(",")[2]) == JPEG for s in sources)


def test_neighbours_stand_beside_their_video(full):
    shown = full.text[
        full.text.index("For some tested videos") : full.text.index("Training curves")
    ]
    shown = re.sub(r"\s+", " ", shown)
    assert "fv_vae on pool5, the best result that is no fusion. 1,000 of 1,234 videos" in shown
    assert (
        shown.index("walk this video")
        < shown.index("run cosine 0.750")
        < shown.index("cosine 0.500")
    )
    assert "no picture: cannot be read any more walk, run" in shown


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


def test_steps_say_what_they_cost(full):
    header, *rows = full.tables["Steps of the run"]
    counts = ["what", "planned", "done", "failed"]
    assert header == ["step", "time", *counts, "core seconds", "GPU seconds", "EUR"]
    dash = "\u2013"
    assert rows == [
        [
            "describe",
            "1 h 02 min",
            "segments",
            "1,300",
            "1,297",
            "3",
            "59,600.0",
            "3,725.0",
            "12.50",
        ],
        ["fit", "12.3 s", "codebooks", "7", "7", "0", "197.5", "12.3", "0.0525"],
        ["evaluate", dash, dash, dash, dash, dash],
        ["all", "1 h 02 min", "", "59,797.5", "3,737.3", "12.55"],
    ]
    old = replace(FULL, steps=(StepFact("fit", 12.345, Account("codebooks", 7, 7, 0)),))
    tables = Page(render(old)).tables
    assert tables["Steps of the run"][0] == ["step", "time", *counts]
    cores = replace(FULL, steps=(StepFact("fit", 36.0, Account("codebooks", 7, 7, 0), 72.0, 0.0),))
    page = Page(render(cores))
    assert page.tables["Steps of the run"][0] == ["step", "time", *counts, "core seconds"]
    assert "0.0 core hours" in page.text


def test_steps_say_what_they_were_bound_by(full):
    assert full.tables["What the steps were bound by"] == [
        ["describe", "decode-bound: decode x 4 0.97 busy"]
    ]
    assert "bound by" not in Page(render(EMPTY)).text


def test_predicted_times_stand_beside_measured_ones():
    steps = (
        StepFact("describe", 90.0, Account("segments", 9, 9, 0), predicted_s=60.0),
        StepFact("fit", 30.0, Account("codebooks", 7, 7, 0), predicted_s=40.0),
        # Not planned, as after --plan --steps describe,fit: it is in no ratio.
        StepFact("encode", 1000.0, Account("encodings", 9, 9, 0)),
    )
    page = Page(render(replace(EMPTY, steps=steps, planned_for="2 CPUs <b>")))
    dash = "\u2013"
    counts = ["what", "planned", "done", "failed"]
    assert page.tables["Steps of the run"] == [
        ["step", "time", "planned time", "time / planned", *counts],
        ["describe", "1 min 30 s", "1 min 00 s", "1.50", "segments", "9", "9", "0"],
        ["fit", "30.0 s", "40.0 s", "0.75", "codebooks", "7", "7", "0"],
        ["encode", "16 min 40 s", dash, dash, "encodings", "9", "9", "0"],
        ["all", "18 min 40 s", "1 min 40 s", "1.20", ""],
    ]
    assert "what --plan predicted for 2 CPUs <b>, before the run" in page.text


def test_own_results_stand_below_those_of_the_papers_table(full):
    header, *rows = full.tables["Results beside DQ Table 5"]
    assert header == ["method", "accuracy", "top_3", "mAP"]
    assert rows[0] == ["VGG_19-GApaper", "0.666", "0.827", "0.702"]
    assert rows[-1] == ["ave on pool5own", "0.5120.480 to 0.542", "0.750", "\u2013"]
    assert len(rows) == len(DQ_TABLE_5.rows) + 1
    assert DQ_TABLE_5.differences in full.text


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


def test_svms_say_how_they_were_solved(full):
    header, *rows = full.tables["How the SVMs were solved"]
    assert header[:3] == ["encoder", "stream", "on the"]
    assert rows == [
        ["fv_vae", "pool5", "Gram matrix", "1, 100", "30", "2", "1", "1.3e-06", "17"],
        ["ave", "pool5", "weights", "0.5", "3", "3", "0", "\u2013", "\u2013"],
    ]


def test_failures_are_counted_by_reason_and_listed(full):
    assert full.tables["Failures by reason"][1:] == [
        ["probe", "failed", "NoVideoStream", "2"],
        ["decode", "failed", "TimeoutError", "1"],
        ["decode", "partial", "InvalidDataError", "1"],
    ]
    first = full.tables["Failed and partial segments"][1]
    assert first == ["a.mp4", "decode", "failed", "TimeoutError", "no frame for 120 s"]


def test_a_long_list_of_failures_is_cut_and_says_so():
    many = Failures.of(Failure(f"{i}.mp4", "decode", "failed", "E", "m") for i in range(1500))
    page = Page(render(replace(FULL, failures=many, ledger=Ledger(1500, 0, 0, 1500))))
    assert len(page.tables["Failed and partial segments"]) == NUM_FAILURES_LISTED + 1
    assert "The first 200 of 1,500 rows; the table FAILURES has all" in page.text
    assert page.tables["Failures by reason"][1][-1] == "1,500"


def test_hostile_text_is_shown_as_text():
    html = render(hostile())
    assert "<script" not in html
    assert "<img src=http" not in html
    page = Page(html)
    assert page.text.count(HOSTILE) > 20
    assert page.tables["Failed and partial segments"][1][4] == HOSTILE


def test_text_of_any_script_renders_without_a_warning():
    odd = "\u4e2d\u6587 \u0627\u0644 \U0001f600 a\nb"
    curves = tuple(replace(c, chart=odd, name=odd + c.name) for c in FULL.curves)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = Page(
            render(
                replace(
                    FULL, title=odd, curves=curves, per_class=(ClassRow(odd, Estimate(1.0), 1),)
                )
            )
        )
    assert odd in page.text


def test_equal_reports_give_equal_pages():
    assert render(FULL) == render(FULL)


def test_impossible_reports_are_refused():
    with pytest.raises(ValueError, match=r"planned = ok \+ partial \+ failed"):
        Ledger(planned=5, ok=4, partial=0, failed=0)
    with pytest.raises(ValueError, match=r"a matrix of 2 x 2, got 2 rows of \[1, 2\]"):
        Confusion(("a", "b"), ((1, 2), (3,)))
    with pytest.raises(ValueError, match=r"'loss': expected as many x as y, got 2 and 1"):
        Curve("c", "loss", "x", "y", (0, 1), (0,))


def by_loops(cells: np.ndarray, levels: tuple[int, ...], height: int, width: int) -> np.ndarray:
    """The map pixel by pixel: bilinear between the middles of cells, levels weighted by their cells."""
    out = np.zeros((height, width))
    for r in range(height):
        for c in range(width):
            start = 0
            for side in levels:
                y = min(max((r + 0.5) / height * side - 0.5, 0), side - 1)
                x = min(max((c + 0.5) / width * side - 0.5, 0), side - 1)
                top, left = min(int(y), side - 1), min(int(x), side - 1)
                for i in {top, min(top + 1, side - 1)}:
                    for j in {left, min(left + 1, side - 1)}:
                        weight = (1 - abs(y - i)) * (1 - abs(x - j))
                        out[r, c] += side * side * weight * cells[start + i * side + j]
                start += side * side
    return out / sum(side * side for side in levels)


def test_attention_map_equals_plain_loops_and_keeps_the_frame_value():
    cells = np.random.default_rng(1).random(50)
    levels = (6, 3, 2, 1)
    np.testing.assert_allclose(
        attention_map(cells, levels, 31, 47), by_loops(cells, levels, 31, 47), rtol=1e-12
    )
    # The map is as strong in all as the frame's value, the sum of its cells.
    assert attention_map(cells, levels, 36, 72).mean() * 50 == pytest.approx(cells.sum())


def test_attention_shows_where_and_when_in_words(full):
    alts = [a["alt"] for t, a in full.elements if t == "img" and a["alt"].startswith("attention")]
    assert alts == 2 * [
        "attention at 0.0 s: the same everywhere",
        "attention at 1.0 s: the same everywhere",
        "attention at 2.0 s: the same everywhere",
    ]
    cells = np.ones((2, 14), np.float32)
    cells[0, 2], cells[1, 9 + 2] = 9.0, 9.0
    where = [column.where for column in picture(strip(cells, 2)).columns]
    assert where == ["highest at the top right", "highest at the bottom left"]
    curves = [a["aria-label"] for t, a in full.elements if a.get("role") == "img"]
    # Values 14, 42, 14, 14, 14 over their mean 19.6.
    assert curves == 2 * [
        "Attention over time, in multiples of the mean: goes from 0.71 at 0.0 s to 0.71 at 2.0 s, "
        "highest at 0.5 s (2.14), lowest at 0.0 s (0.71)"
    ]
    change = ": a map is of the change that leads to the frame"
    assert full.text.count(change) == full.text.count(f"pool5_difference{change}") == 1
    rising = picture(strip(np.outer([1, 4, 2], np.ones(14)))).curve_alt
    assert "rises from 0.43 at 0.0 s to 0.86 at 1.0 s, highest at 0.5 s (1.71)" in rising
    falling = picture(strip(np.outer([3, 4, 2], np.ones(14)))).curve_alt
    assert "falls from 1.00 at 0.0 s to 0.67 at 1.0 s" in falling


def test_the_curve_is_aligned_with_the_columns():
    curve = picture(strip(np.outer([1, 3, 2, 1, 1], np.ones(14)))).curve
    assert 'viewBox="0 0 300 84"' in curve
    # Five values at equal times over three columns; the highest at the top.
    assert 'points="50.0,62.0 100.0,22.0 150.0,42.0 200.0,62.0 250.0,62.0"' in curve
    dots = re.findall(r'<circle cx="([0-9.]+)" cy="([0-9.]+)"', curve)
    assert dots == [("50.0", "62.0"), ("150.0", "42.0"), ("250.0", "62.0")]
    for middle in (50, 150, 250):
        assert f'points="{middle}.0,0 {middle}.0,10.0 {middle}.0,74.0 {middle}.0,84.0"' in curve
    uneven = picture(strip(np.ones((3, 14)), times_s=(0.0, 0.5, 2.0))).curve
    assert 'points="150.0,0 100.0,10.0 100.0,74.0 150.0,84.0"' in uneven


def _pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(float)


def test_frames_of_a_video_share_one_scale():
    grey = tuple(np.full((60, 60, 3), 128, np.uint8) for _ in range(3))
    shown = picture(strip(np.outer([1, 2, 3], np.ones(14)), frames=grey))
    assert shown.scale == pytest.approx((0.5, 1.5))
    ramp = _pixels(shown.legend)
    ends = [ramp[:, :4].mean((0, 1)), ramp[:, 78:82].mean((0, 1)), ramp[:, -4:].mean((0, 1))]
    for column, expected in zip(shown.columns, ends, strict=True):
        np.testing.assert_allclose(_pixels(column.painted).mean((0, 1)), expected, atol=8)
    assert np.linalg.norm(ends[0] - ends[2]) > 100


def test_a_strip_is_small_and_has_few_columns():
    many = strip(np.random.default_rng(3).random((40, 14)), num_shown=20)
    assert len(picture(many).columns) == MAX_COLUMNS
    assert [c.time_s for c in picture(many).columns][:: MAX_COLUMNS - 1] == [0.0, 19.5]
    noise = np.random.default_rng(4).integers(0, 256, (MAX_COLUMNS, 224, 224, 3), dtype=np.uint8)
    worst = strip(
        np.random.default_rng(3).random((8, 14)), num_shown=MAX_COLUMNS, frames=tuple(noise)
    )
    sample = Sample("v", ("a",), "a", 1.0, attention=worst)
    size = len(render(replace(EMPTY, samples=(sample,)))) - len(render(EMPTY))
    assert size < 150_000


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (np.full((3, 14), np.nan), "Attention over time: no values"),
        (np.full((3, 14), np.inf), "Attention over time: no values"),
        (np.zeros((3, 14)), "Attention over time: the same in 3 frame(s)"),
        (np.ones((1, 14)), "Attention over time: the same in 1 frame(s)"),
        (-np.ones((3, 14)), "Attention over time: the same in 3 frame(s)"),
    ],
)
def test_odd_attention_is_survived_and_said(cells, said):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look = strip(cells, num_shown=len(cells))
        html = render(replace(EMPTY, samples=(Sample("v", ("a",), "a", 1.0, attention=look),)))
    assert_stands_alone(html)
    assert said in Page(html).text
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"base64,[^\"]*", "", html))


def test_a_frame_without_values_is_left_out_and_counted():
    cells = np.ones((3, 14))
    cells[1, 0] = np.nan
    sample = Sample("v", ("a",), "a", 1.0, attention=strip(cells))
    html = render(replace(EMPTY, samples=(sample,)))
    assert "1 of 3 frames have no finite value; their maps are not painted" in Page(html).text
    assert "attention at 0.5 s: no values" in html
    plain = picture(strip(cells))
    assert np.ptp(_pixels(plain.columns[1].painted), axis=2).max() < 8, "grey"
    assert plain.curve.count("<circle") == 2


def test_impossible_strips_are_refused():
    with pytest.raises(
        ValueError, match=r"cells \[5, 14\] for 5 times and levels \(3, 2, 1\), got"
    ):
        strip(np.ones((5, 13)))
    with pytest.raises(ValueError, match="one ascending place for each of 3 frames"):
        strip(shown=(2, 1, 0))
    with pytest.raises(ValueError, match="one ascending place for each of 0 frames, and one frame"):
        strip(shown=(), frames=())
    with pytest.raises(ValueError, match="places from 0 to 4, got"):
        strip(shown=(0, 1, 5))


def test_own_results_stand_beside_the_paper(full):
    header, *rows = full.tables["Results beside DQ Table 2"]
    assert header == [
        "DQ Table 2",
        "paper's accuracy",
        "own accuracy",
        "paper's D",
        "own D",
        "own encoder",
        "own stream",
    ]
    assert len(rows) == 9
    assert rows[2] == ["AVEave, pool5", "0.7325", "0.512", "512", "512", "ave", "pool5"]
    dash = "\u2013"
    assert rows[7] == ["FV-VAEnot run", "0.8345", dash, "131,072", dash, "not run", dash]
    assert rows[8] == [f"{dash}sum, pool5", dash, dash, dash, "77", "sum", "pool5"]
    assert "do not measure one thing: other clips, other network." in full.text
    assert "Beside the paper" not in Page(render(replace(FULL, paper=None, paper_tables=()))).text


def test_the_page_of_a_large_corpus_stays_small():
    """239 classes, 40 results, 12 videos with attention, pictures of noise, and every video failed."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise[0]).resize((112, 112)).save(buffer, "JPEG", quality=75)
    jpeg = buffer.getvalue()
    look = strip(rng.random((64, 14)), num_shown=3, frames=tuple(noise))
    near = Near("a/rather/long/folder/name/of/a/video.mp4", ("label",), 0.5, jpeg)
    classes = tuple(ClassRow(f"class number {i}", Estimate(0.5, 0.4, 0.6), 188) for i in range(239))
    large = replace(
        FULL,
        results=FULL.results[:1] * 40,
        per_class=classes,
        confusion=Confusion(
            tuple(row.label for row in classes), tuple((1,) * 239 for _ in range(239))
        ),
        samples=tuple(Sample("v", ("a",), "a", 1.0, attention=look) for _ in range(12)),
        neighbours=NeighbourSearch("e", "s", 1, 1, (Neighbours(near, (near,) * 5),) * 6),
        failures=Failures.of(
            Failure(f"{i}.mp4", "decode", "failed", "E", "m" * 300) for i in range(90_000)
        ),
        ledger=Ledger(90_000, 0, 0, 90_000),
    )
    assert len(render(large)) < 3_000_000


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
    assert f"best single stream 0.800: {single.encoder}" in page
    assert "gain over the best part +0.020 (-0.010 to 0.050)" in page
    assert "What fusing gains" in page
    assert f"{single.encoder}: late_weighted +0.020" in page, "the chart in words"
    alone = render(replace(FULL, multi_label=False, results=(single,)))
    assert "What fusing gains" not in alone
    assert "best single stream" not in alone
