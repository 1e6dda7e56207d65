"""A child that crashes, hangs, eats memory or is orphaned, and the calls after it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video.decode import decode_segment
from pipelines.video.header import VideoError, probe
from pipelines.video.isolation import IsolatedDecoder, patience

MIB = 2**20


@pytest.fixture(scope="module")
def decoder() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(Decode(timeout_s=30.0, memory_bytes=256 * MIB)) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def hasty() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(Decode(timeout_s=1.0)) as decoder:
        yield decoder


def _works(decoder: IsolatedDecoder, data: Path) -> bool:
    return decoder.call(probe, str(data / "clips" / "bikes.mp4")).codec == "h264"


def test_result_equals_that_of_this_process(decoder: IsolatedDecoder, data: Path) -> None:
    uri = str(data / "clips" / "carphone_pristine.mp4")
    arguments = (uri, 0, 1, Sampling(policy="uniform", num_frames=9), Picture(), Decode())
    here, there = decode_segment(*arguments), decoder.call(decode_segment, *arguments)
    assert np.array_equal(here.images, there.images)
    assert there.images.flags.writeable
    assert there.images.flags.c_contiguous
    assert np.array_equal(here.timestamps_s, there.timestamps_s)
    assert here.decoder_version == there.decoder_version


def test_empty_result(decoder: IsolatedDecoder) -> None:
    assert decoder.call(np.zeros, (0, 224, 224, 3), "uint8").shape == (0, 224, 224, 3)


def test_error_of_a_video_passes(decoder: IsolatedDecoder, data: Path) -> None:
    with pytest.raises(VideoError) as caught:
        decoder.call(probe, str(data / "corrupt" / "zero_bytes.webm"))
    assert caught.value.error_type == "empty_file"
    assert "zero_bytes.webm" in caught.value.message


SLEEP = "__import__('time').sleep(60)"
DEAF_SLEEP = f"(__import__('signal').signal(15, __import__('signal').SIG_IGN), {SLEEP})"
FILL = "[bytearray(2**20) for _ in iter(int, 1)]"
# The array takes longer to send than the timer runs.
DIE_ANSWERING = (
    "(__import__('threading').Timer(0.05, __import__('os')._exit, [9]).start(),"
    " __import__('numpy').zeros(2**27, 'uint8'))"
)


@pytest.mark.parametrize(
    ("function", "arguments", "error_type", "message"),
    [
        (os.abort, (), "crashed", "SIGABRT"),
        (eval, ("__import__('ctypes').string_at(0)",), "crashed", "SIGSEGV"),
        (os._exit, (3,), "crashed", "exit code 3"),
        (eval, (DIE_ANSWERING,), "crashed", "exit code 9"),
        (eval, (FILL,), "out_of_memory", "decode.memory_bytes"),
        (np.ones, (2**27,), "out_of_memory", "1.00 GiB"),
        (int, ("x",), "unexpected", "ValueError: invalid literal"),
    ],
)
def test_failure_is_named_and_the_next_call_works(
    decoder: IsolatedDecoder, data: Path, function, arguments, error_type: str, message: str
) -> None:
    assert _works(decoder, data)
    with pytest.raises(VideoError) as caught:
        decoder.call(function, *arguments)
    assert caught.value.error_type == error_type
    assert message in caught.value.message
    assert _works(decoder, data)


@pytest.mark.slow
@pytest.mark.parametrize("code", [SLEEP, DEAF_SLEEP])
def test_a_call_that_hangs_ends_in_time(hasty: IsolatedDecoder, data: Path, code: str) -> None:
    assert _works(hasty, data)
    started = time.monotonic()
    with pytest.raises(VideoError) as caught:
        hasty.call(eval, code)
    assert 1.0 <= time.monotonic() - started < 6.0
    assert str(caught.value) == "timeout: no result after decode.timeout_s = 1 s"
    assert _works(hasty, data)


@pytest.mark.slow
def test_large_pictures_get_more_time(data: Path) -> None:
    """Both limits grow, in parent and child, for that call alone."""
    nap = "__import__('time').sleep(2)"
    with IsolatedDecoder(Decode(timeout_s=1.0, frame_timeout_s=1.0)) as decoder:
        assert _works(decoder, data)
        decoder.call(eval, nap, patience=16.0)
        with pytest.raises(VideoError, match="timeout"):
            decoder.call(eval, nap)
        with pytest.raises(VideoError, match=r"= 1 s x 1\.5 for its large pictures"):
            decoder.call(eval, nap, patience=1.5)


def test_patience_is_by_pixels() -> None:
    assert patience(7680, 4352) == 16.0
    assert patience(640, 480) == patience(1920, 1080) == patience(None, None) == 1.0


def test_memory_within_the_limit_is_given(decoder: IsolatedDecoder) -> None:
    assert decoder.call(np.ones, 16 * MIB).nbytes == 128 * MIB


def test_child_that_dies_between_calls_is_replaced(decoder: IsolatedDecoder, data: Path) -> None:
    child = decoder.call(os.getpid)
    assert decoder.call(os.getpid) == child
    os.kill(child, signal.SIGKILL)
    _wait_until_gone(child)
    assert _works(decoder, data)
    assert decoder.call(os.getpid) != child


def test_child_loads_no_torch_and_no_ray(decoder: IsolatedDecoder, data: Path) -> None:
    assert _works(decoder, data)
    loaded = set(decoder.call(eval, "list(__import__('sys').modules)"))
    assert "pipelines.video.decode" in loaded
    assert not loaded & {"torch", "ray", "pyarrow", "pandas", "decord", "faiss", "sklearn"}


@pytest.mark.slow
def test_a_killed_parent_leaves_no_child(tmp_path: Path) -> None:
    """Neither one that waits nor one that hangs, however its parent ends."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, threading, time\n"
        "from pipelines.settings.sections import Decode\n"
        "from pipelines.video.isolation import IsolatedDecoder, patience\n"
        "idle, busy = IsolatedDecoder(Decode()), IsolatedDecoder(Decode(timeout_s=0.5))\n"
        "print(idle.call(os.getpid), busy.call(os.getpid), flush=True)\n"
        "threading.Timer(0.3, os.kill, [os.getpid(), 9]).start()\n"
        f"busy.call(eval, {DEAF_SLEEP!r})\n"
    )
    run = subprocess.run(
        [sys.executable, script], stdout=subprocess.PIPE, timeout=60, check=False, text=True
    )
    assert run.returncode == -signal.SIGKILL
    for child in map(int, run.stdout.split()):
        _wait_until_gone(child)


