"""The house: which room may import which, read from the code's own imports.

`python -m tests.house` prints the picture that CONTRIBUTING.md shows, with --lines the size of each
room; tests/test_architecture.py holds the code to it.
"""

import ast
import sys
import textwrap
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]

LAYERS = ("video_fisher", "jobs", "pipelines", "encoders")
MOST_FILES = 12

ROOMS = {
    "video_fisher": "the Python API, and the command",
    "jobs": "flags to a checked job, one function of pipelines",
    "pipelines.flags": "flags as checked values, before torch",
    "pipelines.search": "videos like one",
    "pipelines.predict": "new videos to classes, by a finished run",
    "pipelines.plan": "what a run would take and cost",
    "pipelines.studies": "several runs compared",
    "pipelines.launch": "one run, under the lock of its folder",
    "pipelines.corpus": "the eight steps, in order",
    "pipelines.prepare": "flags and files to a job that can run",
    "pipelines.submission": "a run as Ray jobs",
    "pipelines.doctor": "is a run sound?",
    "pipelines.export": "a run for other tools",
    "pipelines.track": "curves and numbers to TensorBoard and MLflow",
    "pipelines.report": "the page of a run",
    "pipelines.models": "classifiers of all videos, for new ones",
    "pipelines.evaluate": "SCORES to METRICS",
    "pipelines.classify": "vectors to SCORES",
    "pipelines.encode": "descriptors to one vector a video",
    "pipelines.networks": "networks are trained, and score",
    "pipelines.fit": "codebooks and networks are trained",
    "pipelines.describe": "frames to descriptors",
    "pipelines.index": "files and labels to segments",
    "pipelines.video": "a file to frames, safely",
    "pipelines.cluster": "Ray: pools, datasets, training, progress",
    "pipelines.reading": "views of a run's tables, records of its settings",
    "pipelines.run": "one run: what it makes, and where",
    "pipelines.demo": "a corpus that is made here",
    "pipelines.settings": "every setting, without torch",
    "pipelines.ledger": "what was planned, is done, and is there",
    "pipelines.storage": "files and tables",
    "pipelines.ray_job": "the Ray job that this process is",
    "pipelines.terminal": "the line of a step while it works",
    "pipelines.text_table": "columns for a terminal",
    "pipelines.logs": "what users and log files are told",
    "pipelines.errors": "errors of the user, and of a run",
    "pipelines.credentials": "secrets in URIs, left out of what is shown",
    "encoders.registry": "every encoder by name",
    "encoders.svm": "one-vs-rest linear classifiers",
    "encoders.scores": "metrics, intervals, fusion of scores",
    "encoders.fv_vae": "the network whose gradients encode",
    "encoders.networks.flow": "networks that learn optical flow",
    "encoders.networks.over_time": "networks on full-length video",
    "encoders.networks": "networks that write scores, and the one trainer",
    "encoders.encodings": "sums over descriptors to vectors",
    "encoders.codebooks": "PCA, k-means, GMM of a sample",
    "encoders.backbones": "convolutional networks and their nodes",
    "encoders.descriptors": "maps to local descriptors",
    "encoders.stream_specs": "streams as they are written in settings",
    "encoders.settings": "a record for each encoder",
    "encoders.fields": "fields of settings that say themselves what they may be",
    "encoders.tensor_files": "tensors in files",
    "encoders.matmul": "the fastest exact way to a matrix product",
    "encoders.seal": "a digest inside a file",
}
"""Rooms from the top down, with what one finds there: imports point from an earlier one to a later
one."""


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return {dotted name: file} of every module of the layers, packages' own files left out."""
    files = (file for layer in LAYERS for file in sorted((root / layer).rglob("*.py")))
    named = {".".join(file.relative_to(root).with_suffix("").parts): file for file in files}
    return {name: file for name, file in named.items() if file.name != "__init__.py"}


def room(module: str) -> str:
    """Return the entry of ROOMS that a module belongs to; its own name where there is none."""
    parts = module.split(".")
    names = (".".join(parts[:size]) for size in range(len(parts), 0, -1))
    return next((name for name in names if name in ROOMS), module)


def imports(root: Path = ROOT) -> dict[str, set[str]]:
    """Return {module: modules of the layers that it imports}, also inside functions."""
    known = modules(root)
    return {name: set(_imported(file, known)) for name, file in known.items()}


def _imported(file: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names a module as well as `from module import thing`.
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        else:
            continue
        yield from (name for name in names if name in known)


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Return the imports that do not point down the list of rooms, as `importer -> imported`."""
    place = {name: number for number, name in enumerate(ROOMS)}
    return [
        f"{name} -> {other}"
        for name, others in graph.items()
        for other in sorted(others)
        if room(name) != room(other) and place[room(name)] >= place[room(other)]
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of a circle of imports, none where there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def crowded(root: Path = ROOT) -> dict[str, int]:
    """Return {folder: Python files} of folders of pipelines/ and encoders/ with more than
    MOST_FILES."""
    counts: dict[str, int] = {}
    for name in modules(root):
        folder, _, _ = name.rpartition(".")
        counts[folder] = counts.get(folder, 0) + 1
    return {k: n for k, n in counts.items() if n > MOST_FILES and not k.startswith("jobs")}


def picture(root: Path = ROOT, *, with_lines: bool = False) -> str:
    """Return the rooms from the top down, and the rooms that each imports."""
    known, graph = modules(root), imports(root)
    sizes: dict[str, list[int]] = {name: [] for name in ROOMS}
    uses: dict[str, set[str]] = {name: set() for name in ROOMS}
    for name, file in known.items():
        with file.open(encoding="utf-8") as lines:
            sizes[room(name)].append(sum(1 for _ in lines))
        uses[room(name)] |= {room(other) for other in graph[name]} - {room(name)}
    text = []
    for name, what in ROOMS.items():
        head = f"{name.replace('.', '/'):24}"
        if with_lines:
            head += f" {len(sizes[name]):3} files {sum(sizes[name]):6} lines "
        text.append(f"{head} {what}")
        if below := [other for other in ROOMS if other in uses[name]]:
            text += textwrap.wrap(
                "-> " + ", ".join(other.replace(".", "/") for other in below),
                width=100,
                initial_indent=" " * 25,
                subsequent_indent=" " * 28,
            )
    return "\n".join(text)


if __name__ == "__main__":
    print(picture(with_lines="--lines" in sys.argv[1:]))
