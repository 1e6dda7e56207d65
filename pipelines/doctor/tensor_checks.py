"""The doctor's checks of codebooks, classifiers and weights."""

import json
from collections.abc import Iterator

from pipelines.doctor.check import AGAIN, Check, Problem, check, remake_tensors
from pipelines.doctor.scan import CODEBOOK_KEY, Run
from pipelines.storage.retries import StorageError
from pipelines.storage.store import DONE

CHECKS: list[Check] = []

BESIDE_SCORES = {
    "solutions": ("fold-{fold}.safetensors", "solutions-{fold}.parquet"),
    "fusions": ("fold-{fold}.parquet",),
}
"""{table: what else is published of each fold of a result with SCORES in fold-{fold}.parquet}.

Results of which run.json does not name the table have none of it."""


@check(
    CHECKS,
    "tensors.unreadable",
    "error",
    "headers of safetensors files can be read, and the files are whole",
)
def unreadable_tensors(run: Run) -> Iterator[Problem]:
    for item in run.tensors:
        if item.error and item.name not in run.unanswered:
            yield Problem(item.name, item.error, advice=remake_tensors(run, item.name))


@check(
    CHECKS,
    "tensors.not_finite",
    "error",
    "codebooks, classifiers and weights hold no NaN or infinity",
)
def tensor_values(run: Run) -> Iterator[Problem]:
    for item in run.tensors:
        if item.not_finite:
            found, advice = "tensors hold NaN or infinity", remake_tensors(run, item.name)
            yield Problem.of(item.name, found, item.not_finite, advice)


@check(
    CHECKS,
    "tensors.missing",
    "error",
    "codebooks of today's encodings are there, and what was published with today's scores",
    f"restore them, or delete the marks of the steps fit and classify and {AGAIN}",
)
def missing_tensors(run: Run) -> Iterator[Problem]:
    if run.is_recorded("encode"):
        books = run.subfolders("codebooks", 2)
        there = {_base(book) for book in books if f"{book}/codebook.safetensors" in run.sizes}
        if lost := sorted(run.digests_in_use - there):
            yield Problem.of("codebooks", "encodings name codebooks that are gone", lost)
    for folder in run.folders("scores"):
        name = folder.key.partition("/")[2]
        folds = [_base(f.name).removesuffix(".parquet").removeprefix("fold-") for f in folder.files]
        wanted = [
            f"{run.tables[f'{table}/{name}']}/{pattern.format(fold=fold)}"
            for table, patterns in BESIDE_SCORES.items()
            if f"{table}/{name}" in run.tables
            for pattern in patterns
            for fold in folds
        ]
        if lost := [name for name in wanted if name not in run.sizes]:
            what = "scores without their classifier, or its rows of SOLUTIONS or FUSIONS"
            yield Problem.of(folder.name, what, lost)


@check(CHECKS, "codebook.digest", "error", "a codebook is the one that its folder names")
def codebook_digests(run: Run) -> Iterator[Problem]:
    for folder in run.subfolders("codebooks", 2):
        mark = f"{folder}/{DONE}"
        if mark not in run.sizes:
            continue
        try:
            said = json.loads(run.store.read(mark)).get(CODEBOOK_KEY)
        except StorageError as error:
            run.said(mark, error)
            continue
        except (OSError, ValueError, AttributeError) as error:
            yield Problem(mark, f"cannot be read ({type(error).__name__}: {error})")
            continue
        if said != _base(folder):
            yield Problem(folder, f"its {DONE} is of codebook {said}")


@check(
    CHECKS,
    "folder.unfinished",
    "note",
    "codebooks and samples are finished",
    f"{AGAIN}: it makes them anew",
)
def unfinished_folders(run: Run) -> Iterator[Problem]:
    every = [folder for root in ("codebooks", "samples") for folder in run.subfolders(root, 2)]
    if found := [folder for folder in every if f"{folder}/{DONE}" not in run.sizes]:
        yield Problem.of("", "codebooks or samples without their mark", found)


def _base(name: str) -> str:
    return name.rpartition("/")[2]
