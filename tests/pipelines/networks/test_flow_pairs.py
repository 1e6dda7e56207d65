"""Pairs with true flow, as public data sets have them; what is no pair is named."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.errors import ConfigError
from pipelines.networks import flow_pairs


def flo(flow: np.ndarray) -> bytes:
    height, width = flow.shape[:2]
    return b"PIEH" + struct.pack("<ii", width, height) + flow.astype("<f4").tobytes()


def picture(folder: Path, name: str, level: int = 0, sides: tuple[int, int] = (6, 8)) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", sides[::-1], (level,) * 3).save(file)


FLOW = np.random.default_rng(0).normal(size=(6, 8, 2)).astype(np.float32) * 5


def test_chairs_of_the_authors_are_found_and_read(data: Path) -> None:
    pairs = flow_pairs.found(str(data / "flow"))
    assert len(pairs) == 7
    for pair in pairs:
        before, after, flow = pair.checked()
        assert before.shape == after.shape == (*flow.shape[:2], 3)
        assert not np.array_equal(before, after)
        assert np.isfinite(flow).all()
        # The truth says where a point went: pictures agree there better than at the same place.
        moved = warped(after, flow)
        errors = [np.abs(before - other)[8:-8, 8:-8].mean() for other in (moved, after * 1.0)]
        assert errors[0] < errors[1], pair.truth


def warped(picture: np.ndarray, flow: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    return cv2.remap(picture, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR).astype(float)


def test_flo_files_keep_their_values_and_unknown_places() -> None:
    flow = FLOW.copy()
    flow[2, 3] = 1.7e9
    found = flow_pairs.read_flo(flo(flow), "a.flo")
    assert np.isnan(found[2, 3]).all()
    found[2, 3] = flow[2, 3]
    np.testing.assert_array_equal(found, flow)


def test_kitti_files_keep_their_values_and_unknown_places() -> None:
    known = np.ones((6, 8), np.uint16)
    known[1, 2] = 0
    stored = np.rint(FLOW * 64 + 2**15).astype(np.uint16)
    # OpenCV writes the channels in the order blue, green, red.
    ok, data = cv2.imencode(".png", np.dstack([known, stored[..., 1], stored[..., 0]]))
    assert ok
    found = flow_pairs.read_kitti(data.tobytes(), "a.png")
    assert np.isnan(found[1, 2]).all()
    where = known.astype(bool)
    assert np.abs(found - FLOW)[where].max() <= 1 / 128 + 1e-6


@pytest.mark.parametrize(
    ("files", "truth"),
    [
        (("00001_img1.ppm", "00001_img2.ppm"), "00001_flow.flo"),
        (("0-img0.ppm", "0-img1.ppm"), "0-gt.flo"),
        (("0-img_0.png", "0-img_1.png"), "0-flow_01.flo"),
        (
            ("training/clean/alley/frame_0009.png", "training/clean/alley/frame_0010.png"),
            "training/flow/alley/frame_0009.flo",
        ),
        (("image_2/000003_10.png", "image_2/000003_11.png"), "flow_occ/000003_10.png"),
    ],
)
def test_names_of_data_sets_are_known(tmp_path: Path, files, truth: str) -> None:
    for level, name in enumerate(files):
        picture(tmp_path, name, level)
    (tmp_path / truth).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / truth).write_bytes(flo(FLOW))
    (pair,) = flow_pairs.found(str(tmp_path))
    assert [p[0, 0, 0] for p in pair.pictures()] == [0, 1]
    assert pair.truth.endswith(truth)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"a.flo: expected a .flo file, which begins PIEH, got b''"),
        (b"\x89PNG....", r"a.flo: expected a .flo file, which begins PIEH"),
        (flo(FLOW)[:-4], r"a.flo: expected 8 x 6 flows, 396 bytes, got 392; the file is cut off"),
        (b"PIEH" + b"\xff" * 8, r"a.flo: expected -1 x -1 flows"),
        (b"PIEH", r"a.flo: expected 0 x 0 flows"),
    ],
)
def test_what_is_no_flo_file_is_named(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        flow_pairs.read_flo(data, "a.flo")


def test_what_is_no_kitti_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"a.png: expected a PNG of flow"):
        flow_pairs.read_kitti(b"none", "a.png")
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    with pytest.raises(ConfigError, match=r"3 channels of 16 bits, got 3 of 8"):
        flow_pairs.read_kitti(buffer.getvalue(), "a.png")


def test_a_pair_of_other_sizes_and_a_picture_that_is_none_are_named(tmp_path: Path) -> None:
    picture(tmp_path, "0-img0.ppm")
    picture(tmp_path, "0-img1.ppm", sides=(5, 8))
    (tmp_path / "0-gt.flo").write_bytes(flo(FLOW))
    (pair,) = flow_pairs.found(str(tmp_path))
    with pytest.raises(ConfigError, match=r"one size, got \(height, width\) \(6, 8\) and \(5, 8\)"):
        pair.checked()
    (tmp_path / "0-img1.ppm").write_bytes(b"text")
    with pytest.raises(ConfigError, match=r"0-img1.ppm: expected a picture"):
        pair.checked()


def test_a_folder_without_pairs_is_named(tmp_path: Path) -> None:
    (tmp_path / "0-gt.flo").write_bytes(flo(FLOW))
    with pytest.raises(ConfigError, match=r"expected pairs of pictures .* got none among 1 files"):
        flow_pairs.found(str(tmp_path))
    with pytest.raises(ConfigError, match=r"got none among 0 files"):
        flow_pairs.found(str(tmp_path / "nowhere"))


def test_pairs_are_made_squares_whose_flow_is_in_their_px(tmp_path: Path) -> None:
    for level, name in enumerate(("0-img0.ppm", "0-img1.ppm")):
        picture(tmp_path, name, level + 1)
    flow = np.broadcast_to(np.float32([8, 6]), (6, 8, 2))
    (tmp_path / "0-gt.flo").write_bytes(flo(flow))
    pairs = flow_pairs.read_all(flow_pairs.found(str(tmp_path)), 4)
    assert pairs is not None
    assert tuple(pairs.frames.shape) == (1, 2, 4, 4, 3)
    assert [level.unique().item() for level in pairs.frames[0]] == [1, 2]
    assert torch.equal(pairs.flow.float(), torch.tensor([4.0, 4.0]).expand(1, 4, 4, 2))
    assert flow_pairs.read_all([], 4) is None
