"""The lines of the logs, as a process writes them."""

import logging
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import logs
from pipelines.settings.config import Config
from pipelines.settings.sections import Decode
from pipelines.video.stages import DecodeSegments, ProbeVideos

ROOT = Path(__file__).parents[2]
log = logging.getLogger("pipelines.test")


def about(record: logging.LogRecord) -> str:
    return f"{record.about}{record.getMessage()}"


def of_videos(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines that name a video: what tests before have started may still log others."""
    return [about(record) for record in caplog.records if hasattr(record, "about")]


def test_a_line_begins_with_the_time_and_the_video() -> None:
    script = (
        "import logging; from pipelines import logs\n"
        "logs.configure(); logs.configure()\n"
        "log = logging.getLogger('pipelines.x')\n"
        "log.info('100 %')\n"
        "logs.of_video(log, {'video_id': 'a %s.mp4', 'segment_id': 'b#1'}).warning('%d of 2', 1)\n"
        "logging.getLogger('library').info('chatter')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    stamp = "YYYY-MM-DD HH:MM:SS "
    assert [line[len(stamp) :] for line in done.stderr.splitlines()] == [
        "100 %",
        "video='a %s.mp4' segment=b#1 1 of 2",
    ]


@pytest.mark.parametrize(
    ("video_id", "word"),
    [
        ("walk/a.mp4", "walk/a.mp4"),
        ("gehen/ä.mp4", "gehen/ä.mp4"),
        ("a b", "'a b'"),
        ("a\nvideo=b", r"'a\nvideo=b'"),
        ('"', "'\"'"),
        ("x\x1b[31m", r"'x\x1b[31m'"),
        ("", "''"),
    ],
)
def test_an_id_is_one_word_whatever_it_holds(
    caplog: pytest.LogCaptureFixture, video_id: str, word: str
) -> None:
    logs.of_video(log, {"video_id": video_id}).error("said")
    assert about(caplog.records[-1]) == f"video={word} said"


def test_what_was_worked_on_when_something_broke_is_named(caplog: pytest.LogCaptureFixture) -> None:
    rows = pa.table({"video_id": ["a", "b"], "segment_id": ["a#0", "b#3"], "x": [1, 2]})
    with pytest.raises(ZeroDivisionError), logs.naming(log, "describe", rows):
        1 / 0  # noqa: B018
    assert [about(record) for record in caplog.records] == [
        "video=a segment=a#0 describe failed: ZeroDivisionError('division by zero')",
        "video=b segment=b#3 describe failed: ZeroDivisionError('division by zero')",
    ]


@pytest.mark.slow
def test_bad_videos_are_named_with_their_reason(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips, config = data / "clips", Config()
    good, silent = clips / "big_buck_bunny_0_30.webm", clips / "audio_only.mp4"
    manifest = [{"video_id": file.name, "uri": str(file)} for file in (good, silent)]
    probe = ProbeVideos(config.sampling, Decode())
    rows = [probe._row(row) for row in manifest]
    assert of_videos(caplog)[-1].startswith("video=audio_only.mp4 index failed: no_video_stream: ")
    caplog.clear()
    decode = DecodeSegments(config.sampling, config.picture, Decode())
    gone = {**rows[0], "video_id": "gone.mp4", "uri": str(clips / "gone\n.mp4")}
    segments = [
        {**row, "segment_id": f"{row['video_id']}#00000", "segment": 0, "source": "1"}
        for row in (*rows, gone)
    ]
    status = [part["status"][0].as_py() for part in decode(pa.Table.from_pylist(segments))]
    assert status == ["ok", "failed", "failed"]
    lines = of_videos(caplog)
    assert len(lines) == 2
    assert lines[0].startswith(
        "video=audio_only.mp4 segment=audio_only.mp4#00000 index failed: no_video_stream: "
    )
    assert lines[1].startswith("video=gone.mp4 segment=gone.mp4#00000 decode failed: not_found: ")
    assert "\n" not in lines[1]
