"""The report: a page that stands alone, says every number, and shows hostile text as text."""

import base64
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pipelines.report import NUM_FAILURES_LISTED, render
from pipelines.report_data import (
    ClassRow,
    Confusion,
    Curve,
    Failure,
    Ledger,
    Report,
    Result,
    Sample,
    StepFact,
)

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.test/x onerror=alert(1)> & $\\frac"
JPEG = b"\xff\xd8\xff\xe0 not much of a picture"
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}

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
        StepFact("describe", "done", 3725.0, 1300),
        StepFact("fit", "done", 12.345, 7),
        StepFact("evaluate", "complete before", None, None),
    ),
    results=(
        Result(
            encoder="ave",
            stream="pool5",
            accuracy=0.51249,
            top_k=0.75,
            map=0.4,
            num_videos=1200,
            output_dim=512,
            fold_values=(0.45, 0.61, 0.5),
        ),
        Result(
            encoder="fv_vae",
            stream="pool5",
            accuracy=0.6,
            top_k=0.8125,
            map=0.35,
            num_videos=1200,
            output_dim=131072,
        ),
        Result(
            encoder="ave+fv_vae",
            stream="pool5",
            accuracy=0.853,
            top_k=1.0,
            map=None,
            num_videos=1199,
            is_fusion=True,
        ),
    ),
    per_class=(ClassRow("walk", 0.25, 4), ClassRow("jump", None, 0), ClassRow("run", 0.875, 2)),
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
    failures=(
        Failure("a.mp4", "decode", "failed", "TimeoutError", "no frame for 120 s"),
        Failure("b.mp4", "probe", "failed", "NoVideoStream", "no video stream"),
        Failure("c.mp4", "probe", "failed", "NoVideoStream", "no video stream"),
        Failure("d.mp4", "decode", "partial", "InvalidDataError", "2 of 8 frames"),
    ),
    samples=(
        Sample("v/1.mp4", ("walk",), "walk", (JPEG, JPEG)),
        Sample("v/2.mp4", ("run",), "jump", (JPEG,)),
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
        steps=(StepFact(HOSTILE, HOSTILE, 1.0, 1),),
        results=(replace(FULL.results[0], encoder=HOSTILE, stream=HOSTILE),),
        per_class=(ClassRow(HOSTILE, 0.5, 1),),
        confusion=Confusion((HOSTILE, "b"), ((1, 2), (0, 1))),
        curves=tuple(Curve(HOSTILE, HOSTILE + n, HOSTILE, HOSTILE, (0, 1), (0, 1)) for n in "ab"),
        failures=(Failure(HOSTILE, HOSTILE, "failed", HOSTILE, HOSTILE),),
        samples=(Sample(HOSTILE, (HOSTILE,), HOSTILE, (JPEG,)),),
        provenance={HOSTILE: HOSTILE},
    )


