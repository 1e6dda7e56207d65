"""What one would write by hand: PyAV, torchvision and torch, in two processes.

    python -m benchmarks.peers.script LIST WEIGHTS OUT

LIST is a text file of video paths. It imports nothing of this project. SqueezeNet's features.12 of
25 uniform frames, max-pooled in a pyramid of 6, 3, 2 and 1 cells a side: the map over its length at
each position (appearance), and of its change since the frame before, both signs apart (difference).
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models import squeezenet1_0

NUM_FRAMES, BATCH, PROCESSES = 25, 4, 2
MEAN, DEVIATION = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class Describer:
    """The network, and what it gives for a video."""

    def __init__(self, weights: str) -> None:
        from safetensors.torch import load_file

        torch.set_num_threads(1)
        network = squeezenet1_0()
        network.load_state_dict(load_file(weights))
        self.network = network.features[:13].eval().to(memory_format=torch.channels_last)
        self.mean, self.deviation = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION))

    @torch.inference_mode()
    def __call__(self, path: str) -> dict:
        pictures = torch.from_numpy(frames(path)).permute(0, 3, 1, 2)
        maps = torch.cat([self._maps(part) for part in pictures.split(BATCH)])
        change = maps[1:] - maps[:-1]
        signed = torch.cat([change.clamp_min(0), (-change).clamp_min(0)], 1)
        rows = {"appearance": pooled(maps), "difference": pooled(signed)}
        halves = {name: row.half().numpy().tobytes() for name, row in rows.items()}
        return {"path": path, "num_frames": len(maps), **halves}

    def _maps(self, pictures: Tensor) -> Tensor:
        scaled = (pictures.float() / 255 - self.mean) / self.deviation
        return self.network(scaled.contiguous(memory_format=torch.channels_last))


def pooled(maps: Tensor) -> Tensor:
    """Return descriptors [f, 50, C] of maps [f, C, h, w]."""
    maps = functional.normalize(maps, dim=1)
    grids = [functional.adaptive_max_pool2d(maps, side).flatten(2) for side in (6, 3, 2, 1)]
    return torch.cat(grids, 2).transpose(1, 2)


def frames(path: str) -> np.ndarray:
    """Return the pictures [25, 224, 224, 3] of a video, from the middle of 256 x 256."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        length = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
        container.seek(0)
        wanted = [int((k + 0.5) * length / NUM_FRAMES) for k in range(NUM_FRAMES)]
        found = {}
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                picture = frame.reformat(256, 256, format="rgb24").to_ndarray()
                found[number] = picture[16:240, 16:240]
            if number >= wanted[-1]:
                break
    return np.stack([found[number] for number in wanted if number in found])


def part(paths: list[str], weights: str, out: str) -> None:
    """Write the rows of some videos to a file."""
    describe = Describer(weights)
    table = pa.Table.from_pylist([describe(path) for path in paths])
    pq.write_table(table, out, compression="zstd", use_dictionary=False)


def main(listed: str, weights: str, out: str) -> None:
    """Cut the list into one part for each process."""
    paths = Path(listed).read_text().splitlines()
    Path(out).mkdir()
    with ProcessPoolExecutor(PROCESSES) as pool:
        calls = [
            pool.submit(part, paths[i::PROCESSES], weights, f"{out}/{i}.parquet")
            for i in range(PROCESSES)
        ]
        for call in calls:
            call.result()


if __name__ == "__main__":
    main(*sys.argv[1:])
