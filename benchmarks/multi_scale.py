"""Activations of a picture at several sizes: one dense pass for each size against a crop for each
activation (FK Table 1): `python -m benchmarks.multi_scale`.

Random filters of `alexnet_fcn`, one picture. CROPS of the crops are timed, one by one as a picture
comes, and all in one batch, in which the fully connected layers read their weights once; the times
are scaled to their number. --quick: scales 1 to 4 alone; --json FILE writes the rows; --device cuda
measures a GPU.
"""

import sys

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import Options, Row, at_least, check_close, main, medians, parser
from encoders.backbones import load
from encoders.descriptors.windows import FCN_STRIDE_PX, FCN_WINDOW_PX
from pipelines.settings.image_recipes import FK_SCALES

NETWORK, NODE = "alexnet_fcn", "fc7"
PAPER = {4: 22, 5: 39, 6: 47, 7: 60}
"""{scales: how many times faster FK Table 1 has the dense passes}."""

CROPS = 16


def activations(options: Options) -> list[Row]:
    """Dense passes over all scales against a pass for each window."""
    network = load.random_part(NETWORK, (NODE,), options.device, 3)
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 255, (375, 500, 3), np.uint8))
    sizes = [
        torch.from_numpy(np.array(picture.resize((side, side)))).unsqueeze(0)
        for side in FK_SCALES[: 4 if options.quick else 7]
    ]
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None

    def maps(frames: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network.maps(frames)[NODE]

    rows: list[Row] = []
    counts = [maps(frames)[0, 0].numel() for frames in sizes]
    last = sizes[min(3, len(sizes) - 1)]
    starts = torch.arange(0, last.shape[1] - FCN_WINDOW_PX + 1, FCN_STRIDE_PX)
    places = torch.cartesian_prod(starts, starts)[:CROPS].tolist()
    crops = torch.cat(
        [last[:, top : top + FCN_WINDOW_PX, left : left + FCN_WINDOW_PX] for top, left in places]
    )
    # Padding inside the network makes the two differ, but where the window is the picture.
    check_close("one window", maps(sizes[0]), maps(sizes[0][:, :FCN_WINDOW_PX, :FCN_WINDOW_PX]), 0)
    sides = {str(len(frames[0])): lambda frames=frames: maps(frames) for frames in sizes}
    ways = {
        "crops, one by one": lambda: [maps(crop[None]) for crop in crops],
        f"crops, {CROPS} at a time": lambda: maps(crops),
    }
    seconds = medians(sides | ways, 1 if options.quick else 3, wait)
    for number, paper in PAPER.items():
        if number > len(sizes):
            continue
        dense_s = sum(seconds[str(side)] for side in FK_SCALES[:number])
        count = sum(counts[:number])
        for way, target in zip(ways, (paper, 1), strict=True):
            crops_s = count * seconds[way] / len(crops)
            detail = {"activations": count, "dense_s": dense_s, "crops_s": crops_s}
            what = f"activations a second, scales 1 to {number}"
            rows.append(at_least(what, way, crops_s / dense_s, target, **detail))
    return rows


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--device", default="cpu")
    given = arguments.parse_args()
    sys.exit(main([activations], given, given.device))
