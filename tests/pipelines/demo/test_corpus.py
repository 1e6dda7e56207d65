"""The demonstration corpus: real files, and classes that differ in motion and in nothing else."""

import csv
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.random import default_rng
from PIL import Image

from pipelines.demo.corpus import clip_of_scene, make_demo_corpus
from pipelines.demo.motions import (
    CANVAS_SIDE,
    MOTIONS,
    OBJECT_SIDE,
    Motion,
    Shot,
    draw_frames,
    make_motion,
)
from pipelines.demo.scenes import scene_canvas, scene_name

NUM_SCENES = 3
PARKED = np.array([[-0.27, 0.1], [0.27, -0.1]])


pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def labels_path(tmp_path_factory) -> Path:
    return make_demo_corpus(
        tmp_path_factory.mktemp("demo") / "corpus", num_videos_per_class=NUM_SCENES
    )


@pytest.fixture(scope="module")
def one_scene(tmp_path_factory) -> Path:
    return make_demo_corpus(tmp_path_factory.mktemp("demo") / "one", num_videos_per_class=1)


@pytest.fixture(scope="module")
def rows(labels_path) -> list[dict[str, str]]:
    with labels_path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def videos(labels_path, rows) -> dict[tuple[str, str], dict]:
    """(label, group) -> what the file holds; frames are grey, float [T, h, w]."""
    found = {}
    for row in rows:
        with av.open(str(labels_path.parent / row["path"])) as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(stream)]
            found[row["label"], row["group"]] = {
                "codec": stream.codec_context.name,
                "size_px": (stream.width, stream.height),
                "rate": round(float(stream.average_rate), 1),
                "num_frames": len(frames),
                "frames": np.stack(frames).astype(float),
            }
    return found


