"""What all benchmarks share: timing side by side, the table, and the JSON file.

A benchmark is a list of cases. A case gets `Options` and returns rows; it raises `Disagreement`
where the two sides do not compute the same, because then their times mean nothing.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor


class Disagreement(Exception):  # noqa: N818 - it is the finding, not a fault of the program
    """Two sides of a comparison gave different results."""


@dataclass(frozen=True)
class Options:
    """How to run: `quick` means smaller sizes and fewer repetitions."""

    quick: bool = False
    threads: int = 2
    device: str = "cpu"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        ratio: how many times faster than `against`, or the share or multiple that `measure` says.
        target: the least ratio wanted, or the largest where `detail["target"]` says "at most".
        detail: sizes, seconds of both sides, how it was counted.
    """

    measure: str
    against: str
    ratio: float
    target: float
    met: bool
    detail: dict[str, object]


def at_least(measure: str, against: str, ratio: float, target: float, **detail: object) -> Row:
    """A row whose ratio should be `target` or more."""
    return Row(measure, against, ratio, target, ratio >= target, {"target": "at least"} | detail)


def at_most(measure: str, against: str, ratio: float, target: float, **detail: object) -> Row:
    """A row whose ratio should be `target` or less."""
    return Row(measure, against, ratio, target, ratio <= target, {"target": "at most"} | detail)


SHORT_S = 0.5
PAUSE_S = 0.25
"""Before each timed call: the threads of the other side's library (OpenMP, OpenBLAS) wait for new
work by spinning for a while, on the cores that this side needs."""


def medians(
    sides: Mapping[str, Callable[[], object]],
    repetitions: int,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median seconds of each side: one untimed round, then `repetitions` rounds of all in turn.

    A short run is made once more, untimed, before each time that counts: after a pause threads and
        caches are cold.

    Args:
        wait: called before each reading of the clock; a GPU's is torch.cuda.synchronize.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(-1, repetitions):
        for name, run in sides.items():
            time.sleep(PAUSE_S)
            if seconds[name] and seconds[name][-1] < SHORT_S:
                run()
            wait()
            start = time.perf_counter()
            run()
            wait()
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def check_close(what: str, found: Tensor, expected: Tensor, tolerance: float) -> float:
    """The norm of found - expected over that of expected.

    Raises:
        Disagreement: it is above the tolerance.
    """
    error = float(
        (found.double().cpu() - expected.double().cpu()).norm() / expected.double().norm()
    )
    if not error <= tolerance:
        raise Disagreement(
            f"{what}: expected results within {tolerance:g} of each other, got {error:g}"
        )
    return error


def optional(name: str) -> ModuleType:
    """The module of that name, or an exit with what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        sys.exit(f"benchmarks: {name} cannot be imported ({error}); pip install -e '.[dev]'")


def machine() -> dict[str, object]:
    """What the times depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines())
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        numbers = (f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields)
        cpu = f"{fields.get('model name', cpu)} ({', '.join(numbers)})"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "openblas_core": os.environ.get("OPENBLAS_CORETYPE", ""),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }


def progress(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def run(cases: Sequence[Callable[[Options], list[Row]]], options: Options) -> list[Row]:
    """The rows of all cases, with the machine and the threads in each detail."""
    common = {"threads": options.threads, "quick": options.quick, "machine": machine()}
    rows: list[Row] = []
    with threadpool_limits(options.threads):
        torch.set_num_threads(options.threads)
        for number, case in enumerate(cases, start=1):
            start = time.perf_counter()
            progress(f"[{number}/{len(cases)}] {case.__doc__.splitlines()[0]}")
            rows += [Row(**(vars(row) | {"detail": row.detail | common})) for row in case(options)]
            progress(f"[{number}/{len(cases)}] {time.perf_counter() - start:.1f} s")
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as text, one a line."""
    cells = [("what", "against", "ratio", "target", "")]
    for row in rows:
        sign = "<=" if row.detail["target"] == "at most" else ">="
        met = "met" if row.met else "missed"
        cells.append((row.measure, row.against, f"{row.ratio:.3g}", f"{sign} {row.target:g}", met))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def show(rows: Sequence[dict], path: Path | None = None) -> None:
    """Print rows of measurements as a table, and write them with the machine to a JSON file."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        cells = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row.values())
        print("| " + " | ".join(cells) + " |")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "rows": list(rows)}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    arguments.add_argument("--threads", type=int, default=2, help="of every library (2)")
    return arguments


def main(
    cases: Sequence[Callable[[Options], list[Row]]],
    arguments: argparse.Namespace,
    device: str = "cpu",
) -> int:
    """Runs, prints the table, writes the JSON; 0, or 1 where results disagree. A missed target is
    no error: `met` says it."""
    try:
        rows = run(cases, Options(arguments.quick, arguments.threads, device))
    except Disagreement as error:
        progress(f"error: {error}")
        return 1
    print(table(rows))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0
