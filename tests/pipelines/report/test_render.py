"""The report: a page that stands alone, says every number, and shows hostile text as text."""

import base64
import io
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluate.best import Confusion, Curve
from pipelines.evaluate.results import Estimate
from pipelines.ledger.accounts import Account
from pipelines.report.papers.tables import DQ_TABLE_5
from pipelines.report.records import (
    NUM_FAILURES_LISTED,
    ClassRow,
    Failure,
    Failures,
    Ledger,
    Near,
    Neighbours,
    NeighbourSearch,
    Sample,
    StepFact,
)
from pipelines.report.render import render
from tests.pipelines.report.examples import EMPTY, FULL, JPEG, hostile, strip
from tests.pipelines.report.page import (
    HOSTILE,
    Page,
    assert_fits,
    assert_stands_alone,
    assert_structure,
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
    links = [a["href"][1:] for t, a in elements if t == "a" and a["href"].startswith("#")]
    assert len(links) == (14 if report.paper else 13)
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
    assert header == columns
    # The stream is repeated below the encoder, for narrow screens.
    assert [row[1:] for row in rows] == [
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


def test_the_best_are_on_top_and_all_can_be_sorted_without_a_script():
    names = "abcdefg"
    many = tuple(
        replace(
            FULL.results[0],
            encoder=name,
            accuracy=Estimate(0.1 * place),
            map=Estimate(1 - 0.1 * place),
        )
        for place, name in enumerate(names)
    )
    html = render(replace(FULL, results=many))
    page = Page(html)
    assert [row[0][0] for row in _results(page)[1:]] == list("gfedc")
    assert [row[0][0] for row in page.tables["All results"][1:]] == list("gfedcba")
    sorts = [a["id"] for t, a in page.elements if t == "input"]
    assert sorts == ["sort-accuracy", "sort-top_k", "sort-map", "sort-encoder", "sort-stream"]
    orders = [
        a["style"] for t, a in page.elements if t == "tr" and "--by-map" in a.get("style", "")
    ]
    places = {
        name: [int(re.search(rf"--by-{name}:(\d+)", o)[1]) for o in orders]
        for name in ("accuracy", "map", "encoder")
    }
    assert places == {
        "accuracy": [0, 1, 2, 3, 4, 5, 6],
        "map": [6, 5, 4, 3, 2, 1, 0],
        "encoder": [6, 5, 4, 3, 2, 1, 0],
    }
    for name in sorts:
        assert f"#{name}:checked ~ .scroll tr {{ --by: var(--by-{name[5:]}); }}" in html


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("/data/a b.mp4", "file:///data/a%20b.mp4"),
        ("s3://bucket/v/1.mp4", "s3://bucket/v/1.mp4"),
        ("javascript:alert(1)", None),
        ("ftp://x/y", None),
    ],
)
def test_pictures_lead_to_their_video(uri, address):
    shown = replace(FULL.samples[0], uri=uri, attention=None, jpegs=(JPEG,))
    page = Page(render(replace(FULL, samples=(shown,), neighbours=None)))
    links = {a["href"] for t, a in page.elements if t == "a" and not a["href"].startswith("#")}
    assert links == ({address} if address else set())


def test_warnings_are_on_top_and_caveats_below(full):
    place = full.text.index("random filters: published"), full.text.index("Metrics are over the")
    assert place[0] < full.text.index("Sorted by") < place[1]
    assert "Read this first" not in Page(render(replace(FULL, warnings=()))).text


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
    text = full.text.replace("95 % interval", "").replace("97 % of the time", "")
    assert "%" not in text


def test_the_headline_is_the_best_result_and_map_where_videos_have_several_labels(full):
    before = full.text[: full.text.index("Videos")]
    assert "AVE + FV-VAE on pool5 (chosen) names the class of 1,023 of 1,199 tested" in before
    assert "accuracy 0.853, 0.800 to 0.900, 2.6 times chance (0.333)" in before
    assert "The best result that is not fused has 0.600: FV-VAE on pool5." in before
    page = Page(render(replace(FULL, multi_label=True, confusion=None)))
    before = page.text[: page.text.index("Videos")]
    assert "AVE on pool5 has the highest mAP, 0.400, 0.350 to 0.450" in before
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
    assert (
        "fv_vae on pool5, the best result that is no fusion and has vectors. 1,000 of 1,234 videos"
        in shown
    )
    assert (
        shown.index("walk this video")
        < shown.index("run cosine 0.750")
        < shown.index("cosine 0.500")
    )
    assert "no picture: cannot be read any more walk, run" in shown


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
    assert "1 min 12 s on each core together" in page.text


def test_steps_say_what_they_waited_for(full):
    assert full.tables["What the steps waited for"] == [
        ["describe", "waiting for decoding 97 % of the time"]
    ]
    assert "waited for" not in Page(render(EMPTY)).text


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
    """239 classes, 40 results, 12 videos with attention, pictures of noise, and every video
    failed."""
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
