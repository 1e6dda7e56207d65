import csv
import io
import logging
import os
import socket
import tempfile
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from pipelines.index.labels import match, read_labels
from pipelines.index.manifest import list_videos
from pipelines.settings.sections import Manifest
from pipelines.storage.store import Store


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


@pytest.mark.parametrize("look", [True, False])
@pytest.mark.parametrize("named", ["", "/**/*", "/a/1.mp4", "/list.csv"])
def test_a_video_is_the_same_file_from_every_folder(
    folder: Path, named: str, look: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "a/1.mp4",
        "a/../b/../a/2.AVI",
        f"{folder}/b/../a/1.mp4",
        f"file://{folder}/b/../a/2.AVI",
    ]
    (folder / "list.csv").write_text("\n".join(["path", *names]))
    expected = list_videos(f"{folder}{named}", look=look)
    assert not [uri for uri in expected["uri"].to_pylist() if ".." in uri]
    assert set(expected["uri"].to_pylist()) <= set(list_videos(str(folder))["uri"].to_pylist())
    for cwd, way in (("a", ".."), ("b/deep/er", "../../.."), ("b", f"../../{folder.name}")):
        (folder / cwd).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder / cwd)
        assert list_videos(f"{way}{named}", look=look).equals(expected)


def test_a_folder_that_is_a_link_keeps_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "latest").symlink_to("a")
    monkeypatch.chdir(folder / "b")
    uris = list_videos("../latest")["uri"].to_pylist()
    assert uris == [f"{folder}/latest/1.mp4", f"{folder}/latest/2.AVI"]


def test_keys_of_object_storage_stay_as_they_are(s3_bucket: str, tmp_path: Path) -> None:
    root = f"{s3_bucket}/{tmp_path.name}"
    names = ["a/../1.mp4", f"{root}/b/../2.mp4"]
    Store(root).publish("list.csv", "\n".join(["path", *names]).encode())
    uris = list_videos(f"{root}/list.csv", look=False)["uri"].to_pylist()
    assert uris == [f"{root}/a/../1.mp4", names[1]]


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


# --- odd folders --------------------------------------------------------------------------------

ODD_NAMES = [
    "plain.mp4",
    " leading space.mp4",
    "-leading dash.mp4",
    "--set=x.mp4",
    "quote ' and \" and `.mp4",
    "new\nline.mp4",
    "tab\tand\\backslash.mp4",
    "a#b?c%20d*e[f]g{h}.mp4",
    "a::b.mp4",
    "semi;colon,comma&amp.mp4",
    "<script>alert(1)<.mp4",
    "=1+1.mp4",
    "\u00e9 in one.mp4",
    "e\u0301 in two.mp4",
    "\u202egnp.mp4",
    "\U0001f3ac.mp4",
    "name=value.mp4",
    "n" * 200 + ".mp4",
    "a/" + "/".join(["deep" * 20] * 11) + "/x.mp4",
    "no suffix",
]


def make(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_odd_names_are_names_like_others(tmp_path: Path) -> None:
    base = tmp_path / "odd [1] * ?"
    make(base, ODD_NAMES)
    listed = list_videos(str(base))
    assert paths(listed) == sorted(ODD_NAMES)
    assert all(Path(uri).is_file() for uri in listed["uri"].to_pylist())
    text = io.StringIO()
    csv.writer(text).writerows(
        [["path", "label"], *([name, "=HYPERLINK(1)"] for name in ODD_NAMES)]
    )
    (base / "list.csv").write_text(text.getvalue(), newline="")
    assert paths(list_videos(str(base / "list.csv"))) == sorted(ODD_NAMES)
    labels = read_labels(str(base / "list.csv"))
    assert labels.labels == {name: ["=HYPERLINK(1)"] for name in ODD_NAMES}
    matched = match(listed, labels, Manifest())
    assert matched["labels"].to_pylist() == [["=HYPERLINK(1)"]] * len(ODD_NAMES)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1)
        .filter(lambda name: name[0] != "." and len(name.encode()) < 200)
        .map(lambda name: f"{name}.mp4"),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_any_name_survives(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), names)
        assert paths(list_videos(folder)) == sorted(names)


def test_odd_names_on_object_storage(s3_bucket: str, tmp_path: Path) -> None:
    store = Store(f"{s3_bucket}/{tmp_path.name}")
    names = ["a b.mp4", "a#b%20c.mp4", "e\u0301.mp4", "quote'.mp4", "x=1/y.mp4", "*.mp4"]
    for name in names:
        store.publish(name, b"x")
    listed = list_videos(store.root)
    assert paths(listed) == sorted(names)
    store.publish("list.csv", ("path\n" + "\n".join(names)).encode())
    assert list_videos(f"{store.root}/list.csv")["uri"].to_pylist() == listed["uri"].to_pylist()


