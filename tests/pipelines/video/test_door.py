"""The one door for media: what is not a video itself is refused, and opens nothing else."""

import os
import shutil
import time
from pathlib import Path

import av.format
import fsspec
import pytest

from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video import door
from pipelines.video.decode import decode_segment
from pipelines.video.header import VideoError, probe

SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=x
c=IN IP4 127.0.0.1
t=0 0
m=video 50004 RTP/AVP 96
a=rtpmap:96 H264/90000
"""
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<AdaptationSet contentType="video"><Representation id="0" bandwidth="1" codecs="avc1">'
    "<BaseURL>../secret/bikes.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>"
)
HOSTILE = {
    "absolute.m3u8": HLS.format("file://{secret}"),
    "beside.m3u8": HLS.format("../secret/bikes.mp4"),
    "hls_named.mp4": HLS.format("../secret/bikes.mp4"),
    "concat_named.mp4": "ffconcat version 1.0\nfile '../secret/bikes.mp4'\n",
    "list.ffconcat": "ffconcat version 1.0\nfile '../secret/bikes.mp4'\n",
    "sdp_named.mp4": SDP,
    "call.sdp": SDP,
    "manifest.mpd": DASH,
    "scene.nfo": "a release of 1999\n" * 60,
    "art.ans": "\x1b[31mred\x1b[0m\n" * 60,
}


@pytest.fixture
def corpus(data: Path, tmp_path: Path) -> Path:
    """A folder of hostile files; the video that they name lies outside it."""
    secret = tmp_path / "secret" / "bikes.mp4"
    secret.parent.mkdir()
    shutil.copy(data / "clips" / "bikes.mp4", secret)
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, text in HOSTILE.items():
        (folder / name).write_text(text.replace("{secret}", str(secret)))
    for number in range(3):
        (folder / f"f{number:03d}.ppm").write_bytes(b"P6 8 8 255\n" + bytes(192))
    shutil.copy(folder / "f000.ppm", folder / "f%03d.ppm")
    return folder


def remote(path: Path) -> str:
    """Copy the file to object storage of this process."""
    uri = f"memory://door/videos/{path.name}"
    fsspec.filesystem("memory").pipe(uri, path.read_bytes())
    return uri


def outcomes(uri: str, decoder: str = "pyav") -> list[str]:
    """Return the error types of header and frames, or their container and number."""
    found = []
    for work in (
        lambda: probe(uri).container,
        lambda: len(
            decode_segment(
                uri,
                0,
                1,
                Sampling(policy="uniform", num_frames=3),
                Picture(resize_px=32, crop_px=32),
                Decode(decoder=decoder),
            ).images
        ),
    ):
        try:
            found.append(str(work()))
        except VideoError as error:
            found.append(error.error_type)
    return found


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("name", [*HOSTILE, "f%03d.ppm", "f000.ppm"])
def test_what_is_no_video_itself_is_refused_at_once(corpus: Path, name: str, decoder: str) -> None:
    started = time.monotonic()
    for uri in (str(corpus / name), remote(corpus / name)):
        assert outcomes(uri, decoder) == ["refused_format", "refused_format"]
    # An SDP that is let in waits for packets.
    assert time.monotonic() - started < 5


def test_the_message_says_for_what_the_file_was_taken_and_what_to_do(corpus: Path) -> None:
    for name, kind in {
        "absolute.m3u8": "hls",
        "sdp_named.mp4": "sdp",
        "scene.nfo": "tty",
        "hls_named.mp4": "a playlist",
    }.items():
        with pytest.raises(VideoError, match=f"taken for {kind}; .*ffmpeg -i IT -c copy"):
            probe(str(corpus / name))


def test_nothing_is_opened_even_by_a_container_that_would(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second lock: without any protocol, a playlist that is let in finds nothing."""
    monkeypatch.setattr(door, "_ALLOWED", f"{door._ALLOWED},hls,concat,sdp")
    for name in ("absolute.m3u8", "beside.m3u8", "concat_named.mp4", "sdp_named.mp4"):
        for uri in (str(corpus / name), remote(corpus / name)):
            with pytest.raises(VideoError) as caught:
                probe(uri)
            # Not refused by its name, but because what it names cannot be opened.
            assert caught.value.error_type in ("not_a_video", "unreadable", "refused_format")
            assert "taken for hls" not in caught.value.message


@pytest.mark.parametrize(
    "clip",
    [
        *("clips/bikes.mp4", "clips/asl_eat.mkv", "clips/camtrap_Hyena.AVI", "clips/clip1024.flv"),
        *("clips/camtrap_PICT0021.ASF", "clips/pigs_in_a_polka.gif", "clips/sine_stereo_mp2.mpg"),
        *("clips/transparent.webm", "clips/audio_with_cover_art.mp3", "faulty/raw_hevc.hevc"),
        *("faulty/raw_h264_bframes.h264", "faulty/joined_reset.ts", "faulty/dv_fps.dv"),
    ],
)
def test_local_and_remote_files_are_taken_for_the_same(data: Path, clip: str) -> None:
    path = data / clip
    assert outcomes(str(path)) == outcomes(remote(path))
    assert "refused_format" not in outcomes(str(path))


@pytest.mark.parametrize("name", ["x%03d.gif", "x{1}.gif", "x*.gif", "rtsp:x.gif", "a:b.gif"])
def test_a_name_is_no_pattern_and_no_address(data: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(data / "clips" / "pigs_in_a_polka.gif", tmp_path / name)
    for uri in (str(tmp_path / name), remote(tmp_path / name)):
        assert outcomes(uri) == ["gif", "3"]


def test_the_list_holds_names_that_this_ffmpeg_knows() -> None:
    names = [name for names in door.CONTAINERS.values() for name in names]
    assert len(names) == len(set(names))
    for name in names:
        assert av.format.ContainerFormat(name, "r").is_input
    page = (Path(door.__file__).parents[2] / "docs" / "decoders.md").read_text()
    for purpose, allowed in door.CONTAINERS.items():
        assert f"| {purpose} | {', '.join(f'`{name}`' for name in allowed)} |" in page


def test_no_other_place_opens_media(data: Path) -> None:
    """`av.open` stands once in the pipeline; only what writes clips may use it too."""
    root = Path(door.__file__).parents[2]
    files = [f for room in ("pipelines", "encoders", "jobs") for f in (root / room).rglob("*.py")]
    opens = {os.path.relpath(f, root) for f in files if "av.open(" in f.read_text()}
    assert opens == {"pipelines/video/door.py", "pipelines/demo/corpus.py"}
