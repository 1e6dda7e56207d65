"""What of a picture the network gets: boxes, proportions and several sizes, of images and films."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video.decode import decode_segment
from pipelines.video.header import VideoError
from tests.pipelines.video.films import HAS_FFMPEG, film

ONE = Sampling(policy="uniform", num_frames=1)
SQUARE = Picture(resize_px=32, crop_px=32)
NOISE = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def shown(file: Path, picture: Picture = SQUARE, box: tuple | None = None) -> np.ndarray:
    return decode_segment(str(file), 0, 1, ONE, picture, Decode(), box=box).images[0].astype(int)


def resized(pixels: np.ndarray, width: int, height: int | None = None) -> np.ndarray:
    size = (width, height or width)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)).astype(int)


def test_a_box_is_cut_out_before_the_picture_is_resized(image: Path) -> None:
    expected = resized(NOISE[10:45, 20:70], 32)
    assert np.abs(shown(image, box=(20, 10, 50, 35)) - expected).max() <= 1
    # Pixels that a box covers in part count.
    assert np.array_equal(shown(image, box=(20.4, 10.9, 49.2, 33.5)), expected)


def test_a_box_of_the_whole_picture_changes_nothing(image: Path) -> None:
    for box in ((0, 0, 90, 60), (-5, -5, 200, 200)):
        assert np.array_equal(shown(image, box=box), shown(image))


def test_a_box_is_in_pixels_of_the_picture_as_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: 60 wide, 90 high
    file = tmp_path / "turned.png"
    Image.fromarray(NOISE).save(file, exif=exif)
    turned = np.rot90(NOISE, -1)
    assert np.array_equal(shown(file, box=(5, 50, 40, 30)), resized(turned[50:80, 5:45], 32))


@pytest.mark.parametrize("box", [(90, 0, 10, 10), (-20, 5, 10, 10), (0, 60.5, 5, 5)])
def test_a_box_outside_fails_by_name(image: Path, box: tuple) -> None:
    with pytest.raises(VideoError, match=r"expected a box inside the picture of 90 x 60 px") as got:
        shown(image, box=box)
    assert got.value.error_type == "box_outside"


def test_the_short_side_keeps_the_proportions(image: Path) -> None:
    picture = Picture(resize_px=40, crop_px=32, resize="short_side")
    expected = resized(NOISE, 60, 40)[4:36, 14:46]
    assert np.array_equal(shown(image, picture), expected)
    ten = dataclasses.replace(picture, views="ten")
    assert shown(image, ten).shape == (40, 40, 3)


def test_several_sizes_come_of_one_decoded_picture(image: Path) -> None:
    pixels = shown(image, Picture(scales=(8, 16, 20)), box=(20, 10, 50, 35))
    assert pixels.shape == (1, 64 + 256 + 400, 3)
    first = 0
    for side in (8, 16, 20):
        rows = pixels[0, first : first + side**2].reshape(side, side, 3)
        assert np.array_equal(rows, resized(NOISE[10:45, 20:70], side))
        first += side**2


@pytest.mark.skipif(not HAS_FFMPEG, reason="needs ffmpeg")
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_films_have_boxes_and_sizes_too(tmp_path: Path, decoder: str) -> None:
    if decoder == "decord":
        pytest.importorskip("decord")
    file, settings = film(tmp_path, "mpeg4_no_b", "mp4"), Decode(decoder=decoder)

    def of_film(picture: Picture, box: tuple | None = None) -> np.ndarray:
        found = decode_segment(str(file), 0, 1, ONE, picture, settings, box=box)
        return found.images[0].astype(int)

    whole = of_film(Picture(resize_px=64, crop_px=64, resize="short_side"))
    full = of_film(Picture(scales=(64,), resize="short_side"))[0].reshape(64, 64, 3)
    # The film is 96 x 64: the middle 64 columns, as they are.
    assert np.abs(whole - full).max() <= 1
    box = of_film(SQUARE, (16, 0, 64, 64))
    assert np.abs(box - resized(full.astype(np.uint8), 32)).max() <= 1
    if decoder == "pyav":
        assert np.array_equal(of_film(SQUARE, (0, 0, 96, 64)), of_film(SQUARE))
