"""The page of a sweep: every number in words and in place, the paper's apart from one's own."""

import re
from dataclasses import replace
from math import sqrt

import pytest

from pipelines.report.papers import tables as papers
from pipelines.studies.sweep_page import Sweep, SweepPoint, render_sweep, standard_error, text_table
from tests.pipelines.report.page import (
    HOSTILE,
    Page,
    assert_colours_of_the_page,
    assert_fits,
    assert_stands_alone,
    assert_structure,
)


def point(encoder: str, parameter: str, value: float, accuracy: float | None, **changes):
    fields = {"stream": "pool5", "dimension": 4096, "map": 0.25, "fold_values": ()}
    return SweepPoint(
        encoder=encoder, parameter=parameter, value=value, accuracy=accuracy, **(fields | changes)
    )


FULL = Sweep(
    title="weizmann: sweep",
    data="weizmann, 60 videos",
    points=(
        point("vlad", "D", 131072, 0.6),
        point("vlad", "D", 4096, 0.4),
        point("fv_vae", "D", 4096, 0.5, fold_values=(0.4, 0.5, 0.6)),
        point("fv_vae", "D", 32768, 0.7, dimension=32768),
        point("fv_vae", "D", 131072, 0.65, map=None),
        point("fv_vae", "lambda3", 100000, 0.3),
        point("fv_vae", "lambda3", 0, 0.45),
        point("fv_vae", "lambda3", 10, 0.8),
        point("fv_vae", "lambda3", 1, None),
    ),
    notes=("Shapes can be compared, heights cannot.",),
    command="python -m jobs.sweep --sweep dimension --out 's3://b/a <b>'",
)
EMPTY = Sweep(title="Empty", data="nothing", points=())


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render_sweep(FULL))


def charts(page: Page) -> list[str]:
    return [a["aria-label"] for t, a in page.elements if t == "figure"]


@pytest.mark.parametrize("sweep", [FULL, EMPTY], ids=["full", "empty"])
def test_the_page_stands_alone(sweep):
    assert_stands_alone(render_sweep(sweep))
    assert_structure(render_sweep(sweep))


def test_the_page_fits_a_phone_and_a_desktop(tmp_path):
    assert_fits(render_sweep(FULL), tmp_path)


def test_colours_follow_the_theme():
    assert_colours_of_the_page(render_sweep(FULL))


def test_hostile_text_is_shown_as_text():
    points = tuple(replace(p, encoder=HOSTILE, stream=HOSTILE) for p in FULL.points)
    html = render_sweep(Sweep(title=HOSTILE, data=HOSTILE, points=points, notes=(HOSTILE,)))
    assert_stands_alone(html)
    assert "<img src=http" not in html
    assert Page(html).text.count(HOSTILE) > 10


def test_each_curve_is_said_in_words(full):
    dimension, lambda3 = charts(full)
    assert dimension.startswith(
        "Accuracy against D. "
        "fv_vae on pool5: 0.500 at 4,096, 0.650 at 131,072, highest 0.700 at 32,768; "
        "vlad on pool5: 0.400 at 4,096, 0.600 at 131,072, highest 0.600 at 131,072. "
        "Marks of the paper: FV 0.7885 at 131,072, UCF101 split 1, VGG-19"
    )
    assert lambda3.startswith(
        "Accuracy against lambda3. fv_vae on pool5: 0.450 at 0, 0.300 at 100,000, highest 0.800 at"
        " 10. "
    )


