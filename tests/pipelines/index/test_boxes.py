"""Boxes of labels and manifests, from the user's file to the rows of videos."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.errors import ConfigError
from pipelines.index.boxes import COLUMNS, with_margin
from pipelines.index.labels import match, read_labels
from pipelines.index.manifest import list_videos
from pipelines.settings.sections import Manifest, Picture

HEAD = "path,label,box_x,box_y,box_width,box_height\n"


def boxes(table: pa.Table) -> list[list[float | None]]:
    return [list(row) for row in zip(*(table[name].to_pylist() for name in COLUMNS), strict=True)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"x")
    return tmp_path


def table(corpus: Path, text: str, *, of_manifest: bool = False) -> pa.Table:
    (corpus / "list.csv").write_text(text)
    if of_manifest:
        return list_videos(str(corpus / "list.csv"), with_boxes=True)
    labels = read_labels(str(corpus / "list.csv"), with_boxes=True)
    return match(list_videos(str(corpus)), labels, Manifest())


@pytest.mark.parametrize("of_manifest", [False, True])
def test_a_video_has_the_box_of_its_row_or_none(corpus: Path, of_manifest: bool) -> None:
    text = f"{HEAD}./a.jpg,x,1,2,30.5,40\nb.jpg,x,,,,\n"
    found = table(corpus, text, of_manifest=of_manifest)
    assert boxes(found) == [[1, 2, 30.5, 40], [None] * 4]


def test_a_second_label_may_say_the_box_again(corpus: Path) -> None:
    again = f"{HEAD}a.jpg,x,1,2,3,4\na.jpg,y,1.0,2,3,4\nb.jpg,x,0,0,9,9\n"
    found = table(corpus, again)
    assert boxes(found) == [[1, 2, 3, 4], [0, 0, 9, 9]]
    assert found["labels"].to_pylist() == [["x", "y"], ["x"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,box_x\na.jpg,x,1\n", "expected box_x, box_y, .* together, got box_x"),
        (f"{HEAD}a.jpg,x,1,2,nan,4\n", "row 2, a.jpg: expected a box in px"),
        (f"{HEAD}a.jpg,x,1,2,0,4\n", "row 2, a.jpg: .* width and height above 0"),
        (f"{HEAD}a.jpg,x,1,2,3,\n", "row 2, a.jpg: expected a box in px"),
        (f"{HEAD}a.jpg,x,left,2,3,4\n", "got box_x 'left'"),
        (f"{HEAD}a.jpg,x,1,2,3,4\na.jpg,y,1,2,3,5\n", "row 3, a.jpg: expected one box a video"),
        (f"{HEAD}a.jpg,x,1,2,3,4\na.jpg,y,,,,\n", "a.jpg has rows with a box, and rows without"),
    ],
)
def test_wrong_boxes_are_one_message(corpus: Path, text: str, message: str) -> None:
    for of_manifest in (False, True):
        with pytest.raises(ConfigError, match=message):
            table(corpus, text, of_manifest=of_manifest)
    # Where boxes do not count, nobody has to mend them.
    (corpus / "list.csv").write_text(text)
    assert "box_x" not in list_videos(str(corpus / "list.csv")).column_names
    assert read_labels(str(corpus / "list.csv")).box is None


def test_the_margin_is_a_share_of_each_side(corpus: Path) -> None:
    rows = table(corpus, f"{HEAD}a.jpg,x,10,20,100,50\nb.jpg,x,,,,\n")
    larger = with_margin(rows, Picture(box="crop", box_margin=0.1))
    assert boxes(larger) == [[0, 15, 120, 60], [None] * 4]
    assert with_margin(rows, Picture()) is rows


def test_boxes_that_are_asked_for_must_be_there(corpus: Path) -> None:
    for text in ("path,label\na.jpg,x\nb.jpg,x\n", f"{HEAD}a.jpg,x,,,,\nb.jpg,x,,,,\n"):
        with pytest.raises(ConfigError, match=r"picture.box=crop: expected columns box_x, box_y"):
            with_margin(table(corpus, text), Picture(box="crop"))
