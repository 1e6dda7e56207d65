"""Decoding: sampled frames against other libraries, and key frames against frames at given times.

Times are processor time of one process with one thread, from opening a file to its pictures: other
work on the machine disturbs it little, and threads that a library starts unasked are counted.
"""

import importlib
import itertools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from benchmarks.harness import Options, Row, at_least, at_most, optional, progress
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video.decode import SegmentFrames, decode_segment
from pipelines.video.header import VideoError
from pipelines.video.pyav_decoder import PyAvVideo

ROOT = Path(__file__).parents[1]
SIZE_PX = 256
PICTURE = Picture(resize_px=SIZE_PX, crop_px=SIZE_PX)
UNIFORM = Sampling(policy="uniform", num_frames=25)

LARGEST_DIFFERENCE = 8.0
"""Grey levels, mean over a frame: scalers differ by up to 5 (docs/decoders.md)."""

GOP_FRAMES = 250

Side = Callable[[str, list[int], list[int]], NDArray]
"""(path, ordinals, ticks) of the wanted frames -> uint8 [n, SIZE_PX, SIZE_PX, 3]. Which frames
these are is told, at no cost to the side."""


def data_folder() -> Path:
    return Path(os.environ.get("VIDEO_FISHER_DATA", ROOT / ".." / "shared" / "data")).resolve()


def ours(path: str, sampling: Sampling = UNIFORM) -> SegmentFrames:
    return decode_segment(path, 0, 1, sampling, PICTURE, Decode())


def decord_batch(path: str, ordinals: list[int], ticks: list[int]) -> NDArray:
    decord = optional("decord")
    reader = decord.VideoReader(path, width=SIZE_PX, height=SIZE_PX, num_threads=1)
    return reader.get_batch(ordinals).asnumpy()


def pyav_sequential(path: str, ordinals: list[int], ticks: list[int]) -> NDArray:
    wanted, pictures, scaler = set(ordinals), [], VideoReformatter()
    with av.open(path) as container:
        for place, frame in enumerate(container.decode(_stream(container))):
            if place in wanted:
                pictures.append(_scaled(scaler, frame))
            if place >= ordinals[-1]:
                break
    return np.stack(pictures)


def pyav_seeking(path: str, ordinals: list[int], ticks: list[int]) -> NDArray:
    pictures, scaler = [], VideoReformatter()
    with av.open(path) as container:
        stream = _stream(container)
        for tick in ticks:
            container.seek(tick, stream=stream)
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts >= tick:
                    pictures.append(_scaled(scaler, frame))
                    break
    return np.stack(pictures)


def torchcodec_exact(path: str, ordinals: list[int], ticks: list[int]) -> NDArray:
    decoders = importlib.import_module("torchcodec.decoders")
    resize = importlib.import_module("torchcodec.transforms").Resize((SIZE_PX, SIZE_PX))
    decoder = decoders.VideoDecoder(
        path, dimension_order="NHWC", num_ffmpeg_threads=1, transforms=[resize]
    )
    return decoder.get_frames_at(ordinals).data.numpy()


def _stream(container: av.container.InputContainer) -> av.VideoStream:
    stream = container.streams.best("video")
    stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
    return stream


def _scaled(scaler: VideoReformatter, frame: av.VideoFrame) -> NDArray:
    """By the fastest flags that PyAV has, which are its default."""
    return scaler.reformat(frame, SIZE_PX, SIZE_PX, "rgb24", threads=1).to_ndarray()


def others(example: str) -> tuple[dict[str, Side], str]:
    """The sides by name, and why torchcodec is not among them ("" where it is)."""
    sides: dict[str, Side] = {
        "decord": decord_batch,
        "PyAV sequential": pyav_sequential,
        "PyAV seeking": pyav_seeking,
    }
    try:
        torchcodec_exact(example, [0], [0])
    except (ImportError, RuntimeError, OSError) as error:
        return sides, str(error).strip().splitlines()[0]
    return sides | {"torchcodec": torchcodec_exact}, ""


def uniform_frames(options: Options) -> list[Row]:
    """25 uniform frames of each video"""
    data = data_folder()
    paths = [
        *sorted((data / "clips").iterdir()),
        *sorted((data / "labelled").rglob("*.avi")),
        *sorted((data / "labelled").rglob("*.mp4")),
    ]
    if options.quick:
        paths = paths[::48]
    sides, no_torchcodec = others(str(data / "clips" / "bikes.mp4"))
    repetitions = 1 if options.quick else 3
    # Loading a library is no file's time.
    measure_file(data / "clips" / "bikes.mp4", sides, 1)
    results = {}
    for number, path in enumerate(paths):
        if number % 20 == 0:
            progress(f"  {number} of {len(paths)} files")
        results[str(path.relative_to(data))] = measure_file(path, sides, repetitions)
    read = {name: times for name, times in results.items() if times}
    best = {name: min(list(times.values())[1:]) for name, times in read.items()}
    mine = sum(times["ours"] for times in read.values())
    losses = sorted(read, key=lambda name: best[name] - read[name]["ours"])[:12]
    sums = Counter()
    for times in read.values():
        sums.update(times)
    return [
        at_most(
            f"{len(read)} files: 25 uniform frames",
            f"the best per file of {', '.join(sides)}",
            mine / sum(best.values()),
            1.05,
            seconds={"ours": mine, "bests": sum(best.values())},
            seconds_of_files_read=dict(sums),
            files_read=dict(Counter(name for times in read.values() for name in times)),
            fastest=dict(Counter(min(times, key=times.get) for times in read.values())),
            largest_losses_s={
                name: {side: round(seconds, 4) for side, seconds in read[name].items()}
                for name in losses
            },
            skipped=len(results) - len(read),
            torchcodec=no_torchcodec or "measured",
            counted="processor time, best of "
            f"{repetitions} (once where a side takes twice the best); other sides are told which "
            "frames, and count where these are the same",
        )
    ]


