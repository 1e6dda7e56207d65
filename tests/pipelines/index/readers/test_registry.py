"""Annotations as the benchmarks ship them, small copies of their own forms."""

import json
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.index.labels import Labels, match, read_labels
from pipelines.index.manifest import list_videos
from pipelines.settings.sections import Manifest


def write(folder: Path, files: dict[str, str]) -> str:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(folder)


EYE, BOW = "ApplyEyeMakeup/v_ApplyEyeMakeup", "Archery/v_Archery"
UCF = {
    "classInd.txt": "1 ApplyEyeMakeup\n2 Archery\n",
    "trainlist01.txt": f"{EYE}_g08_c01.avi 1\n{BOW}_g09_c01.avi 2\n",
    "testlist01.txt": f"{EYE}_g01_c01.avi\n{BOW}_g02_c03.avi\n",
    "trainlist02.txt": f"{EYE}_g01_c01.avi 1\n",
    "testlist02.txt": f"{EYE}_g08_c01.avi\n{BOW}_g09_c01.avi\n",
}
UCF_VIDEOS = [
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
    "Archery/v_Archery_g02_c03.avi",
    "Archery/v_Archery_g09_c01.avi",
]


def test_ucf101(tmp_path: Path) -> None:
    folder = write(tmp_path / "ucf", UCF)
    first = read_labels(folder, "", UCF_VIDEOS)
    assert first.labels["Archery/v_Archery_g02_c03.avi"] == ["Archery"]
    assert first.split == dict(zip(UCF_VIDEOS, ["test", "train", "test", "train"], strict=True))
    assert first.group is not None
    assert first.group[UCF_VIDEOS[0]] == "ApplyEyeMakeup_g01"
    second = read_labels(folder, "split2", UCF_VIDEOS)
    assert second.split == dict(zip(UCF_VIDEOS, ["train", "test", "unused", "test"], strict=True))


def test_one_list_of_ucf101_is_read_with_its_other_half(tmp_path: Path) -> None:
    folder = write(tmp_path / "ucf", UCF)
    whole = read_labels(f"{folder}/trainlist01.txt", "", UCF_VIDEOS)
    assert whole.split == read_labels(folder, "", UCF_VIDEOS).split
    flat = read_labels(f"{folder}/testlist01.txt", "", [Path(p).name for p in UCF_VIDEOS])
    assert flat.labels["v_Archery_g02_c03.avi"] == ["Archery"]


def test_a_half_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "ucf", {"trainlist01.txt": UCF["trainlist01.txt"]})
    with pytest.raises(ConfigError, match=r"--labels .*testlist01.txt"):
        read_labels(folder, "", UCF_VIDEOS)


def test_hmdb51(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "hmdb",
        {
            "brush_hair_test_split1.txt": "a.avi 1 \nb.avi 2 \nc.avi 0 \n",
            "cartwheel_test_split1.txt": "a.avi 2\n",
            "brush_hair_test_split2.txt": "a.avi 2\nb.avi 1\nc.avi 0\n",
            "cartwheel_test_split2.txt": "a.avi 1\n",
        },
    )
    videos = ["brush_hair/a.avi", "brush_hair/b.avi", "brush_hair/c.avi", "cartwheel/a.avi"]
    labels = read_labels(folder, "", videos)
    assert [labels.labels[name] for name in videos] == [["brush_hair"]] * 3 + [["cartwheel"]]
    assert labels.split == dict(zip(videos, ["train", "test", "unused", "test"], strict=True))
    second = read_labels(folder, "split2", videos)
    assert second.split == dict(zip(videos, ["test", "train", "unused", "train"], strict=True))
    write(tmp_path / "hmdb", {"brush_hair_test_split1.txt": "a.avi 3\n"})
    with pytest.raises(ConfigError, match=r"split1.txt, line 1: expected VIDEO.avi and 0, 1 or 2"):
        read_labels(folder, "", videos)


KINETICS = "label,youtube_id,time_start,time_end,split\n"


def test_kinetics(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "k",
        {
            "train.csv": f"{KINETICS}air drumming,aaa,10,20,train\nabseiling,b_b,5,15,train\n",
            "validate.csv": f"{KINETICS}abseiling,ccc,0,10,validate\n",
            "test.csv": f"{KINETICS},ddd,0,10,test\n",
        },
    )
    videos = ["train/aaa_000010_000020.mp4", "train/b_b.mp4", "val/ccc_000000_000010.mp4"]
    labels = read_labels(folder, "", videos)
    cut = "train/b_b.mp4#t=5,15"  # the whole video is there, of which ten seconds are the row
    assert labels.labels == {
        videos[0]: ["air drumming"],
        cut: ["abseiling"],
        videos[2]: ["abseiling"],
    }
    assert labels.split == {videos[0]: "train", cut: "train", videos[2]: "test"}
    one = read_labels(f"{folder}/train.csv", "", videos)
    assert one.split is None
    with pytest.raises(ConfigError, match="line 2: expected times in seconds"):
        read_labels(write(tmp_path / "w", {"a.csv": f"{KINETICS}x,aaa,ten,20,train\n"}), "", videos)


