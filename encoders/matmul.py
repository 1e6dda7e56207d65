"""The fastest way to a float32 matrix product on this processor that is as exact as float32.

torch multiplies with MKL, which gives processors of other makers half of their rate. oneDNN, which
torch holds as well, takes products over where torch is allowed to round to bfloat16; it rounds only
on processors that multiply bfloat16 matrices (AMX), and elsewhere computes in float32 as before.
So both ways are measured, time and error, and oneDNN is taken where it is faster and as exact.

The choice is made once for a processor and a version of torch and lies in a file, so that all
processes of a machine compute the same bits. Machines that choose differently differ by the
rounding of float32, as a CPU and a GPU do.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

VARIABLE = "VIDEO_FISHER_MATMUL"
"""Environment variable: `auto` (measure), or a way of WAYS."""

WAYS = {"plain": "none", "onednn": "bf16"}
"""{way: the precision that torch allows oneDNN's products of float32}."""

LEAST_GAIN = 1.1
"""Times faster than plain: below that the rounding of before is worth more."""

MOST_ERROR = 4.0
"""Most error of a way against float64, in that of plain. Rounding to bfloat16 gives 1,000s."""

TIMED = (2048, 512, 512)
CHECKED = ((1250, 512, 256), (300, 64, 128))
"""[n, C] x [C, K] of the measurement, as encoders have them."""

ROUNDS = 7


@dataclass(frozen=True)
class Trial:
    """A way as measured: seconds of a product, and the largest error of several."""

    way: str
    seconds: float
    error: float


@contextlib.contextmanager
def fastest() -> Iterator[None]:
    """Compute float32 products inside in this machine's way."""
    with way(chosen()):
        yield


_depth, _lock = {"count": 0, "before": "none"}, threading.Lock()


@contextlib.contextmanager
def way(name: str) -> Iterator[None]:
    """Compute float32 products inside in the way of WAYS.

    The mode is the process's: the first thread that enters sets it, the last one sets it back.
    """
    if name == "plain":
        yield
        return
    mode = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    with _lock:
        if not _depth["count"]:
            _depth["before"] = mode.fp32_precision
            mode.fp32_precision = WAYS[name]
        _depth["count"] += 1
    try:
        yield
    finally:
        with _lock:
            _depth["count"] -= 1
            if not _depth["count"]:
                mode.fp32_precision = _depth["before"]


def wanted() -> str:
    """Return what the environment variable says.

    Raises:
        ValueError: it names no way.
    """
    said = os.environ.get(VARIABLE, "auto")
    if said not in ("auto", *WAYS):
        raise ValueError(
            f"{VARIABLE}: expected auto or one of {', '.join(WAYS)}, got {said!r}; set or unset "
            "it in the environment of every node"
        )
    return said


def chosen() -> str:
    """Return the way of this machine, a key of WAYS.

    Raises:
        ValueError: see `wanted`.
    """
    said = wanted()
    return _chosen(_cache_file()) if said == "auto" else said


def choose(trials: Sequence[Trial]) -> str:
    """Return the fastest way that is as exact as plain, and plain where the gain is small."""
    plain = next(trial for trial in trials if trial.way == "plain")
    exact = [trial for trial in trials if trial.error <= MOST_ERROR * plain.error]
    fastest_trial = min(exact, key=lambda trial: trial.seconds)
    gain = plain.seconds / fastest_trial.seconds
    return fastest_trial.way if gain >= LEAST_GAIN else "plain"


def measured() -> list[Trial]:
    """Measure all ways, in turn, in a third of a second."""
    draw = torch.Generator().manual_seed(0)
    x, weight, _ = _factors(TIMED, draw)
    checked = [_factors(shape, draw) for shape in CHECKED]
    exact = [p for factors in checked for p in _products(*(f.double() for f in factors))]
    out = torch.empty(len(x), weight.shape[1])
    seconds = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, times in seconds.items():
            with way(name):
                began = time.perf_counter()
                torch.mm(x, weight, out=out)
                times.append(time.perf_counter() - began)
    return [
        Trial(name, min(times), _error(name, checked, exact)) for name, times in seconds.items()
    ]


Factors = tuple[Tensor, Tensor, Tensor]


def _factors(shape: tuple[int, int, int], draw: torch.Generator) -> Factors:
    """Return x [n, C] as after a ReLU, weights [C, K] and a bias [K].

    Values of one sign add up their rounding, where those of both signs hide it.
    """
    num_rows, width, columns = shape
    x = torch.randn(num_rows, width, generator=draw).relu_()
    weight = torch.randn(columns, width, generator=draw).T
    return x, weight, torch.randn(columns, generator=draw)


def _error(name: str, checked: Sequence[Factors], exact: Sequence[Tensor]) -> float:
    """Return the largest error of products like the encoders', relative to the float64 ones."""
    with way(name):
        found = [product for factors in checked for product in _products(*factors)]
    errors = ((one - two).norm() / two.norm() for one, two in zip(found, exact, strict=True))
    return max(float(error) for error in errors)


def _products(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Return a layer, its projection back, and sums of products over rows and parts of rows."""
    layer = torch.addmm(bias, x, weight)
    left, right = (factor.unflatten(0, (2, -1)) for factor in (x, layer))
    return layer, x @ weight, layer @ weight.T, x.T @ layer, torch.bmm(left.mT, right)


# --- the file ----------------------------------------------------------------------------------


@cache
def _chosen(file: Path) -> str:
    """Return the way in the file; without one, measure and write it.

    Of several processes that measure at once, the first to write decides. Where nothing can be
    written it is plain: processes could not agree otherwise.
    """
    found = _read(file)
    if found is not None:
        return found
    trials = measured()
    record = {"way": choose(trials), "trials": [asdict(trial) for trial in trials]} | _key()
    try:
        _publish(file, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        log.debug("float32 products: plain, as %s cannot be written (%s)", file, error)
        return "plain"
    return _read(file) or "plain"


def _read(file: Path) -> str | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["way"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found in WAYS else None


def _publish(file: Path, text: str) -> None:
    """Write a whole file, if there is none that can be read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent) as part:
        part.write(text)
        part.flush()
        with contextlib.suppress(FileExistsError):
            if file.exists() and _read(file) is None:
                file.unlink()
            os.link(part.name, file)


def _cache_file() -> Path:
    # Unlike Path.home, it does not fail for a user without a home.
    cache_home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(cache_home) / "video-fisher"
    digest = hashlib.sha256(json.dumps(_key()).encode()).hexdigest()[:16]
    return folder / f"matmul-{digest}.json"


@cache
def _key() -> dict[str, str]:
    """Return all that the choice depends on."""
    return {
        "cpu": cpu_model(),
        "torch": torch.__version__,
        "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def cpu_model() -> str:
    """Return the processor's name with its family, model and stepping, where Linux says them."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    first = info.read_text(encoding="utf-8").split("\n\n")[0]
    fields = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    words = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    # Virtual machines of one name differ in what they may use.
    flags = hashlib.sha256(named.get("flags", named.get("Features", "")).encode()).hexdigest()[:8]
    return ", ".join([*(named[word] for word in words if word in named), flags])
