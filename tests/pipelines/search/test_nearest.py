"""A search without a cluster: what it answers, what its page shows, and what it says of a wrong
query."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import ConfigError, RunError
from pipelines.search.index import Facts
from pipelines.search.nearest import search
from pipelines.search.page import Answer, Shown, render
from tests.pipelines.doctor import run as doctor_run
from tests.pipelines.report.page import (
    HOSTILE,
    Page,
    assert_fits,
    assert_stands_alone,
    assert_structure,
)

JPEG = b"\xff\xd8\xff\xe0 not much of a picture"
SMALL = Facts(
    num_videos=60,
    num_left_out=0,
    num_features=20,
    num_queries=57,
    map=0.3125,
)
LARGE = replace(SMALL, num_videos=200_000, num_left_out=3)
ANSWER = Answer(
    encoder="vlad",
    stream="pool5_appearance",
    fold=-1,
    index=SMALL,
    query=Shown(video_id="walk/a.mp4", labels=("walk",), jpegs=(JPEG,)),
    results=(
        Shown(
            video_id="walk/b.mp4", labels=("walk", "run"), rank=1, similarity=0.98765, jpegs=(JPEG,)
        ),
        Shown(video_id="jump/" + "long" * 40 + ".mp4", labels=(), rank=2, similarity=-0.1),
    ),
    page="/runs/a/search/x.html",
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v0 to v4 have encodings, v5 could not be decoded; the files are not there any more."""
    folder = tmp_path_factory.mktemp("shared")
    doctor_run.make(folder)
    return folder


@pytest.fixture
def run(shared: Path, tmp_path: Path) -> Path:
    """A copy, for a test that changes it."""
    return shutil.copytree(shared, tmp_path / "run", ignore=shutil.ignore_patterns("search"))


def test_the_answer_is_the_other_videos_by_likeness(run: Path) -> None:
    answer = search(str(run), "v0", encoder="ave", stream="pool5_appearance")
    assert (answer.encoder, answer.stream, answer.fold) == ("ave", "pool5_appearance", -1)
    assert sorted(result.video_id for result in answer.results) == ["v1", "v2", "v3", "v4"]
    assert [result.rank for result in answer.results] == [1, 2, 3, 4]
    values = [result.similarity for result in answer.results]
    assert values == sorted(values, reverse=True)
    labels = {result.video_id: result.labels for result in answer.results}
    assert labels == {"v1": ("walk",), "v2": ("bend",), "v3": ("walk",), "v4": ()}
    assert answer.query.labels == ("bend",)
    assert not any(result.jpegs for result in answer.results)
    assert Path(answer.page).parent == run / "search"
    page = Page(Path(answer.page).read_text())
    assert "Videos like v0" in page.text
    assert page.text.count("No pictures") == 5
    assert search(str(run), "v0", encoder="ave", stream="pool5_appearance") == answer


def test_the_pair_of_the_best_map_is_taken_among_those_allowed(shared: Path) -> None:
    metrics = doctor_run.Store(str(shared)).read_table(doctor_run.TABLES["metrics"]).to_pylist()
    value = {
        (row["encoder"], row["stream"]): row["value"]
        for row in metrics
        if (row["split"], row["metric"]) == ("all", "mAP") and "+" not in row["stream"]
    }
    best = search(str(shared), "v0", num=2)
    assert value[best.encoder, best.stream] == max(value.values())
    assert len(best.results) == 2
    of_ave = search(str(shared), "v0", encoder="ave")
    assert value["ave", of_ave.stream] == max(v for k, v in value.items() if k[0] == "ave")
    per_fold = search(str(shared), "v0", encoder="fv_vae", stream="pool5_difference")
    assert per_fold.fold == 0
    assert "codebook of fold 0" in Path(per_fold.page).read_text()


