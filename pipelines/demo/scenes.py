"""The scenes of the demonstration corpus: photographs and textures as square canvases, and objects.

The photographs are the two that scikit-learn ships, cut into parts that do not overlap; the digits
are its `load_digits`. Nothing is fetched.
"""

from collections.abc import Callable
from functools import cache
from typing import cast

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image
from PIL.Image import Resampling
from sklearn.datasets import load_digits, load_sample_image
from sklearn.utils import Bunch

_SIDE_PX = 600
_PHOTO_PX = 320  # two squares of this side fit beside each other into a 640 x 427 photograph


@cache
def _digits() -> np.ndarray:
    return cast(Bunch, load_digits()).images / 16.0


def _coordinates(rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y [S, S] in [-1, 1], turned by a random angle."""
    x, y = np.meshgrid(np.linspace(-1, 1, _SIDE_PX), np.linspace(-1, 1, _SIDE_PX))
    angle = rng.uniform(0.2, 1.3)
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _noise(rng: Generator, frequency: float) -> np.ndarray:
    """Return noise [S, S] in [0, 1] around `frequency`, in periods per canvas."""
    fy = np.fft.fftfreq(_SIDE_PX, 1 / _SIDE_PX)[:, None]
    fx = np.fft.rfftfreq(_SIDE_PX, 1 / _SIDE_PX)[None]
    band = np.exp(-(((np.hypot(fx, fy) - frequency) / (0.4 * frequency)) ** 2))
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((_SIDE_PX, _SIDE_PX))) * band)
    return np.clip(0.5 + noise / (4 * noise.std()), 0, 1)


def _tint(rng: Generator, value: np.ndarray) -> np.ndarray:
    """Return the value [S, S] in [0, 1] as a colour [S, S, 3] between a dark one and a light
    one."""
    dark, light = rng.uniform(0, 0.45, 3), rng.uniform(0.55, 1, 3)
    return dark + (light - dark) * value[..., None]


def _band_noise(rng: Generator) -> np.ndarray:
    return _tint(rng, _noise(rng, rng.uniform(12, 20)))


def _checker(rng: Generator) -> np.ndarray:
    x, y = _coordinates(rng)
    num_tiles = rng.integers(5, 9)
    return _tint(rng, (np.floor(x * num_tiles) + np.floor(y * num_tiles)) % 2)


def _stripes(rng: Generator) -> np.ndarray:
    x, _ = _coordinates(rng)
    return _tint(rng, 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(5, 9) * x))


def _bricks(rng: Generator) -> np.ndarray:
    y, x = np.mgrid[0:_SIDE_PX, 0:_SIDE_PX]
    row = y // 36
    column = (x + 36 * (row % 2)) // 72
    mortar = (y % 36 < 5) | ((x + 36 * (row % 2)) % 72 < 5)
    shade = rng.uniform(0.45, 1, (row.max() + 1, column.max() + 1))[row, column]
    return _tint(rng, np.where(mortar, 0, shade))


def _blobs(rng: Generator) -> np.ndarray:
    x, y = _coordinates(rng)
    image = np.full((_SIDE_PX, _SIDE_PX, 3), rng.uniform(0.2, 0.8, 3))
    for _ in range(60):
        x0, y0 = rng.uniform(-1.3, 1.3, 2)
        cover = np.exp(-((((x - x0) ** 2 + (y - y0) ** 2) / rng.uniform(0.05, 0.16) ** 2) ** 2))
        image += cover[..., None] * (rng.uniform(0, 1, 3) - image)
    return image


def _mosaic(rng: Generator) -> np.ndarray:
    x, y = _coordinates(rng)
    sites = rng.uniform(-1.3, 1.3, (90, 2))
    distance = np.stack([(x - x0) ** 2 + (y - y0) ** 2 for x0, y0 in sites])
    return rng.uniform(0, 1, (90, 3))[distance.argmin(0)]


def _rings(rng: Generator) -> np.ndarray:
    x, y = _coordinates(rng)
    x0, y0 = rng.uniform(-0.6, 0.6, 2)
    return _tint(rng, 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(6, 10) * np.hypot(x - x0, y - y0)))


def _wallpaper(rng: Generator) -> np.ndarray:
    tiles = _digits()[rng.integers(len(_digits()), size=(15, 15))]
    small = tiles.transpose(0, 2, 1, 3).reshape(120, 120)
    return _tint(rng, np.kron(small, np.ones((5, 5))))


_TEXTURES: dict[str, Callable[[Generator], np.ndarray]] = {
    "noise": _band_noise,
    "checker": _checker,
    "stripes": _stripes,
    "bricks": _bricks,
    "blobs": _blobs,
    "mosaic": _mosaic,
    "rings": _rings,
    "wallpaper": _wallpaper,
}
_PHOTO_PARTS = {
    "china_left": ("china.jpg", 0),
    "china_right": ("china.jpg", _PHOTO_PX),
    "flower_left": ("flower.jpg", 0),
    "flower_right": ("flower.jpg", _PHOTO_PX),
}
# Photographs between textures, so that a corpus of few scenes has both.
_FIRST = (
    *("china_left", "noise", "checker", "flower_left", "bricks", "blobs"),
    *("china_right", "mosaic", "stripes", "flower_right", "rings", "wallpaper"),
)


def _kind(scene: int) -> str:
    """Return the kind of a scene.

    After the first twelve there are only textures: the photographs have no more parts to give.
    """
    return _FIRST[scene] if scene < len(_FIRST) else list(_TEXTURES)[scene % len(_TEXTURES)]


def scene_name(scene: int) -> str:
    """Return the name of the scene, which is the group of its videos: "scene_03_flower_left"."""
    return f"scene_{scene:02d}_{_kind(scene)}"


def scene_canvas(seed: int, scene: int, side_px: int) -> Image.Image:
    """Return the scene as a square RGB image."""
    rng = default_rng([seed, scene, 0])
    kind = _kind(scene)
    if kind in _PHOTO_PARTS:
        name, left = _PHOTO_PARTS[kind]
        photograph = load_sample_image(name)
        top = rng.integers(len(photograph) - _PHOTO_PX + 1)
        part = photograph[top : top + _PHOTO_PX, left : left + _PHOTO_PX]
        return Image.fromarray(part).resize((side_px, side_px), Resampling.LANCZOS)
    # Without the slow modulation a pan along the stripes would be invisible.
    texture = _TEXTURES[kind](rng) * (0.55 + 0.45 * _noise(rng, 4.0))[..., None]
    return _image(texture, side_px)


def scene_objects(seed: int, scene: int, side_px: int) -> list[Image.Image]:
    """Return two discs with a digit each, as square RGBA images."""
    rng = default_rng([seed, scene, 1])
    x, y = np.meshgrid(*[np.linspace(-1, 1, 8 * 14)] * 2)
    alpha = np.clip(20 * (0.95 - np.hypot(x, y)), 0, 1)[..., None]
    objects = []
    for _ in range(2):
        colour = rng.uniform(0, 1, 3)
        ink = (
            np.pad(_digits()[rng.integers(len(_digits()))], 3).repeat(8, 0).repeat(8, 1)[..., None]
        )
        # A white digit on a dark disc, a black one on a light disc.
        disc = colour + ((colour.mean() < 0.5) - colour) * ink
        objects.append(_image(np.concatenate([disc, alpha], axis=2), side_px))
    return objects


def _image(values: np.ndarray, side_px: int) -> Image.Image:
    """Return values [s, s, 3 or 4] in [0, 1] as a picture of the given size."""
    picture = Image.fromarray((255 * np.clip(values, 0, 1)).round().astype(np.uint8))
    return picture.resize((side_px, side_px), Resampling.LANCZOS)
