"""What the policy keyframes costs in accuracy and saves in decoding: `python -m
benchmarks.keyframes`.

Runs the main job on Weizmann, re-encoded as H.264 with a key frame a second and with one per 250
frames, and on UT-Interaction as it is, with three ways to sample. Reads ../shared/data
($VIDEO_FISHER_DATA). --quick: the first corpus alone; --json FILE writes the rows.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.harness import machine, optional, progress, show
from benchmarks.pipeline_decode import ROOT, best_seconds, data_folder, encode
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video.decode import decode_segment

SAMPLINGS = {
    "uniform, 8 frames": Sampling(policy="uniform", num_frames=8),
    "every second": Sampling(policy="interval", interval_s=1.0),
    "key frames, 1 s": Sampling(policy="keyframes", interval_s=1.0),
}
SETTINGS = (
    # One key frame has no difference to another.
    "describe.streams=appearance",
    "describe.backbone=squeezenet1_0",
    "describe.nodes=features.12",
    "encode.encoders=ave,vlad",
    "split.kind=leave_one_group_out",
    "evaluate.bootstrap=0",
)


def reencoded(source: Path, target: Path, gop_frames: int) -> None:
    """The corpus at `source`, its labels too, as H.264."""
    with (source / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        path = Path(row["path"]).with_suffix(".mp4")
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        encode(source / row["path"], str(target / path), gop_frames=gop_frames)
        row["path"] = str(path)
    with (target / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader()
        out.writerows(rows)


def decode_seconds(corpus: Path, sampling: Sampling) -> float:
    """Processor time of decoding all videos in this process, the best of three for each."""
    total = 0.0
    for path in sorted(corpus.rglob("*.avi")) + sorted(corpus.rglob("*.mp4")):
        total += best_seconds(
            partial(decode_segment, str(path), 0, 1, sampling, Picture(), Decode()), 3
        )
    return total


def measure(corpus: Path, out: Path, sampling: Sampling) -> dict[str, float]:
    """One run of the job."""
    weights = data_folder() / "weights" / "squeezenet1_0.safetensors"
    settings = [f"sampling.{name}={value}" for name, value in vars(sampling).items()]
    settings += [*SETTINGS, f"describe.weights={weights}"]
    command = [sys.executable, "-m", "jobs.fcvid_encode", "--recipe", "weizmann"]
    command += ["--videos", str(corpus), "--labels", str(corpus / "labels.csv"), "--out", str(out)]
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."}
    )
    if done.returncode:
        sys.exit(f"benchmarks.keyframes: the job ended with {done.returncode}:\n{done.stderr}")
    tables = json.loads((out / "run.json").read_text(encoding="utf-8"))["tables"]
    sql = optional("duckdb").sql
    columns = "count(*), sum(len(frame_indices))"
    described = sql(f"SELECT {columns} FROM '{out}/{tables['descriptors']}/*.parquet'").fetchall()[
        0
    ]
    accuracy = sql(
        f"SELECT encoder, value FROM '{out}/{tables['metrics']}/*.parquet' WHERE metric ="
        " 'accuracy' AND split = 'all' AND fusion = 'none' ORDER BY encoder"
    ).fetchall()
    return (
        dict(zip(("videos", "frames"), described, strict=True))
        | {"decode_s": decode_seconds(corpus, sampling)}
        | {f"accuracy {encoder}": value for encoder, value in accuracy}
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--quick", action="store_true", help="the first corpus alone")
    arguments = parser.parse_args()
    labelled = data_folder() / "labelled"
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpora = {"Weizmann, a key frame a second": folder / "second"}
        reencoded(labelled / "weizmann", folder / "second", 25)
        if not arguments.quick:
            corpora["Weizmann, a key frame per 250"] = folder / "long"
            reencoded(labelled / "weizmann", folder / "long", 250)
            corpora["UT-Interaction as it is"] = labelled / "ut_interaction"
        for corpus, path in corpora.items():
            for name, sampling in SAMPLINGS.items():
                began = time.perf_counter()
                found = measure(path, folder / f"run-{len(rows)}", sampling)
                rows.append({"corpus": corpus, "sampling": name} | found)
                progress(f"{rows[-1]} in {time.perf_counter() - began:.0f} s")
    show(rows)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        content = [row | {"machine": machine()} for row in rows]
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
