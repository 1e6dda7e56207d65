"""The same work by Daft, which runs the same class in two processes.

python -m benchmarks.peers.with_daft LIST WEIGHTS OUT
"""

import sys
from pathlib import Path

import daft
from daft import DataType

from benchmarks.peers.script import PROCESSES, Describer

COLUMNS = {
    "num_frames": DataType.int64(),
    "appearance": DataType.binary(),
    "difference": DataType.binary(),
}


@daft.cls(use_process=True, max_concurrency=PROCESSES)
class Described:
    """A describer that each process makes once."""

    def __init__(self, weights: str) -> None:
        self.describe = Describer(weights)

    @daft.method(return_dtype=DataType.struct(COLUMNS), unnest=True)
    def __call__(self, path: str) -> dict:
        row = self.describe(path)
        return {name: row[name] for name in COLUMNS}


def main(listed: str, weights: str, out: str) -> None:
    paths = Path(listed).read_text().splitlines()
    # Batches of a few videos: a partition would else go to one process as a whole.
    data = daft.from_pydict({"path": paths}).into_batches(4)
    described = Described(weights)
    data.select(data["path"], described(data["path"])).write_parquet(out, compression="zstd")


if __name__ == "__main__":
    main(*sys.argv[1:])
