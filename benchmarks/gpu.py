"""Descriptors and encodings on a GPU: throughput as a share of what its matrix products reach.

    python -m benchmarks.gpu [--quick] [--json FILE] [--device cpu]

Frames are uint8 on the device, weights are random, and descriptors are those of the spatial
pyramid.
Letters: f frames, C channels of a descriptor, T of them a frame.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import (
    Options,
    Row,
    at_least,
    at_most,
    check_close,
    main,
    medians,
    parser,
    progress,
)
from encoders.backbones.load import Backbone, build, random_filters
from encoders.codebooks.gmm import Gmm
from encoders.descriptors.pyramid import LEVELS
from encoders.descriptors.streams import appearance
from encoders.encodings.base import Encoder
from encoders.encodings.gmm_fisher import GmmFisher
from encoders.encodings.vlad import Vlad
from encoders.fv_vae.encoder import FvVae

NODES = {"vgg19": "features.36", "resnet152": "layer4"}
FRAMES_PER_VIDEO = 25
BFLOAT16_TOLERANCE = 0.1
"""Of descriptors: 8 bits of mantissa through up to 152 layers."""


@dataclass(frozen=True)
class Sizes:
    """f frames at a time of side x side pixels; the peak is of a product of so many rows."""

    frames: int
    side: int
    product: int
    repetitions: int

    @classmethod
    def of(cls, options: Options) -> "Sizes":
        if options.device == "cpu":
            return cls(2, 64, 256, 1)
        return cls(100, 224, 8192, 5) if options.quick else cls(400, 224, 8192, 15)


def vgg19(options: Options) -> list[Row]:
    """VGG-19 pool5 descriptors, and their encodings"""
    return _network("vgg19", options)


def resnet152(options: Options) -> list[Row]:
    """ResNet-152 res5c descriptors, and their encodings"""
    return _network("resnet152", options)


CASES = (vgg19, resnet152)


def _network(name: str, options: Options) -> list[Row]:
    """Throughput of the descriptors, and the share of the encodings in the whole time."""
    sizes, device = Sizes.of(options), options.device
    weights = random_filters(name, seed=0)
    # Two of them: a copy of a traced network forgets that it is in evaluation mode.
    half, double = (build(name, (NODES[name],), weights, device) for _ in range(2))
    half.network.bfloat16()
    double.network.double()
    generator = torch.Generator().manual_seed(0)
    shape = (sizes.frames, sizes.side, sizes.side, 3)
    frames = torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)
    # Inductor's C++ takes minutes on a CPU, where only the path is tried.
    backend = "eager" if device == "cpu" else "inductor"
    compiled = torch.compile(lambda frames: _describe(half, frames), backend=backend)
    describe = torch.inference_mode()(compiled)

    descriptors = describe(frames)
    few = frames[:2]
    reference = torch.inference_mode()(_describe)(double, few)
    errors = {
        "bfloat16 descriptors": check_close(
            f"{name} descriptors in bfloat16", descriptors[:2], reference, BFLOAT16_TOLERANCE
        )
    }
    lengths = [len(part) * descriptors.shape[1] for part in frames.split(FRAMES_PER_VIDEO)]
    rows = descriptors.flatten(0, 1)
    encoders = [encoder.to(device) for encoder in _encoders(descriptors)]
    for encoder in encoders:
        first = rows[: lengths[0]]
        errors[f"float32 {encoder.name}"] = check_close(
            f"{name} {encoder.name} in float32",
            encoder.encode(first),
            encoder.encode(first.double()),
            1e-2,
        )

    def encode() -> list[Tensor]:
        return [encoder.encode_batch(rows, lengths) for encoder in encoders]

    product = torch.randn(sizes.product, sizes.product, device=device, dtype=torch.bfloat16)
    out = torch.empty_like(product)
    sides: dict[str, Callable[[], object]] = {
        "descriptors": lambda: describe(frames),
        "encodings": encode,
        "product": lambda: torch.mm(product, product, out=out),
    }
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    seconds = medians(sides, sizes.repetitions, wait)
    flops = _flops(half, few) / len(few) * len(frames)
    peak = 2 * sizes.product**3 / seconds["product"]
    detail = {
        "seconds": seconds,
        "frames": sizes.frames,
        "side_px": sizes.side,
        "frames_per_s": sizes.frames / seconds["descriptors"],
        "GFLOP_per_frame": flops / sizes.frames / 1e9,
        "device": device,
        "errors_against_float64": errors,
    }
    return [
        at_least(
            f"{name} descriptors, bfloat16, channels last, compiled",
            "bfloat16 matrix product of the same FLOPs",
            flops / seconds["descriptors"] / peak,
            0.5,
            peak_TFLOP_per_s=peak / 1e12,
            product=f"torch.mm of {list(product.shape)} twice",
            FLOPs="convolutions and products, 2 a multiplication and addition",
            **detail,
        ),
        at_most(
            f"{' + '.join(encoder.name for encoder in encoders)} of {name} descriptors",
            "descriptors and encodings together",
            seconds["encodings"] / (seconds["encodings"] + seconds["descriptors"]),
            0.05,
            videos=len(lengths),
            descriptors=lengths[0],
            C=rows.shape[1],
            dtype="float32",
            **detail,
        ),
    ]


def _describe(backbone: Backbone, frames: Tensor) -> Tensor:
    """Descriptors [f, T, C] of the one node."""
    (maps,) = backbone.differentiable_maps(frames).values()
    return appearance(maps, "per_position", LEVELS)


def _flops(backbone: Backbone, frames: Tensor) -> int:
    """FLOPs of these frames' descriptors."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _describe(backbone, frames)
    return counter.get_total_flops()


def _encoders(descriptors: Tensor) -> list[Encoder]:
    """DQ 5.2's three, of random codebooks at the scale of the descriptors [f, T, C]."""
    x = descriptors.flatten(0, 1).float().cpu()
    width, generator = x.shape[1], torch.Generator().manual_seed(0)
    mean, scale = x.mean(), x.std()

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    network = {
        "encoder.0.weight": random(width, width) / (width**0.5 * scale),
        "encoder.0.bias": random(width) / 10,
        "encoder.1.weight": random(255, width) / width**0.5,
        "encoder.1.bias": random(255) / 10,
        "decoder.weight": scale * random(width, 255) / 255**0.5,
        "decoder.bias": mean + scale * random(width) / 10,
        "var_x": scale**2 * (0.5 + random(width).square()),
    }
    means = (mean + scale * random(128, width) / 10).double()
    variances = scale.double() ** 2 * (1 + random(128, width).square().double() / 10)
    weights = torch.full((128,), 1 / 128, dtype=torch.float64)
    return [
        FvVae(network, normalisation="l2"),
        GmmFisher(Gmm(weights, means, variances), normalisation="l2"),
        Vlad(mean + scale * random(256, width), normalisation="l2"),
    ]


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument(
        "--device", default="cuda", help="cuda; cpu tries the path on tiny sizes, with --quick"
    )
    given = arguments.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        progress("benchmarks.gpu: expected a CUDA device, got none; run it on a machine with a GPU")
        sys.exit(2)
    if given.device == "cpu" and not given.quick:
        progress("benchmarks.gpu: expected --quick with --device cpu, which tries the path only")
        sys.exit(2)
    sys.exit(main(CASES, given, given.device))
