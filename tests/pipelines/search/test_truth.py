"""The truth of a retrieval benchmark: each form that is read, and messages about wrong ones."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.errors import ConfigError
from pipelines.search.truth import Query, read_truth

IDS = ["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg"]
VIDEOS = pa.table({"video_id": IDS, "uri": [f"/photos/{name}" for name in IDS]})
ROWS = "query,path,judgement\na/1.jpg,a/1.jpg,good\na/1.jpg,./a/2.jpg,ok\n1,/photos/b/3.jpg,junk\n"


def write(folder: Path, text: str, name: str = "truth.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_good_and_ok_are_right_and_spellings_of_a_file_are_one(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, ROWS), None, VIDEOS)
    right, junk = frozenset(["a/2.jpg"]), frozenset(["b/3.jpg"])
    assert truth.queries == (Query("a/1.jpg", right, junk),)
    assert (truth.name, truth.ignore_query) == ("truth", True)


def test_on_oxford_and_paris_the_query_is_one_of_its_right_answers(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, ROWS), "oxford", VIDEOS)
    assert truth.queries[0].right == {"a/1.jpg", "a/2.jpg"}
    assert (truth.name, truth.ignore_query) == ("oxford", False)


def test_without_judgements_all_are_good(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, "query,path\n1,2\n1,3\n"), None, VIDEOS)
    assert truth.queries == (Query("a/1.jpg", frozenset(["a/2.jpg", "b/3.jpg"])),)


def test_the_published_folder_of_oxford(tmp_path: Path) -> None:
    write(tmp_path, "oxc1_1 136.5 34.1 648.5 955.7\n", "all_souls_1_query.txt")
    for name, text in (("good", "1\n2\n"), ("ok", "3\n"), ("junk", "4\n")):
        write(tmp_path, text, f"all_souls_1_{name}.txt")
    truth = read_truth(str(tmp_path), "oxford", VIDEOS)
    assert truth.queries == (Query("a/1.jpg", frozenset(IDS[:3]), frozenset(IDS[3:])),)


def test_numbers_tell_the_truth_of_holidays() -> None:
    ids = ["100100.jpg", "100000.jpg", "100001.jpg", "100002.jpg", "100101.jpg", "100201.jpg"]
    truth = read_truth(None, "holidays", pa.table({"video_id": ids, "uri": ids}))
    assert {query.video_id: query.right for query in truth.queries} == {
        "100000.jpg": {"100001.jpg", "100002.jpg"},
        "100100.jpg": {"100101.jpg"},
    }
    assert truth.ignore_query


def test_an_id_stands_for_itself_before_it_is_a_name_without_suffix(tmp_path: Path) -> None:
    ids = ["1", "1.jpg", "2.jpg"]
    videos = pa.table({"video_id": ids, "uri": ids})
    truth = read_truth(write(tmp_path, "query,path\n1,2\n"), None, videos)
    assert truth.queries == (Query("1", frozenset(["2.jpg"])),)


def test_queries_without_an_answer_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "query,path,judgement\n1,2,good\n3,3,good\n4,1,junk\n"
    truth = read_truth(write(tmp_path, text), None, VIDEOS)
    assert [query.video_id for query in truth.queries] == ["a/1.jpg"]
    assert "2 of 3 queries have no right answer and are left out, such as ['b/3.jpg'" in caplog.text


@pytest.mark.parametrize(
    ("text", "preset", "message"),
    [
        (None, None, r"--truth .*nowhere.csv: no such file"),
        (None, "oxfrod", r"--preset: expected one of holidays, oxford, paris, got 'oxfrod'; did"),
        (
            "query,image\n1,2\n",
            None,
            r"expected columns query,path,judgement, got query,image; pat",
        ),
        ("query,path\n1,\n", None, r"row 2 has no path"),
        ("query,path,judgement\n1,2,bad\n", None, r"row 2: expected judgement good, .*, got 'bad'"),
        ("query,path\n1,2\n1,a/5.jpg\n", None, r"1 paths are not, such as path 'a/5.jpg', .* none"),
        ("query,path\n9,2\n", None, r"such as query '9', which is none of them; ids look like"),
        ("query,path,judgement\n1,2,ok\n1,2,junk\n", None, r"1.jpg: a/2.jpg is ok and junk"),
        ("query,path\n1,1\n", None, r"expected queries with right answers, got none .* itself"),
        ("query,path\n", None, r"expected queries with right answers, got none .* among 0"),
    ],
)
def test_a_wrong_truth_is_one_line(
    tmp_path: Path, text: str | None, preset: str | None, message: str
) -> None:
    name = write(tmp_path, text) if text else str(tmp_path / "nowhere.csv")
    with pytest.raises(ConfigError, match=message) as caught:
        read_truth(name, preset, VIDEOS)
    assert "\n" not in str(caught.value)


def test_only_holidays_needs_no_file() -> None:
    with pytest.raises(ConfigError, match=r"only --preset holidays reads the truth off the names"):
        read_truth(None, "paris", VIDEOS)
    with pytest.raises(ConfigError, match=r"expected images named by numbers, .* got 1 others"):
        read_truth(None, "holidays", pa.table({"video_id": ["a.jpg"], "uri": ["a.jpg"]}))
