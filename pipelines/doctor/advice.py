"""The shell command after which a problem is gone, for what the job makes again."""

import shlex

from pipelines.doctor.check import EXAMPLES
from pipelines.doctor.scan import Scan
from pipelines.run.lock import LOCK
from pipelines.storage.store import DONE

_MADE_WITH = {"attention": "encodings", "solutions": "scores", "fusions": "scores"}
"""{table: the one whose rows must go too, because what has them is not made again}."""

THEN = "   # then run the job's command again"


def command(run: Scan, remake: str, folder: str, files: list[str]) -> str:
    """Return what removes the files of a problem, and the marks that say that they are there.

    "" where the advice of the check is better.

    Args:
        remake: see `check.py`.
        folder: of the files; its name in run.json where it has one.
        files: some of the files, more than EXAMPLES where there are many.
    """
    if not remake:
        return ""
    is_few = len(files) <= EXAMPLES
    if remake == "delete":
        return delete(run, files) if is_few and LOCK not in run.sizes else ""
    if folder not in run.folders:
        marks = [run.lies(mark) for file in files for mark in _marks_of_tensors(file)]
        names = files if is_few else [f"{folder}/"]
        return delete(run, list(dict.fromkeys([*names, *filter(None, marks)]))) + THEN
    key, table, path, _ = run.folders[folder]
    if table.name in _MADE_WITH:
        other = key.replace(table.name, _MADE_WITH[table.name], 1)
        made_with = run.record.tables.get(other, path)
        return delete(run, [f"{path}/", f"{made_with}/", *run.marks_of(made_with)]) + THEN
    marks = run.marks_of(path)
    if not marks and key in run.record.tables:
        marks = list(filter(None, map(run.lies, run.record.marks(table.step)[:1])))
    whole = [f"{path}/"]
    names = {"missing": [], "folder": whole, "files": files if is_few else whole}[remake] + marks
    return delete(run, names) + THEN if names else ""


def delete(run: Scan, names: list[str]) -> str:
    """Return a command that removes files of the run, and folders where a name ends with /."""
    if run.store.is_local:
        return shlex.join(["rm", "-rf", *(run.store.path(name) for name in names)])
    if not run.store.root.startswith("s3://"):
        return f"delete {' '.join(shlex.quote(run.store.uri(name)) for name in names)}"
    commands = []
    for name in names:
        recursive = ["--recursive"] if name.endswith("/") else []
        commands.append(shlex.join(["aws", "s3", "rm", *recursive, run.store.uri(name)]))
    return "; ".join(commands)


def _marks_of_tensors(name: str) -> list[str]:
    """Return what says that a file of codebooks or classifiers is there."""
    root, _, below = name.partition("/")
    folder = below.rpartition("/")[0]
    scores = below.replace("compression-", "fold-").removesuffix(".safetensors")
    return {
        "codebooks": [f"{root}/{folder}/{DONE}"],
        "models": [f"{root}/{folder}/{DONE}"],
        "classifiers": [f"scores/{folder}/{DONE}", f"scores/{scores}.parquet"],
    }.get(root, [])