def test_the_page_goes_where_it_is_wanted(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "a page.html"
    assert search(str(run), "v1", page=str(page)).page == str(page)
    assert search(str(run), "v1", page=f"{page.parent}/x/../{page.name}").page == str(page)
    assert "Videos like v1" in page.read_text()
    assert not list((run / "search").glob("*.html"))
    with pytest.raises(ConfigError, match=r"--page .*/new/a page.html/b.html: cannot write it"):
        search(str(run), "v1", page=f"{page}/b.html")
    with pytest.raises(
        ConfigError, match=r"--page s3://\*\*\*@host/x: expected a URI without cred"
    ):
        search(str(run), "v1", page="s3://user:word@host/x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"query": "v00"}, r"a video_id of the run, or a video file; found neither; did you mean"),
        ({"query": "/nowhere/v2"}, r"found neither; did you mean 'v2'\?"),
        ({"query": "nothing alike"}, r"found neither; ids look like 'v0'"),
        ({"query": "~nobody/" + "long" * 100}, r"found neither; ids look like 'v0'"),
        ({"query": "v5"}, r"this one has none by ave on .* \(empty_file: it is empty\)"),
        ({"query": __file__}, r"test_nearest.py: cannot be decoded \(not_a_video: Invalid data"),
        ({"query": "memory://nowhere.mp4"}, r"cannot be decoded \(not_found: no such file\)"),
        ({"query": "s3://a:b@host/x.mp4"}, r"--query s3://\*\*\*@host/x.mp4: .* without cred"),
        ({"encoder": "vlad"}, r"--encoder vlad: expected encodings that the run has, which are"),
        ({"encoder": "ave", "stream": "x"}, r"^--encoder ave --stream x: expected encodings"),
        ({"num": 0}, "--num: expected 1 to 100, got 0"),
        ({"num": 101}, "--num: expected 1 to 100, got 101"),
    ],
)
def test_a_wrong_query_is_one_line(shared: Path, given: dict, message: str) -> None:
    flags = {"query": "v0", "encoder": "ave"} | given
    with pytest.raises(ConfigError, match=message) as caught:
        search(str(shared), **flags)
    assert "\n" not in str(caught.value)


def test_a_run_that_is_not_finished_is_refused(run: Path) -> None:
    for mark in run.glob("marks/encodings/*/*/_done*"):
        mark.unlink()
    with pytest.raises(ConfigError, match=r"expected complete encodings of .*, found some missing"):
        search(str(run), "v0")


def test_a_run_without_encodings_is_refused(run: Path) -> None:
    text = (run / "run.json").read_text().replace('"encodings/', '"other/')
    (run / "run.json").write_text(text)
    with pytest.raises(ConfigError, match="expected a run with encodings, found none"):
        search(str(run), "v0")


def test_a_folder_that_cannot_be_written_says_so(run: Path) -> None:
    (run / "search").write_text("in the way")
    with pytest.raises(RunError, match="a search keeps its index there"):
        search(str(run), "v0")


def test_a_table_that_is_gone_says_so(run: Path) -> None:
    for file in (run / doctor_run.TABLES["videos"]).glob("*.parquet"):
        file.unlink()
    with pytest.raises(RunError, match=r"a file is gone .* search again"):
        search(str(run), "v0")


@pytest.mark.parametrize("index", [SMALL, LARGE], ids=["small", "large"])
def test_the_page_stands_alone(index: Facts, tmp_path: Path) -> None:
    html = render(replace(ANSWER, index=index))
    assert_stands_alone(html)
    assert_structure(html)
    text = Page(html).text
    assert "similarity 0.988; walk, run" in text
    assert "mean average precision is 0.312" in text
    assert ("3 encodings are not searched" in text) == (index is LARGE)
    assert html == render(replace(ANSWER, index=index, page="elsewhere"))


def test_the_page_fits_a_phone_and_a_desktop(tmp_path: Path) -> None:
    assert_fits(render(ANSWER), tmp_path)


def test_hostile_ids_and_labels_are_shown_as_text() -> None:
    video = Shown(video_id=HOSTILE, labels=(HOSTILE,), rank=1, similarity=0.5, jpegs=(JPEG,))
    html = render(
        replace(ANSWER, encoder=HOSTILE, stream=HOSTILE, query=video, results=(video, video))
    )
    assert_stands_alone(html)
    assert "<img src=http" not in html
    assert Page(html).text.count(HOSTILE) >= 8


def test_an_empty_answer_is_a_page_too() -> None:
    html = render(replace(ANSWER, results=(), index=replace(SMALL, map=None)))
    assert_stands_alone(html)
    assert "None: the run has no other video" in html
    assert "mean average precision" not in html


def test_a_terminal_gets_no_control_characters() -> None:
    odd = replace(ANSWER.results[0], video_id="a\x1b[2Jb\nc\u202e", labels=("\x07", "d\u00e4"))
    lines = replace(ANSWER, results=(odd, ANSWER.results[1])).lines()
    assert lines[1].split() == ["1", "0.9877", r"a\x1b[2Jb\nc\u202e", r"\x07,", "d\u00e4"]
    assert lines[-2] == (
        "of 60 videos, by vlad on pool5_appearance; retrieval mAP of 57 labelled videos: 0.312"
    )
    assert all(line.isprintable() for line in lines)


def test_json_holds_what_the_table_says() -> None:
    found = ANSWER.to_json()
    assert found["query"] == "walk/a.mp4"
    assert found["results"][0] == {
        "rank": 1,
        "video_id": "walk/b.mp4",
        "similarity": 0.98765,
        "labels": ["walk", "run"],
    }
