"""End-point errors of optical flow against pairs with truth, beside VU Table 4.3."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch.nn import functional

from encoders.networks.end_point import end_point_errors, scaled
from encoders.networks.flow.actionflownet import FILES, ActionFlowNet
from pipelines.errors import ConfigError
from pipelines.networks.flow_pairs import Pair, square
from pipelines.storage.filesystems import filesystem
from pipelines.text_table import aligned
from pipelines.video.flow import flow_of_pictures

ZERO = "zero flow"
"""What is not moved at all: its error is the mean displacement."""

VU_TABLE_4_3 = (
    ("FlowNet on FlyingChairs", 9.12, 0.517),
    ("FlowNet on UCF101", 11.84, 0.696),
    ("EpicFlow", 6.29, 0.777),
)
"""Method, end-point error on Sintel in px, and accuracy on UCF101 split 1 of a network that reads
its flow (VU 4.4.4)."""

Method = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Gives the flow [h, w, 2] in px of two pictures, uint8 [h, w, 3]."""


@dataclass(frozen=True)
class Error:
    """Mean end-point error of a method over pairs, in px, and its seconds a pair."""

    method: str
    error_px: float
    pair_s: float


def errors(pairs: Sequence[Pair], methods: dict[str, Method], side_px: int = 0) -> list[Error]:
    """Return the mean over pairs of each method's mean error where the truth is known.

    Args:
        side_px: pictures are resized to squares of this side, and the truth with them; 0: not.

    Raises:
        ConfigError: a file that cannot be read, or a pair without any known truth.
    """
    sums, seconds = dict.fromkeys(methods, 0.0), dict.fromkeys(methods, 0.0)
    for pair in pairs:
        before, after, truth = pair.checked()
        if side_px:
            before, after = square(before, side_px), square(after, side_px)
            truth = scaled(torch.from_numpy(truth)[None], (side_px, side_px))[0].numpy()
        if not np.isfinite(truth).any():
            raise ConfigError(f"{pair.truth}: expected flow that is known somewhere, got none")
        for name, method in methods.items():
            started = time.perf_counter()
            flow = method(before, after)
            seconds[name] += time.perf_counter() - started
            found = end_point_errors(torch.from_numpy(flow), torch.from_numpy(truth))
            sums[name] += found.nanmean(dtype=torch.float64).item()
    return [Error(n, sums[n] / len(pairs), seconds[n] / len(pairs)) for n in methods]


def classical(name: str) -> Method:
    """Return dense inverse search (dis) or TV-L1 (tvl1), as streams of flow have them."""
    return lambda before, after: flow_of_pictures(before, after, name)


def zero(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the flow of what does not move."""
    return np.zeros((*before.shape[:2], 2), np.float32)


def of_network(folder: str) -> Method:
    """Return the flow of a trained network of pairs, by the folder that a run has put it in.

    Raises:
        ConfigError: no such network, or one that estimates no flow of two frames.
    """
    fs, path = filesystem(folder)
    try:
        files = {name: cast(bytes, fs.cat_file(f"{path}/{name}")) for name in FILES}
    except OSError as error:
        raise ConfigError(
            f"{folder}: expected {' and '.join(FILES)}, which a run puts into "
            f"networks/actionflownet-rgb/DIGEST, got {error}"
        ) from error
    try:
        network = ActionFlowNet.read(files)
    except ValueError as error:
        raise ConfigError(f"{folder}: {error}") from error
    if network.decoder is None or network.own.frames != 2:
        raise ConfigError(
            f"{folder}: expected a network of pairs that has learned flow (frames=2), got "
            f"learns={network.own.learns}, frames={network.own.frames}"
        )

    def method(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        frames = torch.from_numpy(np.stack([before, after]))[None]
        flow = network.flows(frames)[:, 0].permute(0, 3, 1, 2)
        larger = functional.interpolate(flow, before.shape[:2], mode="bilinear")
        return larger[0].permute(1, 2, 0).numpy()

    return method


def lines(found: Sequence[Error], num_pairs: int) -> list[str]:
    """Return both tables, in words."""
    rows = [("method", "EPE (px)", "s a pair")]
    rows += [(e.method, f"{e.error_px:.2f}", f"{e.pair_s:.3f}") for e in found]
    printed = [("VU Table 4.3", "EPE (px)", "accuracy")]
    printed += [(name, f"{error:.2f}", f"{share:.3f}") for name, error, share in VU_TABLE_4_3]
    return [
        f"mean end-point error over {num_pairs} pair{'s' if num_pairs > 1 else ''}",
        *aligned(rows, {0}),
        "",
        "published: error on Sintel, accuracy on UCF101 of a network that reads the flow",
        *aligned(printed, {0}),
    ]
