"""Every kind of file of a finished run, and what may befall it; derived from STEPS and the tables,
so that a new one is taken up by itself."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import safetensors.numpy

from pipelines.run.steps import STEPS
from pipelines.storage.store import DONE, Store, is_visible
from pipelines.storage.tables import TABLES

FILES = {
    table.name: re.sub("<[^>]*>", "*", table.files)
    for step in STEPS.values()
    for table in step.tables
}
"""{kind of file: glob below the run's folder}."""
FILES |= {
    "weights": "weights/*.safetensors",
    "codebook": "codebooks/*/*/*.safetensors",
    "classifier": "models/*/*.safetensors",
    "report": "report/index.html",
    "mark of a codebook": f"marks/codebooks/*/*/{DONE}",
    "mark of a sample": f"marks/samples/*/*/{DONE}",
    "mark of encodings": "marks/encodings/*/*/_done-*.json",
}
NOT_TWICE = ("weights", "report", *(kind for kind in FILES if kind.startswith("mark")))
"""Kinds of which a copy under another name is no row and no part of anything, and is let be."""


def delete(file: Path) -> Path:
    file.unlink()
    return file


def truncate(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


def flip(file: Path) -> Path:
    """Three bytes in the middle; the size stays."""
    data = bytearray(file.read_bytes())
    start = len(data) // 2
    data[start : start + 3] = bytes(byte ^ 0x55 for byte in data[start : start + 3])
    file.write_bytes(bytes(data))
    return file


def duplicate(file: Path) -> Path:
    return Path(shutil.copy(file, file.with_name(f"0-{file.name}")))


DAMAGE: dict[str, Callable[[Path], Path]] = {
    "deleted": delete,
    "truncated": truncate,
    "flipped": flip,
    "duplicated": duplicate,
}
"""{what may befall a file: does it, and returns the file that is not as it should be}."""

CELLS = [
    (kind, damage)
    for kind in FILES
    for damage in DAMAGE
    if damage != "duplicated" or kind not in NOT_TWICE
]


def file_of(run: Path, kind: str) -> Path:
    return min(
        file
        for file in run.glob(FILES[kind])
        if kind.startswith("mark") or is_visible(file.name, "")
    )


def contents(run: Path) -> dict[str, object]:
    """All that a run holds and that does not say when or how fast it was made."""
    store, keys = Store(str(run)), {table.name: table.key for table in TABLES}
    found: dict[str, object] = {}
    for name, folder in store.read_json("run.json")["tables"].items():
        table = store.read_table(folder).sort_by(
            [(key, "ascending") for key in keys[name.partition("/")[0]]]
        )
        found[name] = table.select(
            [n for n in table.column_names if n not in ("decode_s", "seconds")]
        )
    for folder in sorted(run.glob("samples/*/*")):
        found[str(folder.relative_to(run))] = store.read_table(
            str(folder.relative_to(run))
        ).sort_by([(key, "ascending") for key in keys["samples"]])
    for file in run.rglob("curves.parquet"):
        found[str(file.relative_to(run))] = store.read_table(str(file.parent.relative_to(run)))
    for file in run.rglob("*.safetensors"):
        tensors = safetensors.numpy.load_file(file)
        found[str(file.relative_to(run))] = {
            name: value.tobytes() for name, value in tensors.items()
        }
    found |= {str(file.relative_to(run)): None for file in run.rglob("_done*.json")}
    return found | {"page": (run / "report/index.html").exists()}


def assert_equal(found: dict[str, object], expected: dict[str, object]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = found[name].equals(value) if isinstance(value, pa.Table) else found[name] == value
        assert same, f"{name} is not as in the undisturbed run"


def written(run: Path) -> dict[str, int]:
    """{visible file of a table, codebook or classifier: when it was written}."""
    files = (file for file in run.glob("*/**/*") if file.is_file() and is_visible(file.name, ""))
    return {str(file.relative_to(run)): file.stat().st_mtime_ns for file in files}
