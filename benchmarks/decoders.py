"""Which decoder reads which clip, whether they agree, and how fast: `python -m
benchmarks.decoders`.

Reads the clips of ../shared/data/clips ($VIDEO_FISHER_DATA), 25 frames of each. Times are processor
time of one decode_segment, opening and listing included, which other work on the machine disturbs
little; medians of interleaved repetitions. Writes the table of docs/decoders.md between its
markers; --quick repeats nothing and leaves the document alone.
"""

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video.decode import SegmentFrames, decode_segment
from pipelines.video.header import VideoError
from pipelines.video.pyav_decoder import PyAvVideo

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "decoders.md"
BEGIN = "<!-- begin: python -m benchmarks.decoders -->\n"
END = "<!-- end -->\n"
SAMPLING, PICTURE = Sampling(policy="uniform", num_frames=25), Picture()
DECODERS = ("pyav", "decord")


@dataclass
class Result:
    """One clip.

    Attributes:
        frames: that are shown; None where the file holds no video.
        errors: {decoder: error type} of those that do not read it.
        cpu_ms: {decoder: processor time} of the others.
        difference: largest mean absolute difference, in grey levels, of a frame by one and by the
        other.
        same_frames: whether both took the same frames, at the same times.
    """

    clip: str
    frames: int | None
    errors: dict[str, str]
    cpu_ms: dict[str, float]
    difference: float | None = None
    same_frames: bool | None = None


def measure(path: Path, repetitions: int) -> Result:
    """Both decoders on one clip, in turns."""
    found: dict[str, SegmentFrames] = {}
    errors: dict[str, str] = {}
    times_ms: dict[str, list[float]] = {name: [] for name in DECODERS}
    for _ in range(repetitions):
        for name in DECODERS:
            started = time.process_time()
            try:
                found[name] = decode_segment(
                    str(path), 0, 1, SAMPLING, PICTURE, Decode(decoder=name)
                )
            except VideoError as error:
                errors[name] = error.error_type
            else:
                times_ms[name].append((time.process_time() - started) * 1e3)
    frames = None
    if "pyav" in found:
        frames = len(PyAvVideo(str(path), path.name, PICTURE, Decode()).timestamps_s)
    medians = {name: statistics.median(values) for name, values in times_ms.items() if values}
    result = Result(path.name, frames, errors, medians)
    if len(found) == len(DECODERS):
        ours, theirs = (found[name] for name in DECODERS)
        result.same_frames = np.array_equal(
            ours.frame_indices, theirs.frame_indices
        ) and np.array_equal(ours.timestamps_s, theirs.timestamps_s)
        if result.same_frames:
            distances = np.abs(ours.images.astype(int) - theirs.images).mean(axis=(1, 2, 3))
            result.difference = float(distances.max())
    return result


def table(results: list[Result]) -> str:
    """The results as Markdown."""
    lines = [
        "| clip | frames | PyAV, CPU ms | decord, CPU ms | largest mean difference |",
        "|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda r: r.clip):
        times = [
            f"{result.cpu_ms[name]:.0f}" if name in result.cpu_ms else f"`{result.errors[name]}`"
            for name in DECODERS
        ]
        frames = "" if result.frames is None else result.frames
        if result.difference is not None:
            difference = f"{result.difference:.1f}"
        else:
            difference = "other frames" if result.same_frames is False else ""
        lines.append(f"| `{result.clip}` | {frames} | {' | '.join(times)} | {difference} |")
    return "\n".join(lines) + "\n"


def summary(results: list[Result]) -> str:
    """The table in a few sentences."""
    both = [r for r in results if len(r.cpu_ms) == len(DECODERS)]
    read = {name: sum(name in r.cpu_ms for r in results) for name in DECODERS}
    same = [r for r in both if r.same_frames]
    totals = {name: sum(r.cpu_ms[name] for r in both) / 1e3 for name in DECODERS}
    ratio = statistics.median(r.cpu_ms["decord"] / r.cpu_ms["pyav"] for r in both)
    differences = [r.difference for r in same]
    return (
        f"Of {len(results)} files PyAV reads {read['pyav']} and decord {read['decord']}. Of the"
        f" {len(both)} that both read, {len(same)} give the same frames at the same times; a"
        f" picture differs by at most {max(differences):.1f} grey levels in the mean, in the middle"
        f" by {statistics.median(differences):.1f}. Those {len(both)} take PyAV"
        f" {totals['pyav']:.1f} s and decord {totals['decord']:.1f} s of processor time; on the"
        f" middle clip decord takes {ratio:.2f} times as long.\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument("--quick", action="store_true", help="one repetition; no document")
    arguments = parser.parse_args()
    data = Path(os.environ.get("VIDEO_FISHER_DATA", ROOT / ".." / "shared" / "data")).resolve()
    paths = sorted((data / "clips").iterdir())
    # Loading a library is no clip's time.
    measure(next(path for path in paths if path.name == "bikes.mp4"), 1)
    results = [measure(path, 1 if arguments.quick else 5) for path in paths]
    text = f"{summary(results)}\n{table(results)}"
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    if not arguments.quick:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
