"""Runs of the demo's recipe on a few real videos, and their rows, for tests of networks."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.fcvid_encode import main


def demo_run(data: Path, out: Path, num_videos: int, settings: Iterable[str]) -> int:
    """Run the job on Weizmann, and return its exit code."""
    folder = data / "labelled" / "weizmann"
    weights = f"describe.weights={data / 'weights' / 'squeezenet1_0.safetensors'}"
    flags = ["--videos", str(folder), "--labels", str(folder / "labels.csv"), "--out", str(out)]
    flags += ["--recipe", "demo", "--limit", str(num_videos)]
    for setting in (weights, *settings):
        flags += ["--set", setting]
    return main(flags)


def rows(out: Path, pattern: str) -> list[dict]:
    """Return the rows of all finished files of a run whose paths match."""
    files = [file for file in sorted(out.glob(pattern)) if file.name[0] != "."]
    assert files
    tables = [pq.read_table(file).replace_schema_metadata(None) for file in files]
    return pa.concat_tables(tables).to_pylist()