class Page(HTMLParser):
    """Fails where tags do not balance; keeps elements, visible text, and tables by region."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"attribute twice in <{tag}>"
        if tag not in VOID:
            self.open.append(tag)
        if dict(attrs).get("role") == "region":
            self._rows = self.tables[dict(attrs)["aria-label"]] = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self._rows[-1][-1] += data


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(FULL))


def _results(page: Page) -> list[list[str]]:
    return page.tables["Results by encoder and stream"]


@pytest.mark.parametrize("report", [EMPTY, FULL, hostile()], ids=["empty", "full", "hostile"])
def test_the_page_stands_alone(report):
    html = render(report)
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:image/jpeg;base64,")), (tag, address)
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
    style = html[html.index("<style>") : html.index("</style>")]
    assert html.count("<style") == 1
    assert "url(" not in style
    assert "@import" not in style
    policies = [a["content"] for t, a in page.elements if a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


@pytest.mark.parametrize("report", [EMPTY, FULL], ids=["empty", "full"])
def test_structure_for_phones_and_screen_readers(report):
    page = Page(render(report))
    elements = page.elements
    assert ("html", {"lang": "en"}) in elements
    viewports = [a["content"] for t, a in elements if a.get("name") == "viewport"]
    assert viewports == ["width=device-width, initial-scale=1"]
    identifiers = [a["id"] for _, a in elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    links = [a["href"][1:] for t, a in elements if t == "a"]
    assert len(links) == 9
    assert set(links) <= set(identifiers)
    referred = [i for _, a in elements for i in (a.get("aria-labelledby") or "").split()]
    assert set(referred) <= set(identifiers)
    assert all(a.get("alt") for t, a in elements if t == "img")
    assert all(a.get("scope") in ("row", "col") for t, a in elements if t == "th")
    assert [t for t, _ in elements].count("h1") == 1


def test_empty_sections_say_why():
    text = Page(render(EMPTY)).text
    for reason in (
        'No results: the step "evaluate" has not been run',
        "No classes: there are no results",
        "No confusion matrix: there are no results",
        "No frames: none were kept",
        "No curves:",
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
    columns = ["encoder", "stream", "accuracy", "top-2", "mAP", "accuracy in folds", "D", "videos"]
    assert header[:-1] == columns
    # The stream is repeated below the encoder, for narrow screens.
    assert [row[1:-1] for row in rows] == [
        ["pool5", "0.853", "1.000", "\u2013", "\u2013", "\u2013", "1,199"],
        ["pool5", "0.600", "0.812", "0.350", "\u2013", "131,072", "1,200"],
        ["pool5", "0.512", "0.750", "0.400", "0.450 to 0.610", "512", "1,200"],
    ]
    assert [row[0] for row in rows] == ["ave+fv_vaebestfusionpool5", "fv_vaepool5", "avepool5"]


def test_no_per_cent_anywhere(full):
    assert "%" not in full.text


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
    assert ranks == ["avebestpool5", "fv_vaepool5", "ave+fv_vaefusionpool5"]


def test_results_without_a_value_have_no_best():
    unknown = replace(FULL, results=(replace(FULL.results[0], accuracy=None),))
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
    assert rows == [["run", "0.875", "2"], ["walk", "0.250", "4"], ["jump", "\u2013", "0"]]
    widths = [a["style"] for t, a in full.elements if t == "span" and "style" in a]
    assert widths[-2:] == ["width:87.5%", "width:25.0%"]


def test_many_classes_are_folded_away_with_the_extremes_on_top():
    rows = tuple(ClassRow(f"c{i:03d}", i / 100, 1) for i in range(100))
    tables = Page(render(replace(FULL, per_class=(*rows, ClassRow("none", None, 0))))).tables
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
    shown = full.text[full.text.index("Sampled frames") : full.text.index("Training curves")]
    assert re.sub(r"\s+", " ", shown).count("\u2713 right walk") == 1
    assert "\u2717 wrong jump instead of run" in re.sub(r"\s+", " ", shown)
    sources = [a["src"] for t, a in full.elements if t == "img"]
    assert len(sources) == 3
    assert all(base64.b64decode(s.partition(",")[2]) == JPEG for s in sources)


def test_curves_of_one_chart_share_axes_and_differ_in_dashes(full):
    figures = [a for t, a in full.elements if t == "figure"]
    assert len(figures) == 2
    assert "fold 0 ends at 2.5; fold 1 ends at 2.25" in figures[0]["aria-label"]
    assert "loss ends at 7" in figures[1]["aria-label"], "a point that is not finite is left out"
    lines = [
        a["style"] for t, a in full.elements if t == "path" and "--line-" in a.get("style", "")
    ]
    legend = [style for style in lines if "stroke-width:2" in style]
    assert len(legend) == 2
    assert len({style.split("dasharray:")[1] for style in legend}) == 2


def test_charts_take_their_colours_from_the_page():
    html = render(FULL)
    svg = html[html.index("<figure") : html.rindex("</figure>")]
    assert "<svg" in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    for variable in set(re.findall(r"var\((--[a-z0-9-]+)\)", html)) - {"--v"}:
        assert html.count(f"{variable}:") == 2, f"{variable}: one light value and one dark"


def test_failures_are_counted_by_reason_and_listed(full):
    assert full.tables["Failures by reason"][1:] == [
        ["probe", "failed", "NoVideoStream", "2"],
        ["decode", "failed", "TimeoutError", "1"],
        ["decode", "partial", "InvalidDataError", "1"],
    ]
    first = full.tables["Failed and partial segments"][1]
    assert first == ["a.mp4", "decode", "failed", "TimeoutError", "no frame for 120 s"]


def test_a_long_list_of_failures_is_cut_and_says_so():
    many = tuple(Failure(f"{i}.mp4", "decode", "failed", "E", "m") for i in range(1500))
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
            render(replace(FULL, title=odd, curves=curves, per_class=(ClassRow(odd, 1.0, 1),)))
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
