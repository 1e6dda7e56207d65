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


@pytest.mark.parametrize("label", ["NA", "null", "nan", "007", "1e3", "true", "=1+1", "@x", "-"])
def test_labels_are_text_as_they_stand(tmp_path: Path, label: str) -> None:
    assert read_labels(write_labels(tmp_path, f"path,label\nx,{label}\n")).labels == {"x": [label]}


def test_names_in_another_unicode_form_are_explained(tmp_path: Path) -> None:
    (tmp_path / "e\u0301.mp4").write_bytes(b"x")
    labels = read_labels(write_labels(tmp_path, "path,label\n\u00e9.mp4,x\n"))
    with pytest.raises(ConfigError, match="another Unicode form"):
        match(list_videos(str(tmp_path)), labels, Manifest())


def test_blanks_at_the_ends_are_no_part_of_a_label(tmp_path: Path) -> None:
    text = "path,label,group,split\nx, walk,g1 ,train\ny,walk\u00a0,g1,\ttest\nz,go  on,g2,test\n"
    labels = read_labels(write_labels(tmp_path, text))
    assert labels.labels == {"x": ["walk"], "y": ["walk"], "z": ["go  on"]}
    assert labels.group == {"x": "g1", "y": "g1", "z": "g2"}
    assert labels.split == {"x": "train", "y": "test", "z": "test"}
    with pytest.raises(ConfigError, match="row 2 has no label"):
        read_labels(write_labels(tmp_path, "path,label\nx,  \n"))


def test_classes_that_differ_by_case_or_blanks_alone_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "path,label\na,Go on\nb,go  on\nc,GO ON\nd,stop\n"
    labels = read_labels(write_labels(tmp_path, text))
    assert labels.labels["b"] == ["go  on"]
    [said] = caplog.messages
    assert "3 classes differ by case or blanks alone" in said
    assert "'GO ON' and 'Go on' and 'go  on'" in said
    assert "stop" not in said


def test_a_label_may_spell_its_video_in_another_way(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    videos = list_videos(str(tmp_path / "*.mp4"))
    rows = f"./a.mp4,x\na.mp4,y\n{tmp_path}/b.mp4,x\nd/../c.mp4,x\n"
    labelled = match(videos, read_labels(write_labels(tmp_path, f"path,label\n{rows}")), Manifest())
    assert labelled["path"].to_pylist() == ["a.mp4", "b.mp4", "c.mp4"]
    assert labelled["labels"].to_pylist() == [["x", "y"], ["x"], ["x"]]


def test_two_spellings_of_a_video_have_one_group(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    videos = list_videos(str(tmp_path))
    labels = read_labels(write_labels(tmp_path, "path,label,group\na.mp4,x,1\n./a.mp4,x,2\n"))
    with pytest.raises(ConfigError, match=r"are the same file, and have . and .; give it one row"):
        match(videos, labels, Manifest())


def test_ignored_classes_are_joined_by_semicolons(tmp_path: Path) -> None:
    text = "path,label,ignore\n1.mp4,x,y; z\n1.mp4,w,\n2.mp4,y,\n3.mp4,z,w\n"
    labels = read_labels(write_labels(tmp_path, text))
    assert labels.ignored == {"1.mp4": ["y", "z"], "3.mp4": ["w"]}
    for name in "123":
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
    table = match(list_videos(f"{tmp_path}/*.mp4"), labels, Manifest())
    assert table["ignored"].to_pylist() == [["y", "z"], [], ["w"]]
    # A column without a value changes nothing.
    empty = read_labels(write_labels(tmp_path, "path,label,ignore\n1.mp4,x,\n"))
    assert empty.ignored is None


@pytest.mark.parametrize("ignored", ["x", "nobody", "y;nobody"])
def test_ignored_classes_are_those_of_other_rows(tmp_path: Path, ignored: str) -> None:
    text = f"path,label,ignore\n1.mp4,x,{ignored}\n2.mp4,y,\n"
    with pytest.raises(ConfigError, match=r"row 2, 1.mp4: ignore: expected classes that other"):
        read_labels(write_labels(tmp_path, text))
