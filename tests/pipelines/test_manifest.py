from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import ConfigError, Manifest, Split
from pipelines.manifest import assign_folds, list_videos, match, read_labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "a/1.mp4",
        "a/2.AVI",
        "b/\u00fc ' \".webm",
        "b/notes.txt",
        ".hidden.mp4",
        "labels.csv",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def paths(table: pa.Table) -> list[str]:
    return table["path"].to_pylist()


def test_a_folder_gives_its_videos_and_passes_over_the_rest(folder: Path) -> None:
    table = list_videos(str(folder))
    assert paths(table) == ["a/1.mp4", "a/2.AVI", "b/\u00fc ' \".webm"]
    assert table["size_bytes"].to_pylist() == [1, 1, 1]
    assert all(Path(uri).exists() for uri in table["uri"].to_pylist())


def test_globs_single_files_and_uris(folder: Path) -> None:
    assert paths(list_videos(f"{folder}/a/*")) == ["1.mp4", "2.AVI"]
    assert paths(list_videos(f"{folder}/**/*.mp4")) == ["a/1.mp4"]
    assert paths(list_videos(f"{folder}/a/1.mp4")) == ["1.mp4"]
    assert paths(list_videos(f"file://{folder}/a")) == ["1.mp4", "2.AVI"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_manifests_are_relative_to_their_folder(folder: Path, kind: str) -> None:
    names = ["a/2.AVI", str(folder / "a" / "1.mp4")]
    file = folder / f"manifest.{kind}"
    if kind == "csv":
        file.write_text("path\n" + "\n".join(names))
    else:
        pq.write_table(pa.table({"path": names}), file)
    assert sorted(paths(list_videos(str(file)))) == sorted(names)


def test_symbolic_links_are_not_followed(folder: Path) -> None:
    (folder / "a" / "link.mp4").symlink_to("/etc/hostname")
    assert "a/link.mp4" not in paths(list_videos(str(folder)))


@pytest.mark.parametrize(
    "videos", ["nowhere", "nowhere/*.mp4", "empty", "manifest.csv", "gone.csv"]
)
def test_nothing_to_do_is_an_error(tmp_path: Path, videos: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "manifest.csv").write_text("path\nnot-there.mp4\n")
    with pytest.raises(ConfigError, match="--videos"):
        list_videos(f"{tmp_path}/{videos}")


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
        ("path,label,split\nx,a,dev\n", "expected split train or test, got 'dev'"),
        ("path,label,group\nx,a,1\nx,b,2\n", "two values of group"),
        ("path,label,group\nx,a,\n", "has no group"),
    ],
)
def test_wrong_labels_say_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_labels(write_labels(tmp_path, text))


def test_mismatches_stop_unless_allowed(folder: Path) -> None:
    videos = list_videos(str(folder))
    labels = read_labels(write_labels(folder, "path,label\na/1.mp4,x\ngone.mp4,x\n"))
    with pytest.raises(
        ConfigError, match=r"1 of 2 labelled videos do not exist, such as .'gone.mp4'"
    ):
        match(videos, labels, Manifest())
    with pytest.raises(ConfigError, match="2 of 3 videos have no label"):
        match(videos, labels, Manifest(missing="skip"))
    skipped = match(videos, labels, Manifest(missing="skip", unlabelled="skip"))
    assert paths(skipped) == ["a/1.mp4"]
    encoded = match(videos, labels, Manifest(missing="skip", unlabelled="encode"))
    assert encoded["labels"].to_pylist() == [["x"], [], []]


def corpus(
    classes: list[int], groups: list[int | None], splits: list[str] | None = None
) -> pa.Table:
    size = len(classes)
    return pa.table(
        {
            "path": [f"v{i:04d}" for i in range(size)],
            "labels": pa.array([[f"c{k}"] for k in classes], pa.list_(pa.string())),
            "group": pa.array([None if g is None else f"g{g}" for g in groups], pa.string()),
            "split": pa.array(splits or [None] * size, pa.string()),
        }
    )


@given(
    num_groups=st.integers(3, 8),
    seed=st.integers(0, 5),
    kind=st.sampled_from(["random", "group_kfold", "leave_one_group_out"]),
)
def test_a_group_is_never_on_both_sides(num_groups: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    groups = [i % num_groups for i in range(40)]
    table = corpus(rng.integers(0, 3, 40).tolist(), groups)
    folds, used, num_folds = assign_folds(table, Split(kind=kind, num_folds=3), seed)
    assert used == kind
    fold = np.array(folds["fold"])
    for group in range(num_groups):
        assert len(set(fold[np.array(groups) == group])) == 1
    assert set(fold) == (set(range(num_folds)) if kind != "random" else {-1, 0})


def test_auto_takes_what_the_labels_offer() -> None:
    groups = [0, 0, 1, 1, 2, 2, 3, 3]
    classes = [0, 1] * 4
    split = ["train", "train", "test", "test"] * 2
    assert assign_folds(corpus(classes, groups, split), Split(), 0)[1:] == ("given", 1)
    assert assign_folds(corpus(classes, groups), Split(), 0)[1:] == ("group_kfold", 4)
    assert assign_folds(corpus(classes, [None] * 8), Split(), 0)[1:] == ("random", 1)


def test_random_keeps_each_class_on_both_sides() -> None:
    table, _, _ = assign_folds(corpus([0] * 10 + [1] * 4, [None] * 14), Split(test_fraction=0.5), 3)
    fold = np.array(table["fold"])
    assert (fold[:10] == 0).sum() == 5
    assert (fold[10:] == 0).sum() == 2


def test_splits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected a column 'split'"):
        assign_folds(corpus([0, 1], [None, None]), Split(kind="given"), 0)
    with pytest.raises(ConfigError, match="at most the 2 groups"):
        assign_folds(corpus([0, 1, 0, 1], [0, 0, 1, 1]), Split(kind="group_kfold", num_folds=3), 0)
    with pytest.raises(ConfigError, match="has 1 classes to train on"):
        assign_folds(corpus([0, 1], [0, 1]), Split(kind="leave_one_group_out"), 0)
