"""Training and testing of networks against plain loops of torch with the same network.

    python -m benchmarks.networks [--quick] [--json FILE] [--device cpu]

Pictures are random and in memory, weights are random.
"""

import math
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

from benchmarks.harness import Options, Row, at_least, check_close, main, medians, parser
from encoders.backbones import load
from encoders.networks import training
from encoders.networks.base import Network
from encoders.networks.body import Source
from encoders.networks.fit import ClipSample, fit_network
from encoders.networks.registry import network_class
from encoders.networks.scoring import clip_scores, drawn_clips
from encoders.networks.settings import LstmSettings, TdnSettings

BACKBONE, NODE = "squeezenet1_0", "features.12"
SIDE, VIDEOS, FRAMES, CLASSES, CLIPS = 96, 16, 8, 10, 8
STEPS = 3


def _network(num_steps: tuple[int, int], device: str) -> Network:
    settings = TdnSettings(
        num_steps=num_steps,
        batch_clips=CLIPS,
        learning_rate=1e-4,
        crops="centre",
        mirror=False,
        rate_at=(),
        momentum=0.0,
        decay=0.0,
    )
    weights = load.random_filters(BACKBONE, 0)
    source = Source(network=BACKBONE, node=NODE, weights=weights, crop_px=SIDE)
    return network_class("tdn").build(source, settings, CLASSES).to(device)


def _videos() -> Tensor:
    draw = training.generator("cpu", 0)
    shape = (VIDEOS, FRAMES, SIDE, SIDE, 3)
    return torch.randint(256, shape, generator=draw, dtype=torch.uint8)


def train(options: Options) -> list[Row]:
    """Steps of the trainer against a plain loop over pictures in memory."""
    videos = _videos()
    targets = torch.eye(CLASSES)[torch.arange(VIDEOS) % CLASSES]
    steps = STEPS if options.quick else 4 * STEPS
    ours, plain = (_network((1, steps - 1), options.device) for _ in range(2))

    def fit() -> None:
        sample = ClipSample(frames=videos.flatten(0, 1), counts=[FRAMES] * VIDEOS, targets=targets)
        fit_network(ours, sample, SIDE, options.device)

    def loop() -> None:
        for phase, record in enumerate(plain.phases()):
            plain.begin(phase)
            values = [value for group in record.groups for value in group.parameters]
            optimiser = torch.optim.SGD(values, lr=1e-4)
            for step in range(record.num_steps):
                chosen = torch.arange(step * CLIPS, (step + 1) * CLIPS) % VIDEOS
                clips = videos[chosen][:, [0, 3, 6]].to(options.device)
                optimiser.zero_grad()
                truth = targets[chosen].to(options.device)
                outputs = plain.outputs(clips).values()
                loss = torch.stack([functional.cross_entropy(o, truth) for o in outputs]).sum()
                loss.backward()
                optimiser.step()

    seconds = medians({"ours": fit, "plain": loop}, 1 if options.quick else 3)
    ratio = seconds["plain"] / seconds["ours"]
    return [at_least("training steps a second", "plain torch loop", ratio, 0.85, seconds=seconds)]


def score(options: Options) -> list[Row]:
    """Scores of clips and crops against their forward passes alone."""
    network = _network((1, 1), options.device).eval()
    video = _videos()[0]
    draw = training.generator("cpu", 1)
    places = drawn_clips(FRAMES, 1, network, CLIPS, draw)
    clips = torch.stack([video[place] for place in places]).to(options.device)
    found: dict[str, Tensor] = {}

    def ours() -> None:
        found["ours"] = network.scores(clip_scores(network, video, places, "mirror", SIDE))

    @torch.inference_mode()
    def forward() -> None:
        views = [network.scores(network.outputs(view)) for view in (clips, clips.flip(3))]
        found["plain"] = torch.stack(views).mean(0)

    seconds = medians({"ours": ours, "plain": forward}, 1 if options.quick else 5)
    check_close("scores", found["ours"], found["plain"], 1e-4)
    ratio = seconds["plain"] / seconds["ours"]
    return [at_least("clips scored a second", "their forward passes", ratio, 0.8, seconds=seconds)]


def _share(rank: int, size: int, steps: int, folder: str) -> None:
    """Train on a worker's share of the videos, and write the seconds from the second step on."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/group{size}", rank=rank, world_size=size)
    ends: list[float] = []

    def all_reduce(tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    own = _videos()[rank::size]
    sample = ClipSample(
        frames=own.flatten(0, 1),
        counts=[FRAMES] * len(own),
        targets=torch.eye(CLASSES)[torch.arange(VIDEOS) % CLASSES][rank::size],
        rank=rank,
        world_size=size,
        all_reduce=all_reduce,
        checkpoint=lambda _: ends.append(time.perf_counter()),
    )
    fit_network(_network((1, steps - 1), "cpu"), sample, SIDE)
    if rank == 0:
        Path(folder, str(size)).write_text(str(ends[-1] - ends[0]))
    dist.destroy_process_group()


def workers(options: Options) -> list[Row]:
    """Two workers of one thread, which share the batches of one."""
    steps = STEPS if options.quick else 4 * STEPS
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in (1, 2):
            spawn(_share, (size, steps, folder), nprocs=size)
            seconds[str(size)] = float(Path(folder, str(size)).read_text())
    ratio = seconds["1"] / seconds["2"]
    return [at_least("steps of two workers", "one worker", ratio, 1.7, seconds=seconds)]


def long_clips(options: Options) -> list[Row]:
    """Steps of an LSTM on maps of 120 frames against the matrix products that they are bound by:
    one of all inputs, and one of the cells for each frame, each three times (forward, and the
    gradients of both factors)."""
    frames, clips, cells = 30 if options.quick else 120, 4, 256
    source = Source(network="alexnet", node="features.12", weights=b"", crop_px=224, reads="maps")
    settings = LstmSettings(
        clip_frames=(frames,), num_steps=(STEPS,), batch_clips=clips, layers=1, cells=cells
    )
    shape = source.map_shape()
    draw = training.generator("cpu", 0)
    maps = torch.rand(clips * frames, *shape, generator=draw, dtype=torch.float32).half()
    targets = torch.eye(CLASSES)[:clips]
    network = network_class("lstm").build(source, settings, CLASSES).to(options.device)
    inputs = math.prod(shape)
    x, w = torch.rand(clips * frames, inputs), torch.rand(inputs, 4 * cells)
    h, u = torch.rand(clips, cells), torch.rand(cells, 4 * cells)
    x, w, h, u = (part.to(options.device) for part in (x, w, h, u))

    def fit() -> None:
        sample = ClipSample(frames=maps, counts=[frames] * clips, targets=targets)
        fit_network(network, sample, SIDE, options.device)

    def products() -> None:
        for _ in range(3 * STEPS):
            x @ w
            for _ in range(frames):
                h @ u

    seconds = medians({"ours": fit, "products": products}, 1 if options.quick else 3)
    ratio = seconds["products"] / seconds["ours"]
    measure = f"LSTM steps of {frames} frames a second"
    return [at_least(measure, "their matrix products", ratio, 0.4, seconds=seconds)]


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--device", default="cpu")
    given = arguments.parse_args()
    sys.exit(main([train, score, workers, long_clips], given, given.device))
