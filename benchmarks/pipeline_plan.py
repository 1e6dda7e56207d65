"""`--plan` against the run that follows it, and how long a plan of a million videos takes.

    python -m benchmarks.pipeline_plan [--quick] [--json FILE]

Plan and run are processes of their own, on this machine as it is: what else it does counts, so it
should do nothing else. Videos and weights are those of the tests (../shared/data or
$VIDEO_FISHER_DATA).
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Options, Row, at_most, main, parser

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("VIDEO_FISHER_DATA", ROOT / ".." / "shared" / "data")).resolve()
SQUEEZENET = f"describe.weights={DATA / 'weights' / 'squeezenet1_0.safetensors'}"
UNLABELLED = "index,describe,fit,encode"


def _job(*flags: str) -> tuple[float, int]:
    """Seconds of a job, and bytes at the peak of the largest process of all jobs so far."""
    started = time.monotonic()
    command = [sys.executable, "-m", "jobs.fcvid_encode", *flags]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _compare(name: str, flags: list[str], options: Options) -> Row:
    with tempfile.TemporaryDirectory() as out:
        flags = [*flags, "--out", out, *(["--limit", "12"] if options.quick else [])]
        plan_s, _ = _job("--plan", *flags)
        measured_s, _ = _job(*flags)
        plan = json.loads((Path(out) / "plan.json").read_text())
        run = json.loads((Path(out) / "run.json").read_text())
    predicted_s = plan["wall_s"]["value"]
    return at_most(
        f"plan of {name}: wall time, the larger over the smaller",
        "the run",
        max(predicted_s, measured_s) / min(predicted_s, measured_s),
        1.2,
        seconds={"predicted": predicted_s, "measured": measured_s, "plan": plan_s},
        range_s=[plan["wall_s"]["low"], plan["wall_s"]["high"]],
        steps={
            step: {"predicted": plan["steps"][step]["wall_s"]["value"], "measured": done["seconds"]}
            for step, done in run["steps"].items()
        },
        load_after=os.getloadavg()[0],
    )


def labelled(options: Options) -> list[Row]:
    """A plan and a run of two labelled corpora"""
    rows = []
    for name in ("weizmann", "ut_interaction"):
        folder = DATA / "labelled" / name
        flags = ["--videos", str(folder), "--labels", str(folder / "labels.csv")]
        flags += ["--recipe", "demo" if options.quick else "weizmann", "--set", SQUEEZENET]
        if options.quick:
            flags += ["--set", "split.kind=random"]
        rows.append(_compare(name, flags, options))
    return rows[: 1 if options.quick else None]


def clips(options: Options) -> list[Row]:
    """A plan and a run of clips of all kinds, without labels, some of them no videos"""
    flags = ["--videos", str(DATA / "clips"), "--steps", UNLABELLED, "--recipe", "demo"]
    flags += ["--set", SQUEEZENET, "--set", "sampling.policy=interval"]
    flags += ["--set", "sampling.interval_s=0.5"]
    return [_compare("clips", flags, options)]


def million(options: Options) -> list[Row]:
    """A plan of a manifest of a million rows, a thousandth of which exist"""
    number = 50_000 if options.quick else 1_000_000
    clip = DATA / "clips" / "abseiling_k400.mp4"
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"v/{place:07d}.mp4" for place in range(number)]
        (Path(folder) / "v").mkdir()
        for path in paths[::1000]:
            (Path(folder) / path).symlink_to(clip)
        rows = [
            f"{path},class {place % 239},{'train' if place % 2 else 'test'}"
            for place, path in enumerate(paths)
        ]
        for name, header, lines in (
            ("videos.csv", "path", paths),
            ("labels.csv", "path,label,split", rows),
        ):
            (Path(folder) / name).write_text("\n".join([header, *lines]) + "\n")
        flags = ["--plan", "--videos", f"{folder}/videos.csv", "--labels", f"{folder}/labels.csv"]
        flags += ["--out", f"{folder}/out", "--set", "describe.weights=random:0"]
        flags += ["--set", "plan.num_cpus=64", "--set", "plan.num_gpus=4"]
        seconds, peak_bytes = _job(*flags)
    name = f"plan of a manifest of {number:,} rows, recipe fcvid"
    return [
        at_most(f"{name}: seconds", "60 s", seconds / 60, 1.0, seconds=seconds),
        at_most(f"{name}: memory", "2 GB", peak_bytes / 2e9, 1.0, bytes=peak_bytes),
    ]


# First the one whose memory is measured: the operating system knows only the largest of all
# children.
CASES = (million, labelled, clips)

if __name__ == "__main__":
    sys.exit(main(CASES, parser(__doc__.splitlines()[0]).parse_args()))
