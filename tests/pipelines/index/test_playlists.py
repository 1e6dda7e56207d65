"""Playlists in a folder: a row of their own, and none for the pieces that they cut a video into."""

import logging
from pathlib import Path

import pytest

from pipelines.index.manifest import list_videos
from pipelines.storage.store import Store
from pipelines.video.header import VideoError, probe

pytestmark = pytest.mark.usefixtures("s3_bucket")

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n{}\n#EXT-X-ENDLIST\n"
DASH = (
    '<MPD><Period><AdaptationSet><Representation id="0"><SegmentTemplate '
    'initialization="init-$RepresentationID$.m4s" media="s/c$RepresentationID$-$Number%05d$.m4s"/>'
    "</Representation></AdaptationSet></Period></MPD>"
)


def listed(folder: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    remote = Store(f"s3://bucket{folder}")
    for name, text in files.items():
        remote.publish(name, text.encode())
    found = list_videos(str(folder))["path"].to_pylist()
    assert list_videos(remote.root)["path"].to_pylist() == found
    return found


def test_pieces_of_hls_are_no_videos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    media = HLS.format("#EXTINF:4,\na%20b.ts?x=1\n#EXTINF:4,\n../p/c.ts\n#EXTINF:4,\n../../z.ts")
    master = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nlow.m3u8\n"
    files = {"p/low.m3u8": media, "p/a b.ts": "", "p/c.ts": "", "z.ts": "", "p/d.ts": ""}
    with caplog.at_level(logging.WARNING):
        assert listed(tmp_path / "1", files) == ["p/d.ts", "p/low.m3u8", "z.ts"]
    assert "2 x piece of a video that a playlist names, such as 'p/a b.ts'" in caplog.text
    assert listed(tmp_path / "2", {**files, "p/all.m3u8": master}) == [
        "p/all.m3u8",
        "p/d.ts",
        "z.ts",
    ]


def test_pieces_of_fragmented_hls_and_of_dash_are_no_videos(tmp_path: Path) -> None:
    media = HLS.format('#EXT-X-MAP:URI="init.mp4"\n#EXTINF:4,\n1.m4s')
    files = {"index.m3u8": media, "init.mp4": "", "1.m4s": "", "2.mp4": ""}
    assert listed(tmp_path / "hls", files) == ["2.mp4", "index.m3u8"]
    names = ("init-0.m4s", "s/c0-00001.m4s", "s/c0-00002.m4s", "s/other.m4s", "s/t/c0-00001.m4s")
    files = {"m.mpd": DASH, **dict.fromkeys(names, "")}
    assert listed(tmp_path / "dash", files) == ["m.mpd", "s/other.m4s", "s/t/c0-00001.m4s"]


def test_whole_videos_stay_whatever_names_them(tmp_path: Path) -> None:
    """A player's list, ranges of one file, and a playlist of what lies elsewhere."""
    ranges = HLS.format("#EXT-X-BYTERANGE:9@0\nmovie.mp4\n#EXT-X-BYTERANGE:9@9\nmovie.mp4")
    files = {
        "all.m3u": "#EXTM3U\n#EXTINF:4,A\na.mp4\n#EXTINF:4,B\nb.mp4\n",
        "movie.m3u8": ranges,
        "away.m3u8": HLS.format("https://host/a.mp4\nfile:///etc/b.mp4"),
        "parts.ffconcat": "ffconcat version 1.0\nfile a.mp4\nfile b.mp4\n",
        **dict.fromkeys(("a.mp4", "b.mp4", "movie.mp4"), ""),
    }
    assert listed(tmp_path, files) == sorted(files)


@pytest.mark.parametrize(("folder", "playlist"), [("hls", "index.m3u8"), ("dash", "m.mpd")])
def test_a_video_in_pieces_is_one_refused_row(data: Path, folder: str, playlist: str) -> None:
    table = list_videos(str(data / "faulty" / folder))
    assert table["path"].to_pylist() == [playlist]
    with pytest.raises(VideoError, match="refused_format"):
        probe(table["uri"][0].as_py())
