"""The describe step as a whole against a script written by hand and against Daft.

    python -m benchmarks.peers [--quick] [--json FILE]

Each side is a command of its own, from its start to its files, in turn (A B C A B C): seconds by
the clock, processor seconds of all its processes, and the most private memory at once. Daft comes
with `pip install -e '.[peers]'`; without it the script alone is run.
"""

import importlib.util
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import torch

from benchmarks.harness import Disagreement, Options, Row, at_most, main, parser, progress
from benchmarks.peers.script import NUM_FRAMES
from benchmarks.peers.tree import Cost, cost
from benchmarks.pipeline_run import DATA, SETTINGS, _videos

WEIGHTS = DATA / "weights" / "squeezenet1_0.safetensors"

TARGETS = {
    "script": {"cpu_s": 1.05, "wall_s": 1.0, "peak_bytes": 1.2},
    "daft": {"cpu_s": 1.0, "wall_s": 1.0},
}
WORDS = {"cpu_s": "processor seconds", "wall_s": "seconds", "peak_bytes": "peak private memory"}

LEAST_COSINE = 0.99
"""Of each side's mean appearance and that of the script: scalers and decoders differ a little."""


def describing(options: Options) -> list[Row]:
    """Describe real videos to Parquet: ours, a script by hand, Daft"""
    paths = [str(Path(path).resolve()) for path in _videos(6 if options.quick else 200)]
    sides = ["ours", "script"]
    if importlib.util.find_spec("daft"):
        sides.append("daft")
    else:
        progress("  daft is not installed: pip install -e '.[peers]'")
    found: dict[str, list[Cost]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "list.txt"
        listed.write_text("".join(f"{path}\n" for path in paths))
        (Path(folder) / "manifest.csv").write_text("path\n" + listed.read_text())
        for repetition in range(1 if options.quick else 2):
            for side in sides:
                out = Path(folder) / f"{side}{repetition}"
                log = out.with_suffix(".log")
                found[side].append(cost(_command(side, Path(folder), out), {}, log))
                progress(f"  {side}: {found[side][-1]}")
        means = {side: _mean(side, Path(folder) / f"{side}0", len(paths)) for side in sides}
    for side in sides:
        _check(side, means[side], means["script"])
    return [row for peer in sides[1:] for row in _rows(peer, found, len(paths))]


def _command(side: str, folder: Path, out: Path) -> list[str]:
    if side != "ours":
        module = {"script": "script", "daft": "with_daft"}[side]
        listed = str(folder / "list.txt")
        return [sys.executable, "-m", f"benchmarks.peers.{module}", listed, str(WEIGHTS), str(out)]
    flags = [flag for setting in SETTINGS for flag in ("--set", setting)]
    videos = ["--videos", str(folder / "manifest.csv"), "--out", str(out)]
    steps = ["--steps", "index,describe", "--recipe", "fcvid"]
    return [sys.executable, "-m", "jobs.fcvid_encode", *videos, *steps, *flags]


def _mean(side: str, out: Path, num_videos: int) -> torch.Tensor:
    """Return the mean appearance descriptor [C] of all videos.

    Raises:
        Disagreement: frames are missing.
    """
    folder, column = out, "appearance"
    if side == "ours":
        folder, column = out / "descriptors", "features_12_appearance"
    table = ds.dataset(folder, format="parquet").to_table(columns=["num_frames", column])
    frames = sum(table["num_frames"].to_pylist())
    if abs(frames - NUM_FRAMES * num_videos) > num_videos:
        raise Disagreement(
            f"{side}: expected {NUM_FRAMES} frames of each of {num_videos} videos, got {frames}"
        )
    if side == "ours":
        values = table[column].combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
    else:
        values = np.concatenate([np.frombuffer(v, np.float16) for v in table[column].to_pylist()])
    return torch.from_numpy(values.astype(np.float32)).view(-1, 512).double().mean(0)


def _check(side: str, mean: torch.Tensor, other: torch.Tensor) -> None:
    cosine = float(torch.nn.functional.cosine_similarity(mean, other, dim=0))
    if not cosine >= LEAST_COSINE:
        raise Disagreement(
            f"{side}: expected the script's descriptors to within a cosine of {LEAST_COSINE}, got "
            f"{cosine:.4f}"
        )


def _rows(peer: str, found: dict[str, list[Cost]], num_videos: int) -> list[Row]:
    rows = []
    for name, target in TARGETS[peer].items():
        values = {side: [getattr(c, name) for c in found[side]] for side in ("ours", peer)}
        medians = {side: statistics.median(each) for side, each in values.items()}
        rows.append(
            at_most(
                f"describe {num_videos} real videos: {WORDS[name]}",
                {"script": "PyAV + torch, 2 processes", "daft": "Daft, 2 processes"}[peer],
                medians["ours"] / medians[peer],
                target,
                **{name: values},
                processes={side: found[side][0].processes for side in ("ours", peer)},
            )
        )
    return rows


if __name__ == "__main__":
    sys.exit(main((describing,), parser(__doc__.splitlines()[0]).parse_args()))
