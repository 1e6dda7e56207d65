"""Ways to a matrix product on this processor: rate, and error against float64.

    python -m benchmarks.products [--quick] [--json FILE] [--threads 1]

float32 by torch, by oneDNN (where torch may round to bfloat16, as its linear layer and as a
convolution), of factors split into three bfloat16 parts, and by NumPy with each kernel of its
OpenBLAS; float64 by torch and NumPy. `encoders.matmul` takes what is marked.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.harness import parser, progress, show
from encoders import matmul

SIZES = ((2048, 512, 512), (2048, 512, 256), (512, 2048, 256), (1024, 256, 128))
"""[n, C] x [C, K]: a layer and the projection of the FV-VAE, its sums over a chunk, EM's."""

CORES = ("", "Haswell", "SkylakeX", "Cooperlake", "SapphireRapids", "Zen")
"""Kernels of OpenBLAS on x86-64. A process whose processor does not have them ends by a signal."""

CORE = "OPENBLAS_CORETYPE"


def torch_ways(a: Tensor, b: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Products a b of float32, each as one would call it."""
    out, weight = a.new_empty(len(a), b.shape[1]), b.T.contiguous()
    packed = weight.to_mkldnn()
    kernel = weight[:, :, None, None]
    picture = a.view(1, len(a), 1, -1).permute(0, 3, 1, 2)

    def split() -> Tensor:
        (high, low), (top, rest) = _parts(a), _parts(b)
        with matmul.way("onednn"):
            return (high @ top).add_(high @ rest).add_(low @ top)

    return {
        **{name: partial(_by_way, name, a, b, out) for name in matmul.WAYS},
        "onednn, linear": lambda: functional.linear(a.to_mkldnn(), packed).to_dense(),
        "onednn, 1 x 1 convolution": lambda: functional.conv2d(picture, kernel)[0, :, :, 0].T,
        "bfloat16 in two parts, 3 products": split,
    }


def _by_way(name: str, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    with matmul.way(name):
        return torch.mm(a, b, out=out)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.bfloat16().float()
    return high, (x - high).bfloat16().float()


def numpy_rates(threads: int, rounds: int) -> None:
    """Print {size and type: [GFLOP/s, error]} of this process's NumPy, for `by_numpy`."""
    from threadpoolctl import threadpool_limits

    found = {}
    with threadpool_limits(threads):
        for size in SIZES:
            a, b = _factors(size)
            for dtype in ("float32", "float64"):
                left, right = a.numpy().astype(dtype), b.numpy().astype(dtype)
                out = np.empty((size[0], size[2]), dtype)
                run = partial(np.matmul, left, right, out=out)
                found[f"{_word(size)} {dtype}"] = rate_and_error(
                    lambda run=run: torch.from_numpy(run()), a, b, rounds
                )
    print(json.dumps(found))


def by_numpy(core: str, threads: int, rounds: int) -> dict[str, list[float]]:
    """Return what `numpy_rates` finds in a process with these kernels; empty where it ends."""
    code = f"from benchmarks.products import numpy_rates as n; n({threads}, {rounds})"
    environment = os.environ | ({CORE: core} if core else {})
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    return json.loads(done.stdout) if done.returncode == 0 else {}


def best_core(threads: int) -> str:
    """Return the kernels with which NumPy multiplies fastest, the geometric mean over all sizes."""
    found = {core: by_numpy(core, threads, 5) for core in CORES}
    rates = {
        core: np.log([rate for rate, _ in each.values()]).mean()
        for core, each in found.items()
        if each
    }
    return max(rates, key=rates.__getitem__)


def with_best_blas(threads: int) -> None:
    """Start this benchmark again with the best kernels for NumPy and SciPy, unless they are set:
    so the other sides have them."""
    if CORE in os.environ:
        return
    core = best_core(threads)
    progress(f"{CORE}={core or '(as OpenBLAS chooses)'} is the fastest here")
    module = sys.modules["__main__"].__spec__.name.removesuffix(".__main__")
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    os.execve(sys.executable, command, os.environ | {CORE: core})


def rate_and_error(run: Callable[[], Tensor], a: Tensor, b: Tensor, rounds: int) -> list[float]:
    """Return the best GFLOP/s of some rounds, and the error relative to the float64 product."""
    exact = a.double() @ b.double()
    error = float((run().double() - exact).norm() / exact.norm())
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return [2 * a.numel() * b.shape[1] / min(seconds) / 1e9, error]


def _factors(size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(*size[:2], generator=draw), torch.randn(*size[1:], generator=draw)


def _word(size: tuple[int, int, int]) -> str:
    return " x ".join(map(str, size))


def main(quick: bool, threads: int) -> list[dict]:
    """Measure all ways at all sizes."""
    rounds = 5 if quick else 20
    torch.set_num_threads(threads)
    by_core = {core: by_numpy(core, threads, rounds) for core in CORES}
    chosen, rows = matmul.chosen(), []
    for size in SIZES:
        a, b = _factors(size)
        sides = {
            f"{name}{', taken' * (name == chosen)}": rate_and_error(run, a, b, rounds)
            for name, run in torch_ways(a, b).items()
        }
        double = partial(torch.mm, a.double(), b.double())
        doubles = {"plain, taken": rate_and_error(double, a, b, rounds)}
        for core, found in by_core.items():
            if found:
                name = f"NumPy, {core or 'kernels as OpenBLAS chooses'}"
                sides[name] = found[f"{_word(size)} float32"]
                doubles[name] = found[f"{_word(size)} float64"]
        for dtype, each in (("float32", sides), ("float64", doubles)):
            for name, (rate, error) in each.items():
                row = {"size": _word(size), "type": dtype, "way": name, "GFLOP/s": rate}
                rows.append(row | {"error": error, "threads": threads})
    return rows


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0])
    arguments.set_defaults(threads=1)
    given = arguments.parse_args()
    with torch.inference_mode():
        show(main(given.quick, given.threads), given.json)