def test_the_papers_points_are_hollow_and_named(full):
    names = re.findall(r"paper: (.*?)\n", full.text)
    assert names == [
        "FV 0.7885 at 131,072, UCF101 split 1, VGG-19",
        "VLAD 0.8067 at 131,072, UCF101 split 1, VGG-19",
        "FV-VAE 0.8345 at 131,072, UCF101 split 1, VGG-19",
        "FV-VAE 0.7837 at 4,096, UCF101 split 1, VGG-19",
        "FV-VAE^- 0.8191 on pool5, UCF101 split 1",
        "FV-VAE^- 0.8205 on pool5 fine-tuned, UCF101 split 1",
        "FV-VAE^- 0.8505 on res5c, UCF101 split 1",
    ]
    legend = [
        (a["d"], a["style"])
        for t, a in full.elements
        if t == "path" and a.get("d", "").startswith("M") and a["d"].endswith("Z")
    ]
    hollow = [path for path, style in legend if style.startswith("fill:none")]
    filled = [path for path, style in legend if style.startswith("fill:var(--line-")]
    assert (len(hollow), len(filled)) == (len(names), 3)
    # The same shape for the same method: own fv_vae and vlad, the paper's VLAD and FV-VAE.
    assert hollow[1] == filled[1]
    assert hollow[2] == hollow[3] == filled[0]
    for fact in papers.DQ_FIGURE_4A + papers.DQ_FIGURE_4B:
        assert fact in full.text


def markers(html: str, chart: str) -> dict[str, list[tuple[float, float]]]:
    """Places of the marks in the SVG by their fill."""
    start = html.index(f'id="{chart}-figure_1"')
    svg = html[start : html.index("</svg>", start)]
    found: dict[str, list[tuple[float, float]]] = {}
    for x, y, style in re.findall(r'<use [^>]*x="([0-9.]+)" y="([0-9.]+)" style="([^"]*)"', svg):
        fill = "none" if "fill-opacity: 0" in style else style.partition(";")[0].split()[1]
        found.setdefault(fill, []).append((float(x), float(y)))
    return found


def test_dimensions_are_placed_on_a_scale_of_powers_of_two():
    marks = markers(render_sweep(FULL), "D")
    (x12, y5), (x15, y7), (x17, y65) = marks["var(--line-0)"]
    assert (x15 - x12) / (x17 - x12) == pytest.approx(3 / 5, abs=1e-3)
    assert (y5 - y65) / (y5 - y7) == pytest.approx(0.75, abs=1e-3)
    (fv_x, fv_y), (vlad_x, _), (fv_vae_x, fv_vae_y), (seven_x, seven_y) = marks["none"]
    assert fv_x == vlad_x == fv_vae_x
    assert (fv_vae_x - seven_x) == pytest.approx(x17 - x12, abs=0.1)
    assert (fv_y - fv_vae_y) / (y5 - y7) == pytest.approx((0.8345 - 0.7885) / 0.2, abs=1e-3)
    assert seven_y == pytest.approx(y5 + (y7 - y5) * (0.7837 - 0.5) / 0.2, abs=0.1)


def test_no_class_loss_stands_apart_on_the_left():
    html = render_sweep(FULL)
    (zero, _), (ten, _), (top, _) = markers(html, "lambda3")["var(--line-0)"]
    decade = (top - ten) / 4
    assert zero == pytest.approx(ten - 2 * decade, abs=0.1)
    assert [x for x, _ in markers(html, "lambda3")["none"]] == pytest.approx(3 * [zero], abs=0.1)
    for path in re.findall(r' d="(M[^"]*)"', html):
        xs = [float(x) for x, _ in re.findall(r"([\d.]+) ([\d.]+)", path)]
        ends = [any(abs(x - place) < 0.1 for x in xs) for place in (zero, ten)]
        assert not all(ends), "no line joins lambda3 = 0 to the curve"


def test_all_points_are_in_the_table_in_order(full):
    header, *rows = full.tables["All points of the sweep"]
    dash = "\u2013"
    assert header == [
        "encoder",
        "stream",
        "setting",
        "accuracy",
        "standard error",
        "folds",
        "mAP",
        "D",
    ]
    error = f"{0.1 / sqrt(3):.3f}"
    assert rows[0] == [
        "fv_vaepool5",
        "pool5",
        "D = 4,096",
        "0.500",
        error,
        "3",
        "0.250",
        "4,096",
    ]
    assert [row[2:4] for row in rows[1:]] == [
        ["D = 32,768", "0.700"],
        ["D = 131,072", "0.650"],
        ["D = 4,096", "0.400"],
        ["D = 131,072", "0.600"],
        ["lambda3 = 0", "0.450"],
        ["lambda3 = 1", dash],
        ["lambda3 = 10", "0.800"],
        ["lambda3 = 100,000", "0.300"],
    ]
    assert "s3://b/a <b>" in full.text
    assert "Shapes can be compared" in full.text


