"""What networks of flow learn: `python -m benchmarks.flow [--parts chairs,shifted,weizmann]`.

chairs: the five FlyingChairs pairs of $VIDEO_FISHER_DATA/flow at 128 px, learned by heart.
shifted: pairs of clip frames of 64 px, the second one shifted by up to 4 px; tested on frames of
other videos. weizmann: classes with flow against classes alone, 16 frames of 64 px, on persons that
were not trained on, with a 95 % interval of the gain over videos and seeds. Single threads:
OMP_NUM_THREADS=1. --quick: few steps, one seed. --json FILE writes the rows.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa  # noqa: TID251 - this benchmark decodes
import torch
from torch import Tensor

from benchmarks.harness import machine, progress
from benchmarks.pipeline_decode import data_folder
from encoders.networks import training
from encoders.networks.end_point import end_point_errors, resized
from encoders.networks.fit import ClipSample, Pairs, fit_network
from encoders.networks.flow.actionflownet import ActionFlowNet
from encoders.networks.scoring import clip_scores, drawn_clips
from encoders.networks.settings import ActionFlowSettings
from encoders.scores.intervals import gains
from pipelines.networks import flow_pairs
from pipelines.networks.clips import KeepClips, decoder, windows
from pipelines.settings.config import Config

WIDTH, SIDE_PX, SHIFT_PX = 16, 64, 4
CHAIRS_PX = 128
"""A quarter of their width."""

STEADY = {"crops": "centre", "mirror": False, "colour_jitter": 0.0, "learning_rate": 1e-3}
RUN = 17
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    chairs_steps: int = 600
    shifted_steps: int = 450
    class_steps: int = 200
    seeds: tuple[int, ...] = SEEDS


QUICK = Size(20, 20, 5, (0,))


def flow_network(pairs: Pairs, steps: int, batch: int, side_px: int, seed: int) -> ActionFlowNet:
    """Return a network of two frames that has learned the flow of pairs.

    It is a stacked one, whose network of flow stays as it is in the phase of classes.
    """
    settings = ActionFlowSettings(
        frames=2,
        learns="stacked",
        width=WIDTH,
        pairs="drawn",
        pretraining_steps=steps,
        num_steps=(1,),
        batch_clips=batch,
        **STEADY,
    )
    network = ActionFlowNet(3, settings, 2, seed)
    frames = pairs.frames[:2].flatten(0, 1)
    of = ClipSample(
        frames=frames, counts=[2, 2], targets=torch.eye(2), run_frames=2, pairs=pairs, seed=seed
    )
    return fit_network(network, of, side_px)


def errors_px(network: ActionFlowNet, pairs: Pairs) -> tuple[float, float]:
    """Return the mean end-point error of pairs at a quarter of the side, and that of no flow."""
    found = torch.cat([network.flows(part) for part in pairs.frames.split(16)])[:, 0]
    truth = resized(pairs.flow.float(), found.shape[1:3])
    errors = [end_point_errors(flow, truth).nanmean().item() for flow in (found, 0 * truth)]
    return errors[0], errors[1]


def chairs(size: Size) -> Iterator[dict[str, object]]:
    """Yield the error on the pairs that were learned."""
    found = flow_pairs.found(str(data_folder() / "flow" / "flying_chairs"))
    pairs = flow_pairs.read_all(found, CHAIRS_PX)
    assert pairs is not None
    began = time.monotonic()
    network = flow_network(pairs, size.chairs_steps, len(found), CHAIRS_PX, 0)
    error, zero = errors_px(network, pairs)
    yield {
        "part": "chairs",
        "error_px": error,
        "zero_px": zero,
        "seconds": time.monotonic() - began,
    }


def shifted(size: Size) -> Iterator[dict[str, object]]:
    """Yield the error on shifted frames of videos that were not learned."""
    files = sorted((data_folder() / "labelled" / "weizmann").glob("**/*.avi"))
    files += [f for f in sorted((data_folder() / "clips").glob("*.mp4")) if "audio" not in f.name]
    room = SIDE_PX + 2 * SHIFT_PX
    config = clip_config("frames=2", room, 6)
    pictures = [frames for _, frames, _ in kept(config, files)]
    held_out = pictures[::4]
    learned = [frames for place, frames in enumerate(pictures) if place % 4]
    train, test = (shifted_pairs(part, number) for number, part in enumerate((learned, held_out)))
    began = time.monotonic()
    network = flow_network(train, size.shifted_steps, 32, SIDE_PX, 0)
    error, zero = errors_px(network, test)
    yield {
        "part": "shifted",
        "error_px": error,
        "zero_px": zero,
        "seconds": time.monotonic() - began,
    }


def shifted_pairs(videos: list[Tensor], seed: int) -> Pairs:
    """Return pairs of the same frames, one shifted by whole px in both directions."""
    draw = training.generator("cpu", seed)
    frames = torch.cat(videos)
    frames = frames[torch.arange(4 * len(frames)) % len(frames)]
    shifts = torch.randint(-SHIFT_PX, SHIFT_PX + 1, (len(frames), 2), generator=draw)
    pairs = torch.empty(len(frames), 2, SIDE_PX, SIDE_PX, 3, dtype=torch.uint8)
    for pair, frame, (right, down) in zip(pairs, frames, shifts.tolist(), strict=True):
        for own, (x, y) in zip(pair, ((0, 0), (right, down)), strict=True):
            top, left = SHIFT_PX - y, SHIFT_PX - x
            own.copy_(frame[top : top + SIDE_PX, left : left + SIDE_PX])
    flow = shifts.float()[:, None, None].expand(-1, SIDE_PX, SIDE_PX, -1)
    return Pairs(frames=pairs, flow=flow)


def clip_config(fields: str, side_px: int, runs: int) -> Config:
    """Return settings with which runs of frames are kept of each video."""
    return Config().with_settings(
        [
            f"network.networks=actionflownet@{fields}",
            f"network.side_px={side_px}",
            f"network.crop_px={min(side_px, SIDE_PX)}",
            f"network.frames={runs}",
        ]
    )


def kept(config: Config, files: list[Path]) -> Iterator[tuple[Path, Tensor, Tensor]]:
    """Yield the frames of videos as CLIPS have them, and the flows of their runs."""
    stage, keep = decoder(config), KeepClips(config.network.side_px, windows(config))
    # The file is not the planned one.
    stage.compares = False
    side, run = config.network.side_px, config.run_frames
    with closing(stage.decoder):
        for file in files:
            row = {"segment_id": file.name, "video_id": file.name, "segment": 0, "source": ""}
            row |= {"num_segments": 1, "uri": str(file), "status": "ok"}
            for decoded in stage(pa.Table.from_pylist([row])):
                (clip,) = keep(decoded).to_pylist()
                if clip["num_flows"]:
                    frames = np.frombuffer(clip["pictures"], np.uint8).reshape(-1, side, side, 3)
                    flows = np.frombuffer(clip["flow"], np.uint8)
                    flows = flows.reshape(-1, side, side, 2 * (run - 1))
                    yield file, torch.from_numpy(frames.copy()), torch.from_numpy(flows.copy())


def weizmann(size: Size) -> Iterator[dict[str, object]]:
    """Yield the accuracy of both variants for each seed, and the gain over all of them."""
    folder = data_folder() / "labelled" / "weizmann"
    with (folder / "labels.csv").open(newline="") as file:
        rows = {folder / row["path"]: row for row in csv.DictReader(file)}
    classes = sorted({row["label"] for row in rows.values()})
    groups = sorted({row["group"] for row in rows.values()})
    config = clip_config("frames=16", SIDE_PX + 8, 3)
    videos = [
        (frames, flows, classes.index(rows[file]["label"]), groups.index(rows[file]["group"]) % 2)
        for file, frames, flows in kept(config, [*rows])
    ]
    progress(f"{len(videos)} of {len(rows)} videos have {RUN} frames")
    scores: dict[str, list[Tensor]] = {"multitask": [], "scratch": []}
    targets: list[Tensor] = []
    for seed in size.seeds:
        for learns, found in scores.items():
            began, own, labels = time.monotonic(), [], []
            for fold in (0, 1):
                others = [video for video in videos if video[3] != fold]
                network = _trained(learns, others, len(classes), size.class_steps, seed)
                for place, (frames, _, label, of) in enumerate(videos):
                    if of == fold:
                        draw = training.generator("cpu", seed, place)
                        clips = drawn_clips(len(frames), RUN, network, 6, draw)
                        given = clip_scores(network, frames, clips, "mirror", SIDE_PX)
                        own.append(network.scores(given).mean(0))
                        labels.append(label)
            found.append(torch.stack(own))
            true = torch.tensor(labels)
            accuracy = (found[-1].argmax(1) == true).double().mean().item()
            seconds = time.monotonic() - began
            row = {"part": "weizmann", "network": learns, "seed": seed, "accuracy": accuracy}
            progress(f"{row} {seconds:.0f} s")
            yield row | {"seconds": seconds}
        targets.append(torch.nn.functional.one_hot(true, len(classes)))
    both = [torch.cat(scores[name]).double().numpy() for name in ("multitask", "scratch")]
    gain = gains(*both, torch.cat(targets).bool().numpy(), num_draws=1000, seed=0)["accuracy"]
    yield {"part": "weizmann", "gain": gain.value, "low": gain.low, "high": gain.high}


def _trained(
    learns: str, videos: list, num_classes: int, num_steps: int, seed: int
) -> ActionFlowNet:
    """Return a network of 16 frames that saw these videos; both variants take as many steps."""
    settings = ActionFlowSettings(
        learns=learns,
        width=WIDTH,
        pretraining_steps=0,
        num_steps=(num_steps,),
        batch_clips=12,
        crops="random",
        colour_jitter=0.0,
        learning_rate=1e-3,
    )
    sample = ClipSample(
        frames=torch.cat([frames for frames, *_ in videos]),
        counts=[len(frames) for frames, *_ in videos],
        targets=torch.eye(num_classes)[[label for *_, label, _ in videos]],
        run_frames=RUN,
        flows=torch.cat([flows for _, flows, *_ in videos]),
        flow_bound_px=Config().network.flow_bound_px,
        seed=seed,
    )
    return fit_network(ActionFlowNet(3, settings, num_classes, seed), sample, SIDE_PX)


PARTS = {"chairs": chairs, "shifted": shifted, "weizmann": weizmann}


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, one seed")
    parser.add_argument("--parts", default=",".join(PARTS), help="joined by commas")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size, rows = QUICK if arguments.quick else Size(), []
    for part in arguments.parts.split(","):
        for row in PARTS[part](size):
            rows.append(row)
            cells = (
                f"{value:.3g}" if isinstance(value, float) else value for value in row.values()
            )
            print(", ".join(f"{name} {cell}" for name, cell in zip(row, cells, strict=True)))
    if arguments.json:
        content = {"machine": machine(), "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
