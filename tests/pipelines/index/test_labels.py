from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.index.labels import match, read_labels
from pipelines.index.manifest import list_videos
from pipelines.settings.sections import Manifest


def write_labels(folder: Path, text: str) -> str:
    file = folder / "labels.csv"
    file.write_text(text)
    return str(file)


def test_several_rows_are_several_labels(tmp_path: Path) -> None:
    labels = read_labels(write_labels(tmp_path, "path,label\nx,b\nx,a\ny,007\n"))
    assert labels.labels == {"x": ["a", "b"], "y": ["007"]}
    assert labels.group is None
    assert labels.split is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,lable\nx,a\n", "expected columns path,label"),
        ("path,label\nx,\n", "row 2 has no label"),
        ("path,label,split\nx,a,dev\n", "expected split train, test or unused, got 'dev'"),
        ("path,label,group\nx,a,1\nx,b,2\n", "two values of group"),
        ("path,label,group\nx,a,\n", "has no group"),
    ],
)
def test_wrong_labels_say_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_labels(write_labels(tmp_path, text))


def test_a_named_split_is_read_from_its_column(tmp_path: Path) -> None:
    text = "path,label,split,split2\nx,a,train,test\ny,b,test,unused\n"
    file = write_labels(tmp_path, text)
    assert read_labels(file).split == {"x": "train", "y": "test"}
    assert read_labels(file, "split2").split == {"x": "test", "y": "unused"}
    with pytest.raises(ConfigError, match=r"split\.name=split3: expected a column 'split3' in"):
        read_labels(file, "split3")


def test_mismatches_stop_unless_allowed(tmp_path: Path) -> None:
    for name in ("1.mp4", "2.mp4", "3.mp4"):
        (tmp_path / name).write_bytes(b"x")
    videos = list_videos(str(tmp_path))
    labels = read_labels(write_labels(tmp_path, "path,label\n1.mp4,x\ngone.mp4,x\n"))
    with pytest.raises(
        ConfigError, match=r"1 of 2 labelled videos do not exist, such as .'gone.mp4'"
    ):
        match(videos, labels, Manifest())
    with pytest.raises(ConfigError, match="2 of 3 videos have no label"):
        match(videos, labels, Manifest(missing="skip"))
    skipped = match(videos, labels, Manifest(missing="skip", unlabelled="skip"))
    assert skipped["path"].to_pylist() == ["1.mp4"]
    encoded = match(videos, labels, Manifest(missing="skip", unlabelled="encode"))
    assert encoded["labels"].to_pylist() == [["x"], [], []]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfpath,label\r\na.mp4,\xc3\xa9\r\n",
        b"path,label\na.mp4,\xc3\xa9",
        b'"path","label"\r\n"a.mp4","\xc3\xa9"\r\n',
        "path,label\na.mp4,\u00e9\n".encode("utf-16"),
        "path,label\r\na.mp4,\u00e9\r\n".encode("utf-16-le").join([b"\xff\xfe", b""]),
    ],
)
def test_labels_written_by_other_programs(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(data)
    assert read_labels(f"{tmp_path}/labels.csv").labels == {"a.mp4": ["\u00e9"]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"path,label\na.mp4,\xe9\n", "expected text in UTF-8"),
        (b"path;label\na.mp4;x\n", "expected columns path,label"),
        (b"path,label,label\na.mp4,x,y\n", "each column once"),
        (b"", "not a readable table"),
        (b"path,label\na.mp4\n", "not a readable table"),
        (b"\x00\x01\x02" * 50, "--labels"),
    ],
)
def test_labels_that_cannot_be_read_say_why(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read_labels(f"{tmp_path}/labels.csv")


@pytest.mark.parametrize(
    "label", ["NA", "null", "nan", "007", "1e3", "true", "=1+1", "@x", "-", " a"]
)
def test_labels_are_text_as_they_stand(tmp_path: Path, label: str) -> None:
    assert read_labels(write_labels(tmp_path, f"path,label\nx,{label}\n")).labels == {"x": [label]}


def test_names_in_another_unicode_form_are_explained(tmp_path: Path) -> None:
    (tmp_path / "e\u0301.mp4").write_bytes(b"x")
    labels = read_labels(write_labels(tmp_path, "path,label\n\u00e9.mp4,x\n"))
    with pytest.raises(ConfigError, match="another Unicode form"):
        match(list_videos(str(tmp_path)), labels, Manifest())