@pytest.mark.slow
def test_works_from_a_script_without_a_main_guard(tmp_path: Path, data: Path) -> None:
    clip = str(data / "clips" / "bikes.mp4")
    code = (
        "print('top level')\n"
        "from pipelines.settings.sections import Decode\n"
        "from pipelines.video.isolation import IsolatedDecoder, patience\n"
        "from pipelines.video.header import probe\n"
        "with IsolatedDecoder(Decode()) as decoder:\n"
        f"    print(decoder.call(probe, {clip!r}).codec)\n"
    )
    script = tmp_path / "unguarded.py"
    script.write_text(code)
    for command in ([sys.executable, str(script)], [sys.executable, "-c", code]):
        run = subprocess.run(command, capture_output=True, timeout=60, check=True, text=True)
        assert run.stdout.split("\n") == ["top level", "h264", ""]


def test_a_child_that_cannot_start_is_no_videos_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        IsolatedDecoder(Decode()) as decoder,
        pytest.raises(RuntimeError, match="did not start"),
    ):
        decoder.call(len, "abc")


def _wait_until_gone(process: int) -> None:
    limit = time.monotonic() + 10.0
    while time.monotonic() < limit:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    pytest.fail(f"process {process} is still there")


def promised_text(value: object) -> str:
    """As a child whose memory is damaged may answer: what it is given, of whatever type."""
    return value


def test_an_answer_of_another_type_is_a_crash() -> None:
    with IsolatedDecoder(Decode()) as decoder:
        with pytest.raises(
            VideoError, match=r"crashed: the decoder's .*: expected str, got int '3'"
        ):
            decoder.call(promised_text, 3)
        assert decoder.call(promised_text, "three") == "three"