def measure_file(path: Path, sides: dict[str, Side], repetitions: int) -> dict[str, float]:
    """{side: seconds}, ours first; the others where they give the same frames. Empty: no video."""
    try:
        expected = ours(str(path))
    except VideoError:
        return {}
    video = PyAvVideo(str(path), path.name, PICTURE, Decode())
    ordinals = expected.frame_indices.tolist()
    ticks = video._listing.ticks[ordinals].tolist()
    video.close()
    times = {"ours": best_seconds(partial(ours, str(path)), repetitions)}
    for name, side in sides.items():
        run = partial(side, str(path), ordinals, ticks)
        began = time.process_time()
        try:
            found = run()
        except Exception as error:  # noqa: BLE001 (any library's own; it then has no time)
            progress(f"  {name} does not read {path.name}: {type(error).__name__}")
            continue
        seconds = time.process_time() - began
        if _same(found, expected.images):
            # What is far from the best has been timed well enough.
            is_near = seconds < 2 * min(times.values())
            times[name] = min(seconds, best_seconds(run, repetitions)) if is_near else seconds
    return times if len(times) > 1 else {}


def _same(found: NDArray, expected: NDArray) -> bool:
    if found.shape != expected.shape:
        return False
    return bool((np.abs(found.astype(int) - expected).mean((1, 2, 3)) < LARGEST_DIFFERENCE).all())


def best_seconds(run: Callable[[], object], repetitions: int) -> float:
    """Least processor time of `repetitions` runs."""
    times = []
    for _ in range(repetitions):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


def key_frames(options: Options) -> list[Row]:
    """Key frames alone, of H.264 with a key frame every 250 frames"""
    rows = []
    sizes = [(640, 360)] if options.quick else [(1920, 1080), (640, 360)]
    num_frames = 3 * GOP_FRAMES
    source = data_folder() / "clips" / "bikes.mp4"
    with tempfile.TemporaryDirectory() as folder:
        for width, height in sizes:
            path = str(Path(folder) / f"{height}.mp4")
            encode(source, path, gop_frames=GOP_FRAMES, size=(width, height), num_frames=num_frames)
            policies = {
                "keyframes": Sampling(policy="keyframes", interval_s=num_frames / 25 / 25),
                "uniform": UNIFORM,
            }
            frames = {name: len(ours(path, given).images) for name, given in policies.items()}
            seconds = {
                name: best_seconds(partial(ours, path, given), 3)
                for name, given in policies.items()
            }
            rows.append(
                at_least(
                    f"{width}x{height}, {num_frames} frames, a key frame every {GOP_FRAMES}: "
                    "policy keyframes",
                    "policy uniform, 25 frames",
                    seconds["uniform"] / seconds["keyframes"],
                    10.0,
                    seconds=seconds,
                    frames=frames,
                    counted="processor time, best of 3; both aim at 25 times",
                )
            )
    return rows


def encode(
    source: Path,
    target: str,
    *,
    gop_frames: int,
    size: tuple[int, int] | None = None,
    num_frames: int | None = None,
) -> None:
    """The pictures of `source` as H.264 at 25 frames per second with a key frame every
    `gop_frames`; over and over, where `num_frames` are wanted."""
    pictures = _pictures(source) if num_frames is None else _endless(source)
    with av.open(target, "w") as out:
        stream = out.add_stream("libx264", rate=25)
        # sc_threshold: no key frames at cuts.
        stream.options = {
            "preset": "veryfast",
            "g": str(gop_frames),
            "keyint_min": str(gop_frames),
            "sc_threshold": "0",
        }
        for place, frame in enumerate(itertools.islice(pictures, num_frames)):
            width, height = size or (frame.width, frame.height)
            if place == 0:
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            scaled = frame.reformat(width, height, "yuv420p")
            scaled.pts, scaled.time_base = place, Fraction(1, 25)
            scaled.pict_type = 0
            for packet in stream.encode(scaled):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)


def _pictures(source: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(source)) as container:
        yield from container.decode(video=0)


def _endless(source: Path) -> Iterator[av.VideoFrame]:
    while True:
        yield from _pictures(source)


CASES = (uniform_frames, key_frames)
