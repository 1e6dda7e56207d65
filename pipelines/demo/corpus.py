"""A small labelled corpus of really encoded videos, made offline, for the demonstration.

The class of a video is its motion. Every scene is filmed with every motion, shows the same two
objects in every class, and has one codec, size, frame rate and duration for all of them, so that
nothing but motion tells the classes apart. `group` is the scene: grouped folds test on scenes
that were never seen.
"""

import csv
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import Flags
from av.video.stream import VideoStream
from numpy.random import default_rng
from PIL.Image import Image

from pipelines.demo.motions import CANVAS_SIDE, MOTIONS, OBJECT_SIDE, Shot, draw_frames, make_motion
from pipelines.demo.scenes import scene_canvas, scene_name, scene_objects

LABELS_FILE = "labels.csv"
SETTINGS_FILE = "demo_corpus.json"
# Raise it when the same seed gives other files: an old folder is then not taken for current.
CORPUS_VERSION = 2

_CODECS = (
    # With mbtree libx264 gives other bytes from time to time.
    ("libx264", "mp4", {"preset": "veryfast", "crf": "26", "mbtree": "0"}),
    ("mpeg4", "avi", {"flags": "+qscale+bitexact", "global_quality": str(5 * 118)}),
    ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "crf": "36", "b": "0"}),
)
_SIZES_PX = ((160, 120), (192, 144), (240, 180), (320, 240), (144, 192))
_RATES = (Fraction(12), Fraction(15), Fraction(25), Fraction(30000, 1001))


@dataclass(frozen=True)
class Clip:
    """The properties that all videos of one scene share."""

    codec: str
    extension: str
    options: dict[str, str]
    width_px: int
    height_px: int
    rate: Fraction
    num_frames: int


def clip_of_scene(seed: int, scene: int) -> Clip:
    """Return the properties of a scene's videos.

    Scenes take the options in turn; 3, 5 and 4 have no common factor, so all combinations come up.
    """
    pick = [
        options[default_rng([seed, 2, axis]).permutation(len(options))[scene % len(options)]]
        for axis, options in enumerate((_CODECS, _SIZES_PX, _RATES))
    ]
    (codec, extension, options), (width_px, height_px), rate = pick
    duration_s = default_rng([seed, 3, scene]).uniform(2.0, 3.5)
    return Clip(codec, extension, options, width_px, height_px, rate, round(duration_s * rate))


def _write_video(path: Path, clip: Clip, frames: Iterator[Image]) -> None:
    with av.open(str(path), "w") as container:
        container.flags |= Flags.bitexact.value  # no random identifiers, no dates
        stream = cast(
            VideoStream, container.add_stream(clip.codec, rate=clip.rate, options=clip.options)
        )
        stream.width, stream.height, stream.pix_fmt = clip.width_px, clip.height_px, "yuv420p"
        stream.codec_context.gop_size = round(clip.rate)  # a key frame a second
        stream.codec_context.thread_count = 1  # the bytes may depend on how the work is split
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def _write_scene(folder: Path, seed: int, scene: int) -> Iterator[tuple[str, str, str]]:
    """Write the videos of one scene, one per class; yield (path, label, group) after each."""
    clip = clip_of_scene(seed, scene)
    short_px = min(clip.width_px, clip.height_px)
    canvas = scene_canvas(seed, scene, round(CANVAS_SIDE * short_px))
    objects = scene_objects(seed, scene, round(OBJECT_SIDE * short_px))
    parked = np.array([[-0.27, 0], [0.27, 0]])
    parked += default_rng([seed, 4, scene]).uniform(-0.12, 0.12, parked.shape)
    shot = Shot(np.arange(clip.num_frames) / float(clip.rate), clip.width_px / short_px)
    for index, label in enumerate(MOTIONS):
        motion = make_motion(label, shot, parked, default_rng([seed, 5, scene, index]))
        path = Path(label) / f"{label}_{scene:02d}.{clip.extension}"
        (folder / label).mkdir(exist_ok=True)
        frames = draw_frames(canvas, objects, motion, clip.width_px, clip.height_px)
        _write_video(folder / path, clip, frames)
        yield path.as_posix(), label, scene_name(scene)


def _is_complete(folder: Path, settings: dict[str, int]) -> bool:
    """Return True if the folder holds the corpus of these settings, with every file that it
    lists."""
    try:
        saved = json.loads((folder / SETTINGS_FILE).read_text())
        with (folder / LABELS_FILE).open(newline="") as file:
            paths = [row["path"] for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError):
        return False
    return saved == settings and all((folder / path).is_file() for path in paths)


def make_demo_corpus(
    folder: Path,
    *,
    seed: int = 0,
    num_videos_per_class: int = 12,
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write the corpus into `folder` and return the path of its `labels.csv`.

    `labels.csv` has the columns path (relative to `folder`, forward slashes), label and group. The
    same seed gives the same files. A folder that is complete for the same settings is left as it
    is; a run that is killed leaves no `folder`.

    Args:
        num_videos_per_class: the number of scenes, each filmed once per class.
        on_video: called with (videos done, videos in all) after each video.

    Raises:
        ValueError: `num_videos_per_class` or `seed` is out of range.
        FileExistsError: `folder` holds something else; nothing in it is touched.
    """
    if num_videos_per_class < 1 or seed < 0:
        raise ValueError(
            "make_demo_corpus: expected num_videos_per_class >= 1 and seed >= 0, "
            f"got {num_videos_per_class} and {seed}"
        )
    folder = Path(folder).absolute()
    settings = {
        "version": CORPUS_VERSION,
        "seed": seed,
        "num_videos_per_class": num_videos_per_class,
    }
    if _is_complete(folder, settings):
        return folder / LABELS_FILE
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"make_demo_corpus: expected {folder} to be absent, empty or the complete corpus of "
            f"{settings}, got something else; name another folder or remove this one"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial.", dir=folder.parent))
    try:
        _write_corpus(partial, settings, on_video)
        partial.chmod(0o755)  # mkdtemp gives 0o700; the workers may be another user
        partial.replace(folder)
    except OSError:
        # Another run with the same settings may have been first.
        if not _is_complete(folder, settings):
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / LABELS_FILE


def _write_corpus(
    folder: Path, settings: dict[str, int], on_video: Callable[[int, int], None]
) -> None:
    rows = []
    total = len(MOTIONS) * settings["num_videos_per_class"]
    for scene in range(settings["num_videos_per_class"]):
        for row in _write_scene(folder, settings["seed"], scene):
            rows.append(row)
            on_video(len(rows), total)
    with (folder / LABELS_FILE).open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "label", "group"), *sorted(rows)])
    (folder / SETTINGS_FILE).write_text(json.dumps(settings) + "\n")
