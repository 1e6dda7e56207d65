"""Attention as pictures (DQ appendix B, Figure 5): frames, the curve of their values, and maps
painted on them.

Values are shown as multiples of the video's mean (of its frames, and of the mean cell): their own
unit, that of a gradient's sum, says nothing to a reader.

Letters: F frames, T cells of the pyramid, n frames that are shown, h and w their height and width.
"""

import io
from dataclasses import dataclass
from math import isfinite

import matplotlib as mpl
import numpy as np
from PIL import Image

from pipelines.report.records import AttentionStrip
from pipelines.storage.pictures import image_file

MAX_COLUMNS = 8
WIDTH_PX = 136
# Perceptually uniform, light where attention is high and dark where it is low.
_COLORS = mpl.colormaps["inferno"]
_OPACITY = 0.6
_QUALITY = 75
_COLUMN = 100.0  # units of the curve's view box
_HEIGHT, _PAD, _BEND = 84.0, 22.0, 10.0


@dataclass(frozen=True)
class FrameColumn:
    """A frame of the video, the frame with its map, and the map's highest region in words."""

    time_s: float
    frame: bytes
    painted: bytes
    where: str


@dataclass(frozen=True)
class AttentionFigure:
    """Figure 5 of DQ for one video.

    All columns have the same width and are aligned with the curve.

    Args:
        curve: an SVG element that takes its colours from the page.
        curve_alt: the curve in words.
        scale: the values of the darkest and the lightest colour, in all maps; None where no map is
            finite.
        num_without_value: frames of the video whose value is not finite.
        legend: the colours from dark to light, a JPEG file.
    """

    columns: tuple[FrameColumn, ...]
    curve: str
    curve_alt: str
    scale: tuple[float, float] | None
    legend: bytes
    num_without_value: int


def picture(strip: AttentionStrip) -> AttentionFigure:
    """Return the figure of a strip, with at most `MAX_COLUMNS` frames, evenly spaced."""
    values, cells = _relative(strip)
    count = min(len(strip.frames), MAX_COLUMNS)
    chosen = np.linspace(0, len(strip.frames) - 1, count).round().astype(int)
    frames = [_thumbnail(strip.frames[i]) for i in chosen]
    frame_indices = [strip.shown[i] for i in chosen]
    maps = [
        attention_map(cells[index], strip.levels, *frame.shape[:2])
        for index, frame in zip(frame_indices, frames, strict=True)
    ]
    finite = [m for m in maps if np.isfinite(m).all()]
    scale = (
        (min(float(m.min()) for m in finite), max(float(m.max()) for m in finite))
        if finite
        else None
    )
    columns = tuple(
        FrameColumn(strip.times_s[index], _jpeg(frame), _jpeg(_paint(frame, m, scale)), _where(m))
        for index, frame, m in zip(frame_indices, frames, maps, strict=True)
    )
    ramp = np.tile(np.linspace(0, 1, 160), (10, 1))
    legend = _jpeg(_blend(np.full((*ramp.shape, 3), 128, np.uint8), ramp))
    line = sorted(
        (t, v) for t, v in zip(strip.times_s, values, strict=True) if isfinite(t) and isfinite(v)
    )
    shown = [(strip.times_s[index], values[index]) for index in frame_indices]
    return AttentionFigure(
        columns, _curve(line, shown), _curve_alt(line), scale, legend, len(values) - len(line)
    )


def _relative(strip: AttentionStrip) -> tuple[list[float], np.ndarray]:
    """Return values [F] over their mean, and cells [F, T] over the mean cell; zeros stay zeros."""
    values = strip.values.astype(np.float64)
    finite = values[np.isfinite(values)]
    unit = float(finite.mean()) if len(finite) else 0.0
    if unit <= 0:
        unit = 1.0
    return (values / unit).tolist(), strip.cells / (unit / strip.cells.shape[1])


def attention_map(
    cells: np.ndarray, levels: tuple[int, ...], height: int, width: int
) -> np.ndarray:
    """Return a map [h, w] of cells [T], which are ordered by level and row by row in each.

    A cell's value is spread over the part of the frame that it covers, so that a map is as strong
    in all as the frame's value says: a level counts in proportion to its number of cells, and the
    map is the mean of the levels with those weights. Between the middles of cells values are
    interpolated linearly. The windows of neighbouring cells overlap a little on the network's map;
    here each has its part of the frame alone.
    """
    total = np.zeros((height, width))
    if not np.isfinite(cells).all():
        return np.full_like(total, np.nan)
    start = 0
    for side in levels:
        level = cells[start : start + side * side].astype(np.float64).reshape(side, side)
        start += side * side
        total += side * side * (_hats(height, side) @ level @ _hats(width, side).T)
    return total / start