def test_names_that_would_be_opened_as_others_are_passed_over(
    s3_bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(f"{s3_bucket}/{tmp_path.name}")
    names = ["a::b.mp4", "b.mp4", "c?versionId=1.mp4", "d?.mp4"]
    for name in names:
        boto3.client("s3").put_object(Bucket="bucket", Key=f"{tmp_path.name}/{name}", Body=b"x")
    store.publish("list.csv", "\n".join(["path", "a::b.mp4", "b.mp4"]).encode())
    for videos, count, listed in (("", 2, ["b.mp4", "d?.mp4"]), ("/list.csv", 1, ["b.mp4"])):
        caplog.clear()
        assert paths(list_videos(f"{store.root}{videos}")) == listed
        assert f"{count} x name with :: or ?versionId=, which cannot be opened" in caplog.text


def test_what_is_no_video_is_passed_over_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "videos"
    make(base, ["good.mp4", "labels.csv", "more.zip", "more.tar", "locked/x.mp4", "secret.mp4"])
    make(tmp_path, ["outside/y.mp4"])
    (base / "out").symlink_to(tmp_path / "outside")
    (base / "loop").symlink_to(base)
    (base / "self.mp4").symlink_to("self.mp4")
    (base / "dangling.mp4").symlink_to("nowhere")
    (base / "passwd.mp4").symlink_to("/etc/passwd")
    os.mkfifo(base / "pipe.mp4")
    open(os.fsencode(base) + b"/\xff.mp4", "wb").close()
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(base)
        server.bind("socket.mp4")
    scandir = os.scandir

    def guarded(folder: str) -> object:
        if str(folder).endswith("/locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    monkeypatch.setattr(os, "access", lambda path, _: "secret" not in str(path))
    with caplog.at_level(logging.INFO, logger="pipelines.index.manifest"):
        assert paths(list_videos(str(base))) == ["good.mp4"]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "passed over 12 entries" in warnings[0]
    for kind in (
        "2 x archive",
        "5 x link",
        "1 x pipe",
        "1 x socket",
        "1 x folder that cannot be read",
        "1 x file that is gone or cannot be read",
        "1 x name that is no UTF-8",
    ):
        assert kind in warnings[0]
    assert any("1 .csv" in r.getMessage() for r in caplog.records if r.levelno == logging.INFO)


def test_objects_that_stand_for_folders_are_no_videos(s3_bucket: str, tmp_path: Path) -> None:
    store = Store(f"{s3_bucket}/{tmp_path.name}")
    for name in ("sub/1.mp4", "sub_$folder$", "sub/", ""):
        store.fs.pipe_file(f"{store.path('')}/{name}", b"x" if name.endswith("4") else b"")
    assert paths(list_videos(store.root)) == ["sub/1.mp4"]
    assert paths(list_videos(f"{store.root}/**")) == ["sub/1.mp4"]


def test_what_other_programs_leave_is_no_video(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = [".cache/x/1.mp4", ".git/HEAD", "a/.b/c/2.mp4", ".DS_Store", ".git/x.zip"]
    make(tmp_path, ["a/3.mp4", *hidden, "Thumbs.db", "a/x.lock", "a/x.metadata", "desktop.ini"])
    (tmp_path / ".link").symlink_to("a")
    assert paths(list_videos(str(tmp_path))) == ["a/3.mp4"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert paths(list_videos(f"{tmp_path}/.cache")) == ["x/1.mp4"]


def test_hidden_objects_are_no_videos(s3_bucket: str, tmp_path: Path) -> None:
    store = Store(f"{s3_bucket}/{tmp_path.name}")
    for name in (".cache/1.mp4", "a/.b/2.mp4", "a/3.mp4"):
        store.publish(name, b"x")
    assert paths(list_videos(store.root)) == ["a/3.mp4"]


@pytest.mark.parametrize("videos", ["", "/*", "/**/*"])
def test_the_output_of_the_run_is_left_out(
    tmp_path: Path, videos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a killed run, which leaves its lock there, would not know its videos again."""
    make(tmp_path, ["1.mp4", "out/_run.lock.ab12", "out/frames/x", "outer.mp4"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (f"{tmp_path}/out", "out", "out/", "link/out"):
        assert paths(list_videos(f"{tmp_path}{videos}", out=out)) == ["1.mp4", "outer.mp4"]
    for out in (str(tmp_path), f"{tmp_path}/..", "s3://bucket/out", f"{tmp_path}/ou"):
        assert "1.mp4" in paths(list_videos(f"{tmp_path}{videos}", out=out))
    assert "x" in paths(list_videos(f"{tmp_path}/out/frames", out="out"))


def test_the_output_in_a_bucket_is_left_out(s3_bucket: str, tmp_path: Path) -> None:
    store = Store(f"{s3_bucket}/{tmp_path.name}")
    for name in ("1.mp4", "out/_run.lock.ab12", "outer.mp4"):
        store.publish(name, b"x")
    listed = list_videos(store.root, out=f"{store.root}/out")
    assert paths(listed) == ["1.mp4", "outer.mp4"]


def test_a_manifest_may_name_links_but_no_pipes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, ["a.mp4", "folder/x.mp4"])
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    names = ["a.mp4", "link.mp4", "pipe.mp4", "folder", "a.mp4", "folder/../a.mp4"]
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(names))
    assert paths(list_videos(f"{tmp_path}/list.csv")) == ["a.mp4", "link.mp4"]
    assert "2 of 6 rows repeat a video" in caplog.text
    assert "1 x folder, such as 'folder'; 1 x pipe, such as 'pipe.mp4'" in caplog.text


@pytest.mark.parametrize("root", ["/", "//", "/tmp/..", "file:///", "s3://", "s3:///"])
def test_the_root_of_a_file_system_is_refused(root: str) -> None:
    """All that a machine holds, /proc too, would be taken for videos; no bucket is named."""
    with pytest.raises(ConfigError, match=r"got the root of a file system; name the folder"):
        list_videos(root)


def test_a_manifest_may_name_no_unknown_protocol(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\ns4://bucket/x.mp4\n")
    with pytest.raises(ConfigError, match=r"--videos s4://bucket/x.mp4: Protocol not known: s4"):
        list_videos(f"{tmp_path}/list.csv")


@pytest.mark.parametrize("name", ["n" * 4000, "a/" * 2000 + "x.mp4", "nul\0byte.mp4", "gone.mp4"])
def test_a_name_that_cannot_be_is_missing(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"path": [name]}), tmp_path / "list.parquet")
    with pytest.raises(ConfigError, match="1 files do not exist") as said:
        list_videos(f"{tmp_path}/list.parquet")
    assert len(str(said.value)) < 1000


def test_a_million_rows(tmp_path: Path) -> None:
    make(tmp_path, [f"{i}.mp4" for i in range(100)])
    rows = "".join(f"{i % 100}.mp4,c{i % 7}\n" for i in range(1_000_000))
    (tmp_path / "list.csv").write_text("path,label\n" + rows)
    assert list_videos(f"{tmp_path}/list.csv").num_rows == 100
    labels = read_labels(f"{tmp_path}/list.csv").labels
    assert len(labels) == 100
    assert labels["0.mp4"] == [f"c{i}" for i in range(7)]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:secret@bucket/x",
        "https://host/x.mp4?X-Amz-Signature=s3cret&X-Amz-Credential=secret",
    ],
)
def test_credentials_in_uris_are_refused_and_not_repeated(tmp_path: Path, uri: str) -> None:
    pq.write_table(pa.table({"path": [uri]}), tmp_path / "list.parquet")
    for call in (
        lambda: list_videos(uri),
        lambda: list_videos(f"{tmp_path}/list.parquet"),
        lambda: read_labels(uri),
    ):
        with pytest.raises(ConfigError, match="without credentials") as said:
            call()
        assert "secret" not in str(said.value)
        assert "s3cret" not in str(said.value)


def test_a_file_under_three_spellings_is_one_video(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "b.mp4").write_bytes(b"x")
    manifest = tmp_path / "videos.csv"
    manifest.write_text(f"path\n./a.mp4\n{tmp_path}/a.mp4\na.mp4\n{tmp_path}/b.mp4\n")
    listed = list_videos(str(manifest))
    assert sorted(listed["uri"].to_pylist()) == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
    assert "a.mp4" in listed["path"].to_pylist()
    assert "2 of 4 rows repeat a video and count once" in caplog.text
    assert list_videos(str(manifest), look=False)["path"].equals(listed["path"])


def test_an_object_under_three_spellings_is_one_video(s3_bucket: str) -> None:
    store = Store(f"{s3_bucket}/spelled")
    store.publish("a.mp4", b"x")
    store.publish("videos.csv", f"path\n./a.mp4\n{s3_bucket}/spelled/a.mp4\na.mp4\n".encode())
    listed = list_videos(f"{s3_bucket}/spelled/videos.csv")
    assert listed["path"].to_pylist() == ["a.mp4"]
    assert listed["uri"].to_pylist() == [f"{s3_bucket}/spelled/a.mp4"]


def test_a_folder_of_links_names_the_manifest_that_follows_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mp4").write_bytes(b"x")
    links = tmp_path / "links"
    links.mkdir()
    (links / "a.mp4").symlink_to(tmp_path / "real" / "a.mp4")
    with pytest.raises(ConfigError, match="found none; links are not followed in a folder; a mani"):
        list_videos(str(links))
    (links / "b.mp4").write_bytes(b"x")
    assert list_videos(str(links))["path"].to_pylist() == ["b.mp4"]
    assert "a manifest follows them: --videos FILE.csv" in caplog.text


def test_what_cameras_leave_beside_videos_is_no_video(tmp_path: Path) -> None:
    for name in ("GX010001.MP4", "GX010001.THM", "GL010001.LRV", "IMG_1.HEIC", "IMG_2.avif"):
        (tmp_path / name).write_bytes(b"x")
    assert list_videos(str(tmp_path))["path"].to_pylist() == ["GX010001.MP4"]
