"""Part of `python -m benchmarks.pipeline`: pictures a second of the describe step, against a plain
script with a torch DataLoader."""

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import Options, Row, at_least
from benchmarks.pipeline_run import DATA, in_a_process, run_job

SIDE_PX, BATCH = 320, 32
SETTINGS = (
    "describe.streams=dense",
    f"picture.resize_px={SIDE_PX}",
    f"picture.crop_px={SIDE_PX}",
)


def pictures(options: Options) -> list[Row]:
    """The describe step on pictures, and a script with a DataLoader"""
    with tempfile.TemporaryDirectory() as folder:
        paths = _copies(Path(folder), 264 if options.quick else 2112)
        cores = tuple(sorted(os.sched_getaffinity(0)))[:2]
        plain = in_a_process(_plain, paths, cores)
        ways = {
            place: in_a_process(run_job, paths, ("describe",), cores, place, SETTINGS)["describe"]
            for place in ("separate", "together")
        }
    return [
        at_least(
            f"pictures a second, {len(paths)} of {SIDE_PX} px, squeezenet1_0 features.12, {place}",
            "torch DataLoader with a worker for each core, one process computes, npy files",
            plain["seconds"] / step["seconds"],
            1.0,
            seconds={"step": step["seconds"], "DataLoader": plain["seconds"]},
            pictures_per_s=len(paths) / step["seconds"],
            step=step["words"],
            step_includes="the start of its actors, imports, the network's weights, writing",
        )
        for place, step in ways.items()
    ]


def _copies(folder: Path, count: int) -> list[str]:
    """Pictures of CUB, again and again under other names."""
    found = sorted((DATA / "images" / "cub").rglob("*.jpg"))
    paths = [folder / f"{number:06d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(found[number % len(found)].read_bytes())
    return list(map(str, paths))


def _plain(paths: list[str], cores: tuple[int, ...]) -> dict[str, float]:
    """What a user of torch would write."""
    os.sched_setaffinity(0, cores)
    import torch
    import torchvision
    from PIL import Image
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader
    from torchvision.transforms import v2

    turned = v2.Compose(
        [
            v2.Resize((SIDE_PX, SIDE_PX), antialias=True),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, place: int) -> torch.Tensor:
            with Image.open(paths[place]) as picture:
                return turned(picture.convert("RGB"))

    torch.set_num_threads(len(cores))
    began = time.perf_counter()
    network = torchvision.models.squeezenet1_0()
    network.load_state_dict(load_file(DATA / "weights" / "squeezenet1_0.safetensors"))
    layers = network.features[:13].eval()
    loader = DataLoader(Pictures(), BATCH, num_workers=len(cores), multiprocessing_context="fork")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for number, batch in enumerate(loader):
            maps = layers(batch).flatten(2).transpose(1, 2)
            np.save(f"{folder}/{number}.npy", maps.half().numpy())
    return {"seconds": time.perf_counter() - began}


CASES = (pictures,)