ACTIVITYNET = {
    "version": "1.3",
    "database": {
        "aa": {
            "subset": "training",
            "annotations": [
                {"label": "Archery", "segment": [1.5, 4.0]},
                {"label": "Polo", "segment": [6.0, 9.0]},
            ],
        },
        "bb": {"subset": "validation", "annotations": [{"label": "Polo", "segment": [0, 3]}]},
        "cc": {"subset": "testing", "annotations": []},
    },
}


def test_activitynet(tmp_path: Path) -> None:
    file = f"{write(tmp_path / 'a', {'a.json': json.dumps(ACTIVITYNET)})}/a.json"
    videos = ["v_aa.mp4", "bb.mkv"]
    whole = read_labels(file, "", videos)
    assert whole.labels == {"v_aa.mp4": ["Archery", "Polo"], "bb.mkv": ["Polo"]}
    assert whole.split == {"v_aa.mp4": "train", "bb.mkv": "test"}
    cut = read_labels(file, "", videos, "use")
    assert cut.labels == {
        "v_aa.mp4#t=1.5,4": ["Archery"],
        "v_aa.mp4#t=6,9": ["Polo"],
        "bb.mkv#t=0,3": ["Polo"],
    }
    with pytest.raises(ConfigError, match="expected one video named v_aa, got 2"):
        read_labels(file, "", ["1/v_aa.mp4", "2/v_aa.mp4", "bb.mkv"])
    (tmp_path / "a" / "a.json").write_text('{"videos": []}')
    with pytest.raises(ConfigError, match="expected ActivityNet's JSON"):
        read_labels(file, "", videos)


def test_fcvid(tmp_path: Path) -> None:
    files = {
        "FCVID_VideoName_TrainTestSplit.txt": "dog/a.mp4\ttrain\ncat/b.mp4\ttest\n",
        "FCVID_Label.txt": "1\t0\t1\n0\t1\t0\n",
    }
    folder = write(tmp_path / "f", files)
    videos = ["dog/a.mp4", "cat/b.mp4"]
    labels = read_labels(folder, "", videos)
    assert labels.labels == {"dog/a.mp4": ["class_001", "class_003"], "cat/b.mp4": ["class_002"]}
    assert labels.split == {"dog/a.mp4": "train", "cat/b.mp4": "test"}
    write(tmp_path / "f", {"FCVID_class.txt": "1, dog\n2, cat\n3, making cake\n"})
    assert read_labels(folder, "", videos).labels["dog/a.mp4"] == ["dog", "making cake"]
    write(tmp_path / "f", {"FCVID_Label.txt": "1\t0\t1\n"})
    with pytest.raises(ConfigError, match="expected as many lines"):
        read_labels(folder, "", videos)


def test_a_folder_for_each_class() -> None:
    labels = read_labels("folders", "", ["run/a.avi", "part/walk/b.avi"])
    assert labels == Labels({"run/a.avi": ["run"], "part/walk/b.avi": ["walk"]}, None, None)
    with pytest.raises(ConfigError, match="expected each video in the folder of its class"):
        read_labels("folders", "", ["a.avi"])


def test_two_videos_of_one_name_are_told(tmp_path: Path) -> None:
    file = write(tmp_path / "k", {"t.csv": f"{KINETICS}x,aaa,0,10,train\n"})
    with pytest.raises(ConfigError, match=r"expected one video named aaa.*1/aaa.mp4, 2/aaa.mp4"):
        read_labels(file, "", ["1/aaa.mp4", "2/aaa.mp4"])


@pytest.mark.parametrize("files", [{"readme.md": "x"}, {"a.json": "[]"}])
def test_what_is_no_annotation_lists_what_is(tmp_path: Path, files: dict[str, str]) -> None:
    folder = write(tmp_path / "x", files)
    with pytest.raises(ConfigError, match=r"ActivityNet's JSON|ucf101: .*hmdb51: "):
        read_labels(f"{folder}/a.json" if "a.json" in files else folder, "", [])


def test_stretches_of_labels_cut_the_listed_videos(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label,start_s,end_s\na.mp4,x,0,2.5\na.mp4,y,2.5,7\nb.mp4,x,,\n")
    listed = list_videos(str(tmp_path))
    read = read_labels(str(labels), "", listed["path"].to_pylist())
    rows = match(listed, read, Manifest()).select(["path", "start_s", "end_s", "labels"])
    assert rows.to_pylist() == [
        {"path": "a.mp4#t=0,2.5", "start_s": 0.0, "end_s": 2.5, "labels": ["x"]},
        {"path": "a.mp4#t=2.5,7", "start_s": 2.5, "end_s": 7.0, "labels": ["y"]},
        {"path": "b.mp4", "start_s": None, "end_s": None, "labels": ["x"]},
    ]


@pytest.mark.parametrize(("start", "end"), [("5", "5"), ("-1", "5"), ("x", "5"), ("1", "")])
def test_times_that_are_no_stretch(tmp_path: Path, start: str, end: str) -> None:
    (tmp_path / "l.csv").write_text(f"path,label,start_s,end_s\na.mp4,x,{start},{end}\n")
    with pytest.raises(ConfigError, match=r"row 2, a.mp4: expected 0 <= start_s < end_s"):
        read_labels(f"{tmp_path}/l.csv")
