"""Pictures are videos of one frame, as a viewer shows them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.index.labels import match
from pipelines.index.manifest import list_videos
from pipelines.settings.sections import Decode, Manifest, Picture, Sampling
from pipelines.video.decode import SegmentFrames, decode_segment
from pipelines.video.header import VideoError
from pipelines.video.images.names import is_picture
from pipelines.video.images.pillow import probe_picture
from pipelines.video.isolation import IsolatedDecoder
from pipelines.video.sampling import num_segments

SMALL = Picture(resize_px=32, crop_px=24)
LEFT_RED = np.zeros((20, 40, 3), np.uint8)
LEFT_RED[:, :20, 0] = 255
LEFT_RED[:, 20:, 2] = 255
"""Red on the left, blue on the right."""


def frames(file: Path, sampling: Sampling = Sampling(policy="uniform")) -> SegmentFrames:  # noqa: B008
    return decode_segment(str(file), 0, 1, sampling, SMALL, Decode())


def sides(file: Path) -> list[list[int]]:
    """The mean colours of left, right, top and bottom."""
    [image] = frames(file).images.astype(int)
    parts = (image[:, :8], image[:, -8:], image[:8], image[-8:])
    return [part.mean((0, 1)).round().astype(int).tolist() for part in parts]


RED, BLUE = [255, 0, 0], [0, 0, 255]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "avif"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(LEFT_RED).save(file, **({"lossless": True} if suffix == "webp" else {}))
    left, right, *_ = sides(file)
    assert np.abs(np.array([left, right]) - [RED, BLUE]).max() <= 3
    facts = probe_picture(str(file))
    assert (facts.width_px, facts.height_px, facts.num_frames_header) == (40, 20, 1)
    assert facts.fps is None
    assert num_segments(facts, Sampling(policy="interval", interval_s=0.01)) >= 1


@pytest.mark.parametrize(
    ("orientation", "place"), [(1, "left"), (2, "right"), (3, "right"), (6, "top"), (8, "bottom")]
)
def test_exif_turns_and_mirrors(tmp_path: Path, orientation: int, place: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "a.jpg"
    Image.fromarray(LEFT_RED).save(file, exif=exif, quality=100, subsampling=0)
    shown = dict(zip(("left", "right", "top", "bottom"), sides(file), strict=True))
    assert np.abs(np.array(shown[place]) - RED).max() <= 4
    facts = probe_picture(str(file))
    assert (facts.width_px, facts.height_px) == ((20, 40) if orientation >= 5 else (40, 20))


def test_grey_cmyk_sixteen_bits_palette_and_transparency(tmp_path: Path) -> None:
    grey = np.full((20, 20), 128, np.uint8)
    cases = {
        "grey.png": (Image.fromarray(grey), [128] * 3),
        "deep.png": (Image.fromarray(grey.astype(np.uint16) * 257), [128] * 3),
        "cmyk.tif": (Image.new("CMYK", (20, 20), (0, 255, 255, 0)), RED),
        "palette.png": (Image.new("RGB", (20, 20), "blue").convert("P"), BLUE),
        "alpha.png": (Image.new("RGBA", (20, 20), (0, 0, 0, 0)), [255] * 3),
        "half.webp": (Image.new("RGBA", (20, 20), (255, 0, 0, 255)), RED),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        assert np.abs(frames(tmp_path / name).images[0].astype(int) - expected).max() <= 2, name


def test_pixels_are_those_of_pillow_on_real_photographs(data: Path) -> None:
    for file in sorted((data / "images" / "caltech101").rglob("*.jpg"))[::60]:
        image = Image.open(file).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        found = frames(file)
        assert np.array_equal(found.images[0], np.asarray(image)[4:28, 4:28])
        assert found.timestamps_s.tolist() == [0.0]
        assert found.error is None


def test_an_animation_is_a_video(tmp_path: Path) -> None:
    colours = ["red", "blue", "red"]
    pictures = [Image.new("RGB", (16, 16), colour) for colour in colours]
    for name in ("a.webp", "a.png"):
        file = tmp_path / name
        more = {"lossless": True} if name.endswith("webp") else {}
        pictures[0].save(
            file, save_all=True, append_images=pictures[1:], duration=[100, 300, 200], **more
        )
        found = frames(file, Sampling(policy="interval", interval_s=0.1))
        assert found.frame_indices.tolist() == [0, 1, 2]
        assert found.timestamps_s == pytest.approx([0.0, 0.1, 0.4])
        assert [image[0, 0].tolist() for image in found.images] == [RED, BLUE, RED]


def test_pages_are_no_animation(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    assert frames(tmp_path / "a.tiff").images[0][0, 0].tolist() == RED


@pytest.mark.parametrize(
    ("content", "error_type"),
    [(b"", "empty_file"), (b"no picture at all", "not_a_video"), ("cut", "damaged")],
)
def test_broken_pictures_are_rows(tmp_path: Path, content: bytes | str, error_type: str) -> None:
    file = tmp_path / "a.jpg"
    if isinstance(content, str):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(file)
        content = file.read_bytes()[:1500]
    file.write_bytes(content)
    with IsolatedDecoder(Decode()) as decoder, pytest.raises(VideoError) as caught:
        decoder.call(decode_segment, str(file), 0, 1, Sampling(policy="uniform"), SMALL, Decode())
    assert caught.value.error_type == error_type


def test_a_huge_picture_is_refused_before_there_is_memory_for_it(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("1", (20_000, 20_000)).save(file)
    with pytest.raises(VideoError, match=r"frame_too_large.*raise decode.max_frame_px"):
        probe_picture(str(file))


def test_a_folder_of_both_says_how_to_take_either(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name in ("a.mp4", "b.jpg", "c.PNG"):
        (tmp_path / name).write_bytes(b"x")
    assert list_videos(str(tmp_path))["path"].to_pylist() == ["a.mp4"]
    assert "passed over 2 images, such as b.jpg; manifest.media=images takes them" in caplog.text
    taken = list_videos(str(tmp_path), media="images")["path"].to_pylist()
    assert taken == ["b.jpg", "c.PNG"]
    (tmp_path / "a.mp4").unlink()
    assert list_videos(str(tmp_path))["path"].to_pylist() == ["b.jpg", "c.PNG"]
    assert match(list_videos(str(tmp_path)), None, Manifest()).num_rows == 2
    assert is_picture("s3://bucket/a.JPEG")
    assert not is_picture("a.gif")
