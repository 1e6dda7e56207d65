"""A check of the doctor, a problem that it finds, and the shell command after which it is gone."""

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pipelines.doctor.scan import EXAMPLES, Folder, Run
from pipelines.storage.store import DONE

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

AGAIN = "run the job's command again"
BY_HAND = (
    "the job does not write this: find out who changed the files; delete the folder and run the "
    "job's command again to have it made anew"
)


@dataclass(frozen=True)
class Problem:
    """What a check found in one place; `advice` where there is an exact command."""

    where: str
    found: str
    count: int = 1
    examples: tuple[str, ...] = ()
    advice: str = ""

    @classmethod
    def of(cls, where: str, found: str, items: Sequence[str], advice: str = "") -> Self:
        """One problem with some files or rows, the first of which are its examples."""
        return cls(where, found, len(items), tuple(items[:EXAMPLES]), advice)


Find = Callable[[Run], Iterable[Problem]]


@dataclass(frozen=True)
class Check:
    """One check: what holds in a sound run, and what to do where it does not.

    error: a reader gets wrong or missing rows. warning: odd, but no row is wrong. note: good to
    know.
    """

    id: str
    severity: Severity
    meaning: str
    advice: str
    find: Find


def check(
    checks: list[Check], name: str, severity: Severity, meaning: str, advice: str = BY_HAND
) -> Callable[[Find], Find]:
    """Decorator that adds a function to the list of checks, as the one with the id `name`."""

    def add(find: Find) -> Find:
        checks.append(Check(name, severity, meaning, advice, find))
        return find

    return add


THEN = "   # then run the job's command again"


def remake(run: Run, folder: Folder, files: list[str]) -> str:
    """The command after which the job makes these files again."""
    table, _, name = folder.key.partition("/")
    # Videos whose encodings are visible are not encoded again; nor are folds trained whose scores
    # are visible.
    first = {"attention": "encodings", "solutions": "scores", "fusions": "scores"}.get(table)
    if first:
        made = run.tables.get(f"{first}/{name}", folder.name)
        return delete_command(run, [f"{folder.name}/", f"{made}/"]) + THEN
    marks = run.marks_in(folder.name)
    if not marks and folder.key in run.tables:
        marks = [mark for mark in run.marks(folder.table.step)[:1] if mark in run.sizes]
    some = [*files, *marks] if len(files) <= EXAMPLES else [f"{folder.name}/", *marks]
    return delete_command(run, some) + THEN


def remake_tensors(run: Run, name: str) -> str:
    """As `remake`, of a file of codebooks, classifiers or weights."""
    root, _, rest = name.partition("/")
    folder = rest.rpartition("/")[0]
    scores = rest.replace("compression-", "fold-").removesuffix(".safetensors")
    others = {
        "codebooks": [f"{root}/{folder}/{DONE}"],
        "classifiers": [f"scores/{folder}/{DONE}", f"scores/{scores}.parquet"],
    }.get(root, [])
    return delete_command(run, [name, *(other for other in others if other in run.sizes)]) + THEN


def delete_command(run: Run, names: list[str]) -> str:
    """A shell command that removes files of the run, and folders where a name ends with /."""
    if run.store.is_local:
        return shlex.join(["rm", "-rf", *(run.store.path(name) for name in names)])
    if not run.store.root.startswith("s3://"):
        return f"delete {' '.join(shlex.quote(run.store.uri(name)) for name in names)}"
    commands = []
    for name in names:
        whole = ["--recursive"] if name.endswith("/") else []
        commands.append(shlex.join(["aws", "s3", "rm", *whole, run.store.uri(name)]))
    return "; ".join(commands)
