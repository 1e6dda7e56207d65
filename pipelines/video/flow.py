"""Optical flow, and its coding as pictures for a network (VU 3.3.4, 5.3.3; METHODS 7).

By OpenCV (the optional extra `flow`). Letters: h, w a picture's height and width, L the flows of a
stack.
"""

import functools
import itertools
from types import ModuleType
from typing import Any

import numpy as np

from encoders.stream_specs import FlowWindow, Window
from pipelines.errors import ConfigError
from pipelines.video import watch

_PAIR_S = {"dis": 0.0065, "tvl1": 0.69}
"""Seconds of an unloaded core for the flow of two pictures of 256 x 256 px (docs/streams.md)."""

METHODS = tuple(_PAIR_S)
"""Names of the algorithms."""

_MARGIN = 4.0
"""Older processors take twice as long, and so do cores that share their units."""


def require_opencv() -> None:
    """Check that flow can be computed.

    Raises:
        ConfigError: the extra `flow` is not installed, or another package of OpenCV hides its
            modules.
    """
    try:
        cv2 = _opencv()
    except ImportError as error:
        raise ConfigError(
            "describe.streams: flow expects the package opencv-contrib-python-headless, which is "
            f"not installed or does not load ({error}); install video-fisher[flow]"
        ) from error
    if not hasattr(cv2, "optflow"):
        raise ConfigError(
            "describe.streams: flow expects OpenCV with its contributed modules, got OpenCV "
            f"{cv2.__version__} without cv2.optflow; uninstall opencv-python and its like, and "
            "install video-fisher[flow]"
        )


def flow_between(before: np.ndarray, after: np.ndarray, method: str) -> np.ndarray:
    """Return float32 [h, w, 2]: the px by which the point (x, y) in `before` moves right and down
    until `after`.

    Args:
        before, after: uint8 [h, w], grey.
        method: dis (dense inverse search, medium preset) or tvl1 (VU 5.4.2's algorithm and library,
            on the CPU).
    """
    return _engine(method).calc(before, after, None)


def flow_of_pictures(before: np.ndarray, after: np.ndarray, method: str) -> np.ndarray:
    """Return `flow_between` of RGB pictures, uint8 [h, w, 3]."""
    return flow_between(_grey(before), _grey(after), method)


def to_levels(flow: np.ndarray, bound_px: float) -> np.ndarray:
    """Return uint8 of flow in px: cut off at -bound_px and bound_px, which become 0 and 255; 0 px
    becomes 128.

    VU 3.3.4 with bound_px = 40. A level is 2 bound_px / 255 wide: 0.31 px there.
    """
    return np.rint((np.clip(flow, -bound_px, bound_px) + bound_px) * (127.5 / bound_px)).astype(
        np.uint8
    )


def stacks(
    images: dict[int, np.ndarray], frames: np.ndarray, window: FlowWindow, crop_px: int
) -> np.ndarray:
    """Return uint8 [m, crop_px, crop_px, 2L]: for each of m frames the levels of its L flows, u and
    v in turn, in order of time, of the centre of the pictures that they were computed on.

    Args:
        images: {ordinal: uint8 [h, w, 3]}, of one size, with every ordinal in `frames`.
        frames: int64 [m, L + 1], ordinals that the flows lead through.
    """
    grey = functools.cache(lambda ordinal: _grey(images[ordinal]))
    stacked = np.empty((len(frames), crop_px, crop_px, window.num_channels), np.uint8)
    # Stacks of frames that follow each other overlap: a flow of both is computed once.
    known: dict[tuple[int, int], np.ndarray] = {}
    for row, ordinals in enumerate(frames.tolist()):
        for index, (before, after) in enumerate(itertools.pairwise(ordinals)):
            levels = known.get((before, after))
            if levels is None:
                watch.alive()
                flow = flow_between(grey(before), grey(after), window.method)
                levels = to_levels(centre(flow, crop_px), window.bound_px)
                known[before, after] = levels
            stacked[row, ..., 2 * index : 2 * index + 2] = levels
    return stacked


def limit_s(windows: tuple[Window, ...], num_frames: int, side_px: int) -> float:
    """Return the seconds within which the flow of a segment is expected; 0 where no window is of
    flow.

    Args:
        num_frames: the most that are sampled of a segment.
        side_px: of the pictures that flow is computed on.
    """
    moving = (window for window in windows if isinstance(window, FlowWindow))
    pairs_s = sum((window.num_frames - 1) * _PAIR_S[window.method] for window in moving)
    return _MARGIN * num_frames * pairs_s * (side_px / 256) ** 2


def centre(image: np.ndarray, crop_px: int) -> np.ndarray:
    """Return the centre [crop_px, crop_px, ...] of an image [h, w, ...]."""
    top, left = ((side - crop_px) // 2 for side in image.shape[:2])
    return image[top : top + crop_px, left : left + crop_px]


def opencv_version() -> str:
    """Return the version, such as 5.0.0."""
    return _opencv().__version__


@functools.cache
def _opencv() -> ModuleType:
    """Load OpenCV. Not at the top: it is optional, and few processes need it."""
    import cv2

    # One thread, as all decoding: the processes share the machine's cores.
    cv2.setNumThreads(1)
    cv2.ocl.setUseOpenCL(False)
    return cv2


@functools.cache
def _engine(method: str) -> Any:
    """Return OpenCV's object for a method. It keeps its buffers for the next call."""
    cv2 = _opencv()
    engines = {
        "dis": lambda: cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_MEDIUM),
        "tvl1": cv2.optflow.DualTVL1OpticalFlow.create,
    }
    return engines[method]()


def _grey(image: np.ndarray) -> np.ndarray:
    cv2 = _opencv()
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
