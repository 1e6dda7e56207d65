"""Optical flow, and the pictures that a network of pictures takes it in as (VU 3.3.4, 5.3.3; METHODS 7).

By OpenCV (the optional extra `flow`). Letters: h, w a picture's height and width, L the flows of a stack.
"""

import functools
from collections.abc import Callable
from types import ModuleType

import numpy as np

from pipelines import watch
from pipelines.config import ConfigError

Pair = tuple[int, int]
"""Ordinals of the source frames that a flow leads from and to."""


def require_opencv() -> None:
    """Does nothing where flow can be computed.

    Raises:
        ConfigError: the extra `flow` is not installed, or another package of OpenCV hides its modules.
    """
    try:
        cv2 = _opencv()
    except ImportError as error:
        raise ConfigError(
            "describe.streams: flow expects the package opencv-contrib-python-headless, which is not "
            f"installed or does not load ({error}); install video-fisher[flow]"
        ) from error
    if not hasattr(cv2, "optflow"):
        raise ConfigError(
            f"describe.streams: flow expects OpenCV with its contributed modules, got OpenCV {cv2.__version__} "
            "without cv2.optflow; uninstall opencv-python and its like, and install video-fisher[flow]"
        )


def flow_between(before: np.ndarray, after: np.ndarray, method: str) -> np.ndarray:
    """float32 [h, w, 2]: by how many px what is at (x, y) in `before` moves to the right and down until `after`.

    Args:
        before, after: uint8 [h, w, 3], RGB.
        method: dis (dense inverse search, medium preset) or tvl1 (VU 5.4.2's algorithm and library, on the CPU).
    """
    return _engine(method)(_grey(before), _grey(after))


def to_levels(flow: np.ndarray, bound_px: float) -> np.ndarray:
    """uint8 of flow in px: cut off at -bound_px and bound_px, which become 0 and 255; 0 px becomes 128.

    VU 3.3.4 with bound_px = 40. A level is 2 bound_px / 255 wide: 0.31 px there.
    """
    return np.rint((np.clip(flow, -bound_px, bound_px) + bound_px) * (127.5 / bound_px)).astype(
        np.uint8
    )


def to_px(levels: np.ndarray, bound_px: float) -> np.ndarray:
    """float32 flow in px of its levels, within half a level of the flow that was not cut off."""
    return levels * np.float32(bound_px / 127.5) - np.float32(bound_px)


def mirrored(levels: np.ndarray) -> np.ndarray:
    """Levels [..., h, w, 2L] of the mirrored video: left is right, and u changes its sign, 255 - u.

    128, which stands for no motion, becomes 127: half a level on the other side of it.
    """
    flipped = levels[..., ::-1, :].copy()
    flipped[..., ::2] = 255 - flipped[..., ::2]
    return flipped


def stacks(
    images: dict[int, np.ndarray], pairs: list[list[Pair]], method: str, bound_px: float
) -> np.ndarray:
    """uint8 [m, h, w, 2L]: for each of m frames the levels of L flows, u and v in turn, in order of time.

    Args:
        images: {ordinal: uint8 [h, w, 3]}, all of one size, with every ordinal in `pairs`.
        pairs: for each of the m > 0 frames its L pairs. One that several frames have is computed once.
    """
    engine = _engine(method)
    grey = functools.cache(lambda ordinal: _grey(images[ordinal]))
    place_of: dict[Pair, tuple[int, int]] = {}
    height, width, _ = images[pairs[0][0][0]].shape
    stacked = np.empty((len(pairs), height, width, 2 * len(pairs[0])), np.uint8)
    for row, of_frame in enumerate(pairs):
        for place, pair in enumerate(of_frame):
            watch.alive()
            channels = slice(2 * place, 2 * place + 2)
            if pair in place_of:
                known_row, known_place = place_of[pair]
                known = slice(2 * known_place, 2 * known_place + 2)
                stacked[row, ..., channels] = stacked[known_row, ..., known]
                continue
            place_of[pair] = row, place
            before, after = pair
            stacked[row, ..., channels] = to_levels(engine(grey(before), grey(after)), bound_px)
    return stacked


@functools.cache
def _opencv() -> ModuleType:
    """Not loaded at the top: it is optional, and few processes need it."""
    import cv2

    # One thread, as all decoding: the processes share the machine's cores.
    cv2.setNumThreads(1)
    cv2.ocl.setUseOpenCL(False)
    return cv2


@functools.cache
def _engine(method: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Grey uint8 [h, w] of two frames to the flow between them."""
    cv2 = _opencv()
    engines = {
        "dis": lambda: cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_MEDIUM),
        "tvl1": cv2.optflow.DualTVL1OpticalFlow.create,
    }
    engine = engines[method]()
    return lambda before, after: engine.calc(before, after, None)


def _grey(image: np.ndarray) -> np.ndarray:
    cv2 = _opencv()
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