def phase_correlation(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """The shift (x, y) in pixels, cyclic, that takes `first` to `second`."""
    window = np.outer(np.hanning(first.shape[0]), np.hanning(first.shape[1]))
    cross = np.fft.fft2(second * window) * np.conj(np.fft.fft2(first * window))
    peak = np.fft.ifft2(cross / np.maximum(np.abs(cross), 1e-9)).real.argmax()
    y, x = np.unravel_index(peak, first.shape)
    height, width = first.shape
    return int((x + width // 2) % width - width // 2), int((y + height // 2) % height - height // 2)


def test_labels_and_files_are_the_same_set(labels_path, rows):
    assert labels_path.name == "labels.csv"
    folder = labels_path.parent
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == {row["path"] for row in rows} | {"labels.csv", "demo_corpus.json"}
    assert list(rows[0]) == ["path", "label", "group"]
    assert all(row["path"].startswith(row["label"] + "/") for row in rows)


def test_every_scene_has_every_class_once(rows):
    assert Counter((row["label"], row["group"]) for row in rows) == Counter(
        (label, scene_name(scene)) for label in MOTIONS for scene in range(NUM_SCENES)
    )
    assert len(MOTIONS) >= 8


def test_nothing_about_a_file_tells_its_class(videos):
    of_group = defaultdict(set)
    for (_, group), video in videos.items():
        of_group[group].add((video["codec"], video["size_px"], video["rate"], video["num_frames"]))
    assert all(len(kinds) == 1 for kinds in of_group.values())


def test_codecs_sizes_and_rates_vary(videos):
    assert {v["codec"] for v in videos.values()} == {"h264", "mpeg4", "vp9"}
    assert len({v["size_px"] for v in videos.values()}) == NUM_SCENES
    assert len({v["rate"] for v in videos.values()}) == NUM_SCENES


@pytest.mark.parametrize("seed", range(3))
def test_a_whole_corpus_has_portraits_and_two_to_four_seconds(seed):
    clips = [clip_of_scene(seed, scene) for scene in range(12)]
    assert any(clip.width_px < clip.height_px for clip in clips)
    assert len({(clip.codec, clip.rate) for clip in clips}) == 12
    assert all(2 <= clip.num_frames / clip.rate <= 4 for clip in clips)
    assert all(12 <= clip.rate <= 30 for clip in clips)


def test_only_still_is_still(videos):
    for (label, group), video in videos.items():
        change = np.abs(np.diff(video["frames"], axis=0)).mean()
        if label == "still":
            assert change < 0.6, (label, group)
        else:
            assert change > 0.9, (label, group)


@pytest.mark.parametrize(("label", "axis"), [("pan_horizontal", 0), ("pan_vertical", 1)])
def test_a_pan_goes_one_way_along_its_axis(videos, label, axis):
    for scene in (0, 1):  # a checker board repeats itself, and so does its correlation
        frames = videos[label, scene_name(scene)]["frames"]
        step = len(frames) // 6
        shifts = np.array(
            [phase_correlation(frames[t], frames[t + step]) for t in range(0, 5 * step, step)]
        )
        along, across = shifts[:, axis], shifts[:, 1 - axis]
        assert np.all(along > 3) or np.all(along < -3), shifts
        assert np.all(np.abs(across) < np.abs(along) / 2), shifts


def test_shake_returns_to_where_it_was(videos):
    frames = videos["shake", scene_name(1)]["frames"]
    shifts = np.array([phase_correlation(frames[0], frame)[0] for frame in frames[1:]])
    assert shifts.max() > 3
    assert shifts.min() < -3 or np.diff(np.sign(np.diff(shifts))).any()
    assert (np.abs(np.diff(np.sign(shifts[shifts != 0]))) > 0).sum() >= 2


def test_flicker_moves_the_brightness_and_nothing_else(videos):
    frames = videos["flicker", scene_name(0)]["frames"]
    mean = frames.mean(axis=(1, 2))
    assert mean.max() > 1.5 * mean.min()
    assert phase_correlation(frames[0], frames[mean.argmin()]) == (0, 0)


def _drawn(canvas: Image.Image, size_px: tuple[int, int] = (60, 40), **changes) -> np.ndarray:
    """The one frame [h, w, 3] of a camera that stands in the middle; no objects are seen."""
    still = {
        "centre": np.zeros((1, 2)),
        "zoom": np.ones(1),
        "angle_rad": np.zeros(1),
        "brightness": np.ones(1),
        "objects": np.zeros((1, 2, 2)),
    }
    motion = Motion(**(still | {k: np.asarray([v], float) for k, v in changes.items()}))
    clear = [Image.new("RGBA", (8, 8))] * 2
    (frame,) = draw_frames(canvas, clear, motion, *size_px)
    return np.asarray(frame).astype(int)


def test_drawing_against_a_crop_by_hand():
    canvas = scene_canvas(0, 0, 100)
    pixels = np.asarray(canvas).astype(int)
    # 60 x 40 in the middle of 100 x 100 starts at (20, 30); 0.25 short sides are 10 px.
    np.testing.assert_array_equal(_drawn(canvas), pixels[30:70, 20:80])
    np.testing.assert_array_equal(_drawn(canvas, centre=(0.25, 0)), pixels[30:70, 30:90])
    np.testing.assert_array_equal(_drawn(canvas, centre=(0, -0.25)), pixels[20:60, 20:80])
    turned = _drawn(canvas, size_px=(40, 40), angle_rad=np.pi / 2)
    np.testing.assert_allclose(turned, np.rot90(pixels[30:70, 30:70]), atol=1)


@pytest.mark.parametrize(("zoom", "side_px"), [(1, 20), (2, 40), (0.5, 10)])
def test_zoom_is_the_factor_of_a_length(zoom, side_px):
    canvas = Image.new("RGB", (100, 100))
    canvas.paste((255, 255, 255), (40, 40, 60, 60))
    assert (_drawn(canvas, zoom=zoom).sum() / (255 * 3)) ** 0.5 == pytest.approx(side_px, abs=0.5)


@pytest.mark.parametrize("zoom", [0.6, 1, 1.7])
def test_an_object_is_drawn_where_the_motion_says(zoom):
    position = np.array([0.2, -0.1])
    motion = Motion(
        centre=np.array([[0.1, 0.05]]),
        zoom=np.array([zoom]),
        angle_rad=np.array([np.pi / 6]),
        brightness=np.ones(1),
        objects=np.stack([position, position + 9])[None],  # the second one is out of sight
    )
    side_px = 400
    dot = Image.new("RGBA", (20, 20), (255, 255, 255, 255))
    (frame,) = draw_frames(Image.new("RGB", (1000, 1000)), [dot, dot], motion, 480, side_px)
    white = np.asarray(frame)[..., 0] / 255
    y, x = np.mgrid[0:400, 0:480] + 0.5
    centroid = np.array([(white * x).sum(), (white * y).sum()]) / white.sum()
    turn = np.array(
        [[np.cos(np.pi / 6), np.sin(np.pi / 6)], [-np.sin(np.pi / 6), np.cos(np.pi / 6)]]
    )
    wanted = np.array([240, 200]) + zoom * side_px * turn @ (position - [0.1, 0.05])
    np.testing.assert_allclose(centroid, wanted, atol=0.1)
    assert white.sum() == pytest.approx((20 * zoom) ** 2, rel=0.05)


@pytest.mark.parametrize("label", MOTIONS)
@pytest.mark.parametrize("size_px", [(160, 120), (144, 192)])
def test_no_motion_looks_beyond_the_edge_of_the_scene(label, size_px):
    short_px = min(size_px)
    canvas = Image.new("RGB", [round(CANVAS_SIDE * short_px)] * 2, (255, 255, 255))
    clear = [Image.new("RGBA", (8, 8))] * 2
    for seed in range(40):
        # Enough moments to meet the extremes of a shake.
        shot = Shot(np.arange(8) / 2.3, size_px[0] / short_px)
        motion = make_motion(label, shot, PARKED, default_rng(seed))
        for frame in draw_frames(canvas, clear, motion, *size_px):
            darkest, brightest = frame.convert("L").getextrema()
            assert darkest == brightest


@pytest.mark.parametrize("label", MOTIONS)
def test_objects_move_only_in_their_classes(label):
    shot = Shot(np.arange(30) / 15, 4 / 3)
    for seed in range(20):
        x = make_motion(label, shot, PARKED, default_rng(seed)).objects[:, :, 0]
        moving = np.ptp(x, axis=0) > 0
        assert moving.sum() == {"object_passing": 1, "objects_crossing": 2}.get(label, 0)
        # From outside the frame to outside it, and two of them in opposite directions.
        assert np.all(np.ptp(x, axis=0)[moving] >= 4 / 3 + OBJECT_SIDE - 1e-9)
        if label == "objects_crossing":
            assert np.all(np.diff(x[:, 0]) * np.diff(x[:, 1]) < 0)


def test_both_directions_of_a_pan_occur():
    shot = Shot(np.arange(30) / 15, 4 / 3)
    ends = [
        make_motion("pan_horizontal", shot, PARKED, default_rng(s)).centre[-1, 0] for s in range(20)
    ]
    assert 4 < np.sum(np.array(ends) > 0) < 16


def _videos(labels_path: Path) -> dict[str, bytes]:
    """File name without the extension, which the seed may change -> content."""
    return {path.stem: path.read_bytes() for path in labels_path.parent.glob("*/*")}


def test_same_seed_same_bytes(labels_path, videos, tmp_path):
    """Of each codec."""
    assert len({video["codec"] for video in videos.values()}) == NUM_SCENES
    again = make_demo_corpus(tmp_path / "again", num_videos_per_class=NUM_SCENES)
    assert _videos(again) == _videos(labels_path)
    assert again.read_bytes() == labels_path.read_bytes()


def test_another_seed_other_bytes(one_scene, tmp_path):
    other = _videos(make_demo_corpus(tmp_path / "other", seed=1, num_videos_per_class=1))
    assert other.keys() == _videos(one_scene).keys()
    assert all(other[name] != content for name, content in _videos(one_scene).items())


def test_a_video_does_not_depend_on_how_many_others_there_are(labels_path, one_scene):
    assert _videos(one_scene).items() <= _videos(labels_path).items()


def _must_not_be_called(done: int, total: int) -> None:
    pytest.fail("a complete corpus was made again")


def test_a_complete_corpus_is_left_alone(labels_path):
    again = make_demo_corpus(
        labels_path.parent, num_videos_per_class=NUM_SCENES, on_video=_must_not_be_called
    )
    assert again == labels_path


def test_nothing_is_visible_before_the_end_and_a_stopped_run_leaves_nothing(tmp_path):
    folder = tmp_path / "corpus"
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        assert not folder.exists()
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_demo_corpus(folder, num_videos_per_class=2, on_video=stop)
    assert calls == [(done, 2 * len(MOTIONS)) for done in (1, 2, 3)]
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled_and_another_run_may_be_faster(one_scene, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()

    def overtake(done: int, total: int) -> None:
        if done == total:
            shutil.copytree(one_scene.parent, folder, dirs_exist_ok=True)

    assert make_demo_corpus(folder, num_videos_per_class=1, on_video=overtake).is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"corpus"}


@pytest.mark.parametrize("spoil", ["foreign", "other_seed", "video_missing"])
def test_a_folder_with_something_else_is_refused_and_untouched(labels_path, tmp_path, spoil):
    folder = tmp_path / "corpus"
    if spoil == "foreign":
        folder.mkdir()
        (folder / "holiday.mp4").write_bytes(b"precious")
    else:
        shutil.copytree(labels_path.parent, folder)
    if spoil == "video_missing":
        next(folder.glob("still/*")).unlink()
    before = sorted(folder.rglob("*"))
    with pytest.raises(FileExistsError, match=r"expected .*corpus to be absent, empty or the"):
        make_demo_corpus(folder, seed=int(spoil == "other_seed"), num_videos_per_class=NUM_SCENES)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("wrong", [{"num_videos_per_class": 0}, {"seed": -1}])
def test_settings_out_of_range(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"num_videos_per_class >= 1 and seed >= 0"):
        make_demo_corpus(tmp_path / "corpus", **wrong)
    assert not (tmp_path / "corpus").exists()


def test_the_first_twelve_scenes_differ_and_later_ones_are_textures():
    small = [np.asarray(scene_canvas(0, scene, 32)).astype(float) for scene in range(14)]
    for i, one in enumerate(small):
        assert one.std() > 5, scene_name(i)
        for j in range(i):
            assert np.abs(one - small[j]).mean() > 5, (i, j)
    assert len({scene_name(scene) for scene in range(30)}) == 30
    assert not any(photo in scene_name(s) for s in range(12, 30) for photo in ("china", "flower"))
