"""What a stream and a view cost for a sampled frame: `python -m benchmarks.streams`.

Decodes and describes one clip ($VIDEO_FISHER_DATA/clips/bikes.mp4: 640 x 272, H.264, 10 s) in this
process, on one core, with SqueezeNet 1.0 features.12 beside the node named. Processor time, the
best of three;
--quick: of one. --json FILE writes the rows.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.harness import machine, progress, show
from benchmarks.pipeline_decode import data_folder
from encoders.backbones import load
from encoders.descriptors.views import views_of
from pipelines.describe.stage import CPU_FRAMES, channels_of, described_streams, nodes_of
from pipelines.settings.config import Config
from pipelines.video.decode import decode_segment

NUM_FRAMES = 25
SETTINGS = (
    "describe.backbone=squeezenet1_0",
    "describe.nodes=features.12",
    "sampling.policy=uniform",
    f"sampling.num_frames={NUM_FRAMES}",
)
CASES = {
    "appearance": ("describe.streams=appearance",),
    "positions": ("describe.streams=positions",),
    "difference": ("describe.streams=difference",),
    "difference@gap=3": ("describe.streams=difference@gap=3",),
    "difference@gap_s=0.2": ("describe.streams=difference@gap_s=0.2",),
    "difference@gap=1, of input": ("describe.streams=difference@gap=1:nodes=input",),
    "difference@gap=1, of stages": ("describe.streams=difference@gap=1:nodes=stages",),
    "rank@gap=1:frames=5": ("describe.streams=rank@gap=1:frames=5",),
    "flow": ("describe.streams=flow",),
    "flow@stack=5": ("describe.streams=flow@stack=5",),
    "flow@method=tvl1": ("describe.streams=flow@method=tvl1",),
    "appearance and flow": ("describe.streams=appearance,flow",),
    "appearance, mirror": ("describe.streams=appearance", "picture.views=mirror"),
    "appearance, ten": ("describe.streams=appearance", "picture.views=ten"),
}


def measure(path: str, settings: tuple[str, ...], repetitions: int) -> dict[str, float]:
    """Runs of the network and milliseconds, both for a sampled frame."""
    config = Config().with_settings([*SETTINGS, *settings])
    streams, picture = described_streams(config), config.picture
    name = "squeezenet1_0"
    model = load.load_model(name, load.random_filters(name, 0))
    networks = {
        flow: load.cut(name, model, nodes, num_channels=channels_of(flow))
        for flow, nodes in nodes_of(streams).items()
    }
    best = dict.fromkeys(("decode_ms", "network_ms", "streams_ms"), float("inf"))
    for _ in range(repetitions):
        began = time.process_time()
        frames = decode_segment(
            path, 0, 1, config.sampling, picture, config.decode, config.describe.windows
        )
        times = {"decode_ms": time.process_time() - began, "network_ms": 0.0, "streams_ms": 0.0}
        for flow, network in networks.items():
            images = torch.from_numpy(frames.flows[flow] if flow else frames.images)
            run = network.flow_maps if flow else network.maps
            own = [stream for stream in streams.values() if stream.flow == flow]
            for view in views_of(images, picture.views, picture.crop_px):
                began = time.process_time()
                parts = [run(part) for part in view.split(CPU_FRAMES)]
                maps = {node: torch.cat([part[node] for part in parts]) for node in parts[0]}
                forwarded = time.process_time()
                for stream in own:
                    places = torch.from_numpy(frames.places[stream.window])
                    stream.describe(maps[stream.node], places).half()
                times["network_ms"] += forwarded - began
                times["streams_ms"] += time.process_time() - forwarded
        best = {name: min(best[name], 1000 * times[name] / NUM_FRAMES) for name in best}
    descriptors = sum(stream.num_descriptors * stream.width for stream in streams.values())
    read = frames.images if None in networks else []
    images = sum(map(len, (read, *frames.flows.values()))) / NUM_FRAMES
    return {"frames": images} | best | {"kilobytes": 2 * descriptors / 1000}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--quick", action="store_true", help="once instead of three times")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = str(data_folder() / "clips" / "bikes.mp4")
    rows = []
    with torch.inference_mode():
        for name, settings in CASES.items():
            rows.append({"streams": name} | measure(path, settings, 1 if arguments.quick else 3))
            progress(f"{rows[-1]}")
    show(rows)
    if arguments.json:
        content = [row | {"machine": machine()} for row in rows]
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
