"""The motions of the demonstration corpus, which are its classes, and the frames they give.

Lengths are in short sides of the frame, positions from the middle of the scene, x to the right and
y downwards. T is the number of frames. No motion looks beyond the edge of the scene.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.random import Generator
from PIL.Image import Image, Resampling, Transform

CANVAS_SIDE = 2.5
OBJECT_SIDE = 0.36


@dataclass
class Motion:
    """The view of the camera and the position of the objects, frame by frame."""

    centre: np.ndarray  # [T, 2]
    zoom: np.ndarray  # [T]
    angle_rad: np.ndarray  # [T]
    brightness: np.ndarray  # [T], a factor
    objects: np.ndarray  # [T, 2, 2]: frame, object, (x, y)

    def backwards(self) -> "Motion":
        """Return the motion from its end to its beginning."""
        return Motion(**{part.name: getattr(self, part.name)[::-1] for part in fields(self)})


@dataclass(frozen=True)
class Shot:
    """The times of a video's frames, and the width of their view."""

    time_s: np.ndarray  # [T]
    width: float  # of the frame

    @property
    def progress(self) -> np.ndarray:
        """Progress of the motion [T], from 0 to 1."""
        return np.linspace(0, 1, len(self.time_s))


def _sign(rng: Generator) -> int:
    return int(rng.choice((-1, 1)))


def _pan(motion: Motion, shot: Shot, rng: Generator, axis: int) -> None:
    motion.centre[:, axis] += _sign(rng) * rng.uniform(0.6, 0.9) * (shot.progress - 0.5)
    motion.centre[:, 1 - axis] += rng.uniform(-0.07, 0.07) * (shot.progress - 0.5)


def _pan_horizontal(motion: Motion, shot: Shot, rng: Generator) -> None:
    _pan(motion, shot, rng, 0)


def _pan_vertical(motion: Motion, shot: Shot, rng: Generator) -> None:
    _pan(motion, shot, rng, 1)


def _zoom_in(motion: Motion, shot: Shot, rng: Generator) -> None:
    motion.zoom *= rng.uniform(1.6, 2.1) ** shot.progress


def _zoom_out(motion: Motion, shot: Shot, rng: Generator) -> None:
    motion.zoom *= rng.uniform(1.5, 1.75) ** -shot.progress


def _rotation(motion: Motion, shot: Shot, rng: Generator) -> None:
    motion.angle_rad += _sign(rng) * np.deg2rad(rng.uniform(60, 110)) * shot.progress


def _shake(motion: Motion, shot: Shot, rng: Generator) -> None:
    for axis in (0, 1):
        for _ in range(2):
            # Below 6 Hz, half the lowest frame rate.
            phase = 2 * np.pi * (rng.uniform(2.5, 5.5) * shot.time_s + rng.uniform())
            motion.centre[:, axis] += rng.uniform(0.04, 0.08) * np.sin(phase)


def _still(motion: Motion, shot: Shot, rng: Generator) -> None:
    pass


def _cross_frame(motion: Motion, shot: Shot, rng: Generator, which: int, direction: int) -> None:
    """Move object `which` from outside one side of the frame to outside the other."""
    reach = (shot.width + OBJECT_SIDE) / 2
    motion.objects[:, which, 0] = motion.centre[:, 0] + direction * reach * (2 * shot.progress - 1)
    start, end = rng.uniform(-0.25, 0.25, 2)
    motion.objects[:, which, 1] = motion.centre[:, 1] + start + (end - start) * shot.progress


def _object_passing(motion: Motion, shot: Shot, rng: Generator) -> None:
    _cross_frame(motion, shot, rng, int(rng.integers(2)), _sign(rng))


def _objects_crossing(motion: Motion, shot: Shot, rng: Generator) -> None:
    direction = _sign(rng)
    _cross_frame(motion, shot, rng, 0, direction)
    _cross_frame(motion, shot, rng, 1, -direction)


def _flicker(motion: Motion, shot: Shot, rng: Generator) -> None:
    phase = 2 * np.pi * (rng.uniform(1.5, 4) * shot.time_s + rng.uniform())
    motion.brightness *= 1 + rng.uniform(0.4, 0.6) * np.sin(phase)


MOTIONS: dict[str, Callable[[Motion, Shot, Generator], None]] = {
    "flicker": _flicker,
    "object_passing": _object_passing,
    "objects_crossing": _objects_crossing,
    "pan_horizontal": _pan_horizontal,
    "pan_vertical": _pan_vertical,
    "rotation": _rotation,
    "shake": _shake,
    "still": _still,
    "zoom_in": _zoom_in,
    "zoom_out": _zoom_out,
}


def make_motion(label: str, shot: Shot, parked: np.ndarray, rng: Generator) -> Motion:
    """Return the motion of one video; `parked` [2, 2] is where objects rest unless it moves
    them."""
    num_frames = len(shot.time_s)
    motion = Motion(
        centre=np.tile(rng.uniform(-0.05, 0.05, 2), (num_frames, 1)),
        zoom=np.ones(num_frames),
        angle_rad=np.full(num_frames, rng.uniform(-0.03, 0.03)),
        brightness=np.ones(num_frames),
        objects=np.tile(parked, (num_frames, 1, 1)),
    )
    MOTIONS[label](motion, shot, rng)
    return motion


def draw_frames(
    canvas: Image, objects: Sequence[Image], motion: Motion, width_px: int, height_px: int
) -> Iterator[Image]:
    """Yield the RGB frames of a video, one at a time.

    Args:
        canvas: the scene, RGB, CANVAS_SIDE times the short side of the frame.
        objects: one RGBA image each, OBJECT_SIDE times the short side of the frame.
    """
    short_px = min(width_px, height_px)
    middle = np.array([width_px, height_px]) / 2
    for t in range(len(motion.zoom)):
        cos, sin = np.cos(motion.angle_rad[t]), np.sin(motion.angle_rad[t])
        # From a shift in the frame to the shift in the scene that is seen there, both in pixels.
        look = np.array([[cos, -sin], [sin, cos]]) / motion.zoom[t]
        centre_px = (motion.centre[t] + CANVAS_SIDE / 2) * short_px
        frame = _sample(canvas, (width_px, height_px), look, centre_px - look @ middle)
        for image, position in zip(objects, motion.objects[t], strict=True):
            shift = (position - motion.centre[t]) * short_px
            at = middle + np.linalg.solve(look, shift)
            # The longest a turned square can be, and a pixel for the fraction that `corner` drops.
            side_px = int(1.5 * image.width * motion.zoom[t]) + 2
            corner = np.floor(at - side_px / 2)
            offset = np.array(image.size) / 2 - look @ (at - corner)
            layer = _sample(image, (side_px, side_px), look, offset)
            frame.paste(layer, tuple(corner.astype(int)), layer)
        brightness = motion.brightness[t]
        yield frame if brightness == 1 else frame.point(lambda value, by=brightness: value * by)


def _sample(
    image: Image, size_px: tuple[int, int], matrix: np.ndarray, offset: np.ndarray
) -> Image:
    """Return the picture whose pixel p is the image at matrix p + offset; beyond the image it is
    zero."""
    rows = np.column_stack([matrix, offset])
    return image.transform(size_px, Transform.AFFINE, rows.ravel().tolist(), Resampling.BILINEAR)