def painted(jpeg: bytes, values: list[float]) -> tuple[bytes, bytes]:
    """Return a picture, and it with a square map painted on it, both as JPEG files."""
    frame = _thumbnail(np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")))
    cells = np.array(values)
    side = round(len(cells) ** 0.5)
    own = attention_map(cells, (side,), *frame.shape[:2])
    scale = (float(own.min()), float(own.max())) if np.isfinite(own).all() else None
    return _jpeg(frame), _jpeg(_paint(frame, own, scale))


def _hats(num_pixels: int, side: int) -> np.ndarray:
    """Return weights [num_pixels, side] of linear interpolation between cell centres; rows sum to
    1."""
    position = (np.arange(num_pixels) + 0.5) * side / num_pixels - 0.5
    position = position.clip(0, side - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(side)))


def _paint(frame: np.ndarray, values: np.ndarray, scale: tuple[float, float] | None) -> np.ndarray:
    """Return the frame in grey under the colours of its map; in grey alone where the map is not
    finite."""
    if scale is None or not np.isfinite(values).all():
        return np.repeat(_grey(frame)[..., None], 3, 2).astype(np.uint8)
    low, high = scale
    return _blend(frame, (values - low) / (high - low) if high > low else np.zeros_like(values))


def _blend(frame: np.ndarray, shares: np.ndarray) -> np.ndarray:
    colors = _COLORS(shares)[..., :3] * 255
    return (_OPACITY * colors + (1 - _OPACITY) * _grey(frame)[..., None]).round().astype(np.uint8)


def _grey(frame: np.ndarray) -> np.ndarray:
    return frame @ np.array([0.299, 0.587, 0.114])


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    height = round(WIDTH_PX * frame.shape[0] / frame.shape[1])
    size = (WIDTH_PX, min(max(height, WIDTH_PX // 4), WIDTH_PX * 2))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


def _jpeg(image: np.ndarray) -> bytes:
    return image_file(image, quality=_QUALITY)


def _where(values: np.ndarray) -> str:
    """Return the region in which a map is highest, in words."""
    if not np.isfinite(values).all():
        return "no values"
    if values.max() - values.min() <= 1e-9 * abs(values).max():
        return "the same everywhere"
    row, column = np.unravel_index(values.argmax(), values.shape)
    vertical = ("top", "middle", "bottom")[row * 3 // values.shape[0]]
    horizontal = ("left", "centre", "right")[column * 3 // values.shape[1]]
    return f"highest at the {vertical} {horizontal}"


def _curve_alt(line: list[tuple[float, float]]) -> str:
    if not line:
        return "Attention over time: no values"
    (first_s, first), (last_s, last) = line[0], line[-1]
    peak_s, peak = max(line, key=lambda point: point[1])
    low_s, low = min(line, key=lambda point: point[1])
    if peak == low:
        return f"Attention over time: the same in {len(line)} frame(s)"
    begin, end = f"{first:.2f}", f"{last:.2f}"
    turn = "goes" if begin == end else "rises" if last > first else "falls"
    return (
        f"Attention over time, in multiples of the mean: {turn} from {begin} at {first_s:.1f} s "
        f"to {end} at {last_s:.1f} s, highest at {peak_s:.1f} s ({peak:.2f}), lowest at "
        f"{low_s:.1f} s ({low:.2f})"
    )


def _curve(line: list[tuple[float, float]], shown: list[tuple[float, float]]) -> str:
    """Return the SVG of frame values over true time, from the middle of the first column to the
    middle of the last.

    A line joins each column to its time: straight where the frames shown are evenly spaced over the
    video.
    """
    width = _COLUMN * len(shown)
    xs = _Axis([t for t, _ in line], _COLUMN / 2, width - _COLUMN / 2)
    ys = _Axis([v for _, v in line], _HEIGHT - _PAD, _PAD)
    parts = [_leader(column, t, xs) for column, (t, _) in enumerate(shown)]
    points = " ".join(f"{xs(t):.1f},{ys(v):.1f}" for t, v in line)
    parts.append(f'<polyline points="{points}" style="fill:none;stroke:var(--line-0)"/>')
    parts += [
        f'<circle cx="{xs(t):.1f}" cy="{ys(v):.1f}" r="2.5" style="fill:var(--line-0)"/>'
        for t, v in shown
        if isfinite(t) and isfinite(v)
    ]
    for value in sorted({ys.low, ys.high}) if line else ():
        y = ys(value) + 3.5
        parts.append(f'<text x="2" y="{y:.1f}" style="fill:var(--muted)">{value:.2f}</text>')
    return (
        f'<svg viewBox="0 0 {width:.0f} {_HEIGHT:.0f}" aria-hidden="true" focusable="false">'
        f"{''.join(parts)}</svg>"
    )


class _Axis:
    """A linear map of values to positions from `start` to `end`; the middle where all values are
    equal."""

    def __init__(self, values: list[float], start: float, end: float) -> None:
        self.low, self.high = (min(values), max(values)) if values else (0.0, 0.0)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self._start + share * (self._end - self._start)


def _leader(column: int, time_s: float, xs: _Axis) -> str:
    if not xs.low <= time_s <= xs.high:
        return ""
    middle, at = (column + 0.5) * _COLUMN, xs(time_s)
    points = f"{middle:.1f},0 {at:.1f},{_BEND} {at:.1f},{_HEIGHT - _BEND} {middle:.1f},{_HEIGHT}"
    return f'<polyline points="{points}" style="fill:none;stroke:var(--rule)"/>'