def test_the_table_for_a_terminal():
    header, first, *rest = text_table(FULL)
    names = "encoder stream parameter value D accuracy std. error mAP folds"
    assert " ".join(header.split()) == names
    assert " ".join(first.split()) == "fv_vae pool5 D 4,096 4,096 0.500 0.058 0.250 3"
    assert len(rest) == len(FULL.points) - 1
    assert rest[5].split()[2:6] == ["lambda3", "1", "4,096", "-"]
    assert len({len(line) for line in (header, first, *rest)}) == 1


def test_error_bars_are_the_standard_error_over_folds():
    values = (0.2, 0.5, 0.6, 0.9)
    mean = sum(values) / 4
    expected = sqrt(sum((v - mean) ** 2 for v in values) / 3) / 2
    assert standard_error(point("a", "D", 1, 0.5, fold_values=values)) == pytest.approx(expected)
    assert standard_error(point("a", "D", 1, 0.5, fold_values=(0.5,))) is None
    # A bar of the chart is that long: 0.5 +- 0.0577 against the distance of two points 0.2 apart.
    html = render_sweep(FULL)
    (x12, y5), (_, y7), _ = markers(html, "D")["var(--line-0)"]
    bars = [
        abs(float(a) - float(b))
        for x, a, _, b in re.findall(r"M ([\d.]+) ([\d.]+) \n?L ([\d.]+) ([\d.]+)", html)
        if float(x) == pytest.approx(x12, abs=0.01)
    ]
    assert bars[0] / (y5 - y7) == pytest.approx(2 * 0.057735 / 0.2, abs=1e-3)


def test_a_sweep_of_one_parameter_has_one_chart_and_values_beyond_the_papers_fit():
    only = replace(FULL, points=tuple(p for p in FULL.points if p.parameter == "lambda3"))
    assert len(charts(Page(render_sweep(only)))) == 1
    wide = replace(
        FULL,
        points=(
            point("other", "D", 100, 0.5),
            point("other", "D", 2**20, 0.5),
            point("other", "lambda3", 0.001, 0.5),
            point("other", "lambda3", 0, None),
        ),
    )
    text = Page(render_sweep(wide)).text
    assert {"2^6", "2^20", "1e-3"} <= set(text.split())
    nothing = replace(FULL, points=(point("other", "D", 4096, None),))
    assert "No values" in charts(Page(render_sweep(nothing)))[0]
    assert "No curves: the sweep has no points." in Page(render_sweep(EMPTY)).text


def test_equal_sweeps_give_equal_pages():
    assert render_sweep(FULL) == render_sweep(FULL)


def test_compressions_are_three_curves_with_what_the_paper_says_of_them() -> None:
    ways = ("fewer latents of fv_vae", "PCA of fv_vae", "random Maclaurin of fv_vae")
    points = tuple(
        point(way, "P", value, accuracy, dimension=value)
        for way, accuracy in zip(ways, (0.8, 0.7, 0.6), strict=True)
        for value in (1024, 4096)
    )
    page = Page(render_sweep(Sweep(title="c", data="60 videos", points=points)))
    (words,) = charts(page)
    assert words.startswith("Accuracy against P. ")
    assert all(way in words for way in ways)
    assert "always achieves the best accuracy" in page.text
    assert "FV-VAE 0.7837 at 4,096" in words


def test_impossible_points_are_refused():
    with pytest.raises(ValueError, match=r"a parameter out of \('D', 'lambda3', 'P'\), got 'K'"):
        point("a", "K", 1, 0.5)
    with pytest.raises(ValueError, match="D of at least 1, got 0"):
        point("a", "D", 0, 0.5)
    with pytest.raises(ValueError, match="lambda3 of at least 0, got -1"):
        point("a", "lambda3", -1, 0.5)
    with pytest.raises(ValueError, match="lambda3 of at least 0, got nan"):
        point("a", "lambda3", float("nan"), 0.5)
