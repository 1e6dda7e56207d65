"""Which networks see the order of frames: `python -m benchmarks.order`.

Zooms, pans and rotations of the demonstration's scenes, and each clip again from its end to its
beginning: both show the same pictures. Frozen maps (SqueezeNet 1.0, features.12, of
$VIDEO_FISHER_DATA/weights) of 16 frames of 112 px are made once, in this process; each network is
trained on some scenes and tested on others. Right is a tested clip whose score for what it shows
is above that for the same motion backwards: chance is .5, and a network that does not see order
has exactly .5. Single threads: OMP_NUM_THREADS=1. --quick: fewer scenes and steps. --json FILE
writes the rows.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import default_rng
from torch import Tensor

from benchmarks.harness import progress, show
from benchmarks.pipeline_decode import data_folder
from encoders.backbones import load
from encoders.networks.body import Source
from encoders.networks.fit import ClipSample, fit_network
from encoders.networks.registry import NETWORKS, network_class
from encoders.networks.scoring import clip_scores
from pipelines.demo.motions import (
    CANVAS_SIDE,
    OBJECT_SIDE,
    Motion,
    Shot,
    draw_frames,
    make_motion,
)
from pipelines.demo.scenes import scene_canvas, scene_objects

MOTIONS = ("zoom_in", "pan_horizontal", "pan_vertical", "rotation")
CLASSES = [f"{motion}{way}" for motion in MOTIONS for way in ("", " backwards")]
FRAMES, SIDE_PX = 16, 112
BACKBONE, NODE = "squeezenet1_0", "features.12"
SEED = 0

TRAINING = {
    "clip_frames": (FRAMES,),
    "optimiser": "adam",
    "rate_every": 0,
    "decay": 0.0,
    "batch_clips": 16,
    # A mirrored pan goes the other way.
    "mirror": False,
}
SMALL = {"units": 256, "dropout": 0.5, "learning_rate": 3e-4}
SETTINGS = {
    "lstm": {"layers": 2, "cells": 128, "learning_rate": 1e-3},
    "time_conv": SMALL | {"kernels": 32},
}
"""Of each network; SMALL for those that are not named."""


@dataclass(frozen=True)
class Size:
    """How much is made and trained."""

    train_scenes: int = 40
    test_scenes: int = 20
    num_steps: int = 200


def clips(scenes: range) -> Iterator[tuple[int, Tensor]]:
    """Yield class and maps [n, C, h, w] of each clip, forwards and backwards in turn."""
    shot = Shot(np.linspace(0, 2, FRAMES), 1.0)
    weights = data_folder() / "weights" / f"{BACKBONE}.safetensors"
    packed = load.load_file(weights.read_bytes(), weights.name)
    network = load.build(BACKBONE, (NODE,), packed)
    for scene in scenes:
        canvas = scene_canvas(SEED, scene, round(CANVAS_SIDE * SIDE_PX))
        objects = scene_objects(SEED, scene, round(OBJECT_SIDE * SIDE_PX))
        parked = np.array([[-0.27, 0], [0.27, 0]])
        for number, name in enumerate(MOTIONS):
            motion = make_motion(name, shot, parked, default_rng([SEED, scene, number]))
            motion = motion.backwards() if goes_back(motion) else motion
            frames = [np.asarray(f) for f in draw_frames(canvas, objects, motion, SIDE_PX, SIDE_PX)]
            maps = network.maps(torch.from_numpy(np.stack(frames)))[NODE]
            yield 2 * number, maps.half()
            yield 2 * number + 1, maps.flip(0).half()


def goes_back(motion: Motion) -> bool:
    """Return whether it zooms out, or pans or turns in the direction that is called backwards."""
    travelled = [motion.zoom, motion.angle_rad, *motion.centre.T]
    return max((track[-1] - track[0] for track in travelled), key=abs) < 0


def measure(name: str, train: list, test: list, size: Size) -> dict[str, object]:
    """Train a network, and return its shares of right directions and right motions."""
    settings = NETWORKS[name][1](
        **TRAINING, **SETTINGS.get(name, SMALL), num_steps=(size.num_steps,)
    )
    source = Source(network=BACKBONE, node=NODE, weights=b"", crop_px=SIDE_PX, reads="maps")
    network = network_class(name).build(source, settings, len(CLASSES), SEED)
    began, losses = time.monotonic(), []
    sample = ClipSample(
        frames=torch.cat([maps for _, maps in train]),
        counts=[FRAMES] * len(train),
        targets=torch.eye(len(CLASSES))[[label for label, _ in train]],
        seed=SEED,
        log=lambda quantity, _, value: losses.append(value) if quantity == "total" else None,
    )
    fit_network(network, sample, SIDE_PX)
    seconds = time.monotonic() - began
    whole = [list(range(FRAMES))]
    scores = torch.cat(
        [network.scores(clip_scores(network, maps, whole, "centre", SIDE_PX)) for _, maps in test]
    )
    labels = torch.tensor([label for label, _ in test])
    own, other = (scores.gather(1, at[:, None])[:, 0] for at in (labels, labels ^ 1))
    by_motion = {
        motion: (own > other)[labels // 2 == number].double().mean().item()
        for number, motion in enumerate(MOTIONS)
    }
    return {
        "network": name,
        "direction": (own > other).double().mean().item(),
        **by_motion,
        "motion": (scores.argmax(1) // 2 == labels // 2).double().mean().item(),
        "loss": sum(losses[-10:]) / len(losses[-10:]),
        "seconds": seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer scenes and steps")
    parser.add_argument("--networks", help="joined by commas; none given: all that read maps")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(6, 3, 20) if arguments.quick else Size()
    known = [name for name, (_, settings) in NETWORKS.items() if settings.reads_maps]
    began = time.monotonic()
    train = list(clips(range(size.train_scenes)))
    test = list(clips(range(size.train_scenes, size.train_scenes + size.test_scenes)))
    progress(f"maps of {len(train)} and {len(test)} clips: {time.monotonic() - began:.0f} s")
    rows = []
    for name in arguments.networks.split(",") if arguments.networks else known:
        rows.append(measure(name, train, test, size))
        progress(f"{rows[-1]}")
    show(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
