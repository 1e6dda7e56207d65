"""The doctor's checks of files: the run's record, folders, Parquet files, footers and safetensors."""

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.doctor.scan import BY_NAME, EXAMPLES, Folder, Run
from pipelines.run.combination import sums_kernels
from pipelines.run.lock import LOCK, Holder
from pipelines.run.steps import STEPS
from pipelines.run.versions import FORMAT_VERSION
from pipelines.storage.retries import StorageError
from pipelines.storage.store import DONE, is_visible
from pipelines.storage.tables import NAMED_BY_KEYS

KEYS = tuple(
    f"video_fisher.{name}"
    for name in [
        "format",
        "step",
        "recipe",
        "config",
        "weights",
        "backbone",
        "decoder",
        "sampling",
        "code",
    ]
)
"""What `pipelines.run.job.Job.footer` writes."""

MADE_BY = ("video_fisher.weights", "video_fisher.backbone", "video_fisher.decoder")
"""Part of the digest that names the folder of DESCRIPTORS, and of all that is made from them.

Recipe, configuration digest and code revision are no part of any: a run that goes on after a change of other
settings leaves files of both in one folder.
"""


@dataclass(frozen=True)
class Problem:
    """What a check found in one place; `advice` where there is an exact command."""

    where: str
    found: str
    count: int = 1
    examples: tuple[str, ...] = ()
    advice: str = ""


# --- the run ----------------------------------------------------------------------------------


def record(run: Run) -> Iterator[Problem]:
    if run.record_error:
        yield Problem("run.json", run.record_error)


def lock(run: Run) -> Iterator[Problem]:
    if LOCK not in run.sizes:
        return
    try:
        holder = Holder.of(run.store.read(LOCK))
    except FileNotFoundError:
        return
    if holder is None:
        yield Problem(LOCK, "it is damaged")
        return
    age_s = max(0.0, time.time() - holder.heartbeat)
    yield Problem(
        LOCK,
        f"process {holder.pid} on {holder.host} ({holder.command}), last heartbeat {age_s:.0f} s ago"
        + (", its process has ended" if holder.is_gone else ""),
    )


def folders(run: Run) -> Iterator[Problem]:
    for key, name in run.tables.items():
        table = BY_NAME.get(key.partition("/")[0])
        if table and run.is_recorded(table.step) and not any(run.files_in(name)):
            found = f"{key} is empty or missing, but step {table.step} is recorded as done"
            yield Problem(name, found)


def marks(run: Run) -> Iterator[Problem]:
    for step in STEPS:
        if not run.is_recorded(step):
            continue
        wanted = run.marks(step) + (["report/index.html"] if step == "evaluate" else [])
        there = [m for m in wanted if m.startswith("report/") or any(run.files_in(_folder(m)))]
        missing = [mark for mark in there if mark not in run.sizes]
        if missing:
            found = f"step {step} is recorded as done, but its mark is missing"
            yield Problem(_folder(missing[0]), found, len(missing), tuple(missing[:EXAMPLES]))


def unfinished(run: Run) -> Iterator[Problem]:
    if run.record_error:
        return
    labelled = run.record.get("split", {}).get("num_folds", 0) > 0
    wanted = [step for step in STEPS if labelled or step not in ("classify", "evaluate")]
    left = [step for step in wanted if not run.is_done(step)]
    if left:
        yield Problem("run.json", f"not done for today's settings: {', '.join(left)}", len(left))


# --- Parquet files ----------------------------------------------------------------------------


def unreadable(run: Run) -> Iterator[Problem]:
    for folder in run.all_folders():
        bad = [f for f in folder.files if f.error and f.name not in run.unanswered]
        if bad:
            names = [file.name for file in bad]
            examples = tuple(f"{file.name}: {file.error}" for file in bad[:EXAMPLES])
            found = f"{len(bad)} of {len(folder.files)} files cannot be read"
            yield Problem(folder.name, found, len(bad), examples, remake(run, folder, names))


def schemas(run: Run) -> Iterator[Problem]:
    for folder in run.all_folders():
        bad = [file for file in folder.files if file.misfit]
        if bad:
            names = [file.name for file in bad]
            examples = tuple(f"{file.name}: {file.misfit}" for file in bad[:EXAMPLES])
            found = f"{len(bad)} of {len(folder.files)} files are not {folder.table.name}"
            yield Problem(folder.name, found, len(bad), examples, remake(run, folder, names))


def footers(run: Run) -> Iterator[Problem]:
    made_by = _made_by(run)
    for folder in run.all_folders():
        wanted = {
            "video_fisher.format": FORMAT_VERSION,
            "video_fisher.step": folder.table.step,
        }
        fixed = list(made_by)
        if folder.table.name in ("videos", "segments"):
            fixed = ["video_fisher.sampling"]
        wanted |= {name: made_by[name] for name in fixed if name in made_by}
        books = {file.footer.get("video_fisher.codebook") for file in folder.usable}
        if folder.table.name in ("encodings", "attention", "curves") and books:
            wanted["video_fisher.codebook"] = _codebook_of(run, folder) or min(map(str, books))
        found = [
            (file.name, text)
            for file in folder.files
            if not file.error
            for text in _contradictions(file.footer, wanted)
        ]
        if found:
            bad = list(dict.fromkeys(name for name, _ in found))
            examples = tuple(f"{name}: {text}" for name, text in found[:EXAMPLES])
            yield Problem(folder.name, "provenance is missing or another", len(bad), examples)


def _contradictions(footer: dict[str, str], wanted: dict[str, str]) -> Iterator[str]:
    missing = [name for name in (*KEYS, *wanted) if name not in footer]
    if missing:
        yield f"lacks {', '.join(dict.fromkeys(missing))}"
    for name, value in wanted.items():
        if footer.get(name, value) != value:
            yield f"{name}: expected {value!r}, got {footer[name]!r}"


def _made_by(run: Run) -> dict[str, str]:
    """Provenance that today's DESCRIPTORS and all that is made from them share."""
    folder = run.folder("descriptors")
    names = (*MADE_BY, "video_fisher.sampling")
    footers = (
        [{n: f.footer[n] for n in names if n in f.footer} for f in folder.usable] if folder else []
    )
    # The one that most files have: a single odd file is the odd one.
    return max(footers, key=footers.count) if footers else {}


def _codebook_of(run: Run, folder: Folder) -> str:
    """The digest of the codebook whose curves these are; of encodings it is known from footers alone."""
    return _digest_of(folder.name) if folder.table.name == "curves" else ""


def revisions(run: Run) -> Iterator[Problem]:
    for name, what in (("code", "code revisions"), ("config", "configurations")):
        made: dict[str, int] = {}
        for folder in run.all_folders():
            for file in folder.usable:
                value = file.footer.get(f"video_fisher.{name}")
                if value is not None:
                    made[value] = made.get(value, 0) + 1
        if len(made) > 1:
            examples = tuple(f"{value}: {count} files" for value, count in sorted(made.items()))
            yield Problem("footers", f"files of {len(made)} {what}", len(made), examples[:EXAMPLES])


def names(run: Run) -> Iterator[Problem]:
    for folder in run.all_folders():
        if folder.table not in NAMED_BY_KEYS:
            continue
        bad = [f for f in folder.usable if f.keys_name and not f.name.endswith(f"/{f.keys_name}")]
        if bad:
            examples = tuple(f"{file.name}: expected {file.keys_name}" for file in bad[:EXAMPLES])
            found = f"{len(bad)} of {len(folder.files)} names do not follow from the keys inside"
            yield Problem(folder.name, found, len(bad), examples)


def leftovers(run: Run) -> Iterator[Problem]:
    found = [name for name in run.sizes if _is_leftover(run, name)]
    if found:
        num_bytes = sum(run.sizes[name] for name in found)
        yield Problem(
            "",
            f"{len(found)} hidden, temporary or empty files, {num_bytes:,} bytes",
            len(found),
            tuple(found[:EXAMPLES]),
            delete_command(run, found) if len(found) <= EXAMPLES and LOCK not in run.sizes else "",
        )


def _is_leftover(run: Run, name: str) -> bool:
    base = name.rpartition("/")[2]
    hidden = base.startswith(".") or (base.startswith("_") and not base.startswith("_done"))
    empty = run.sizes[name] == 0 and not is_visible(name)
    return hidden or empty or name.startswith("train/")


def older(run: Run) -> Iterator[Problem]:
    """Codebooks and samples are told by what today's encodings say, so only where these are done."""
    scores = [n.removeprefix("scores/") for k, n in run.tables.items() if k.startswith("scores/")]
    current = {*run.tables.values()}
    current |= {f"{root}/{name}" for root in ("classifiers", "fusions") for name in scores}
    roots = {"videos": 1, "segments": 1, "descriptors": 1, "failures": 1, "metrics": 1}
    roots |= {"encodings": 2, "attention": 2, "scores": 2, "classifiers": 2, "fusions": 2}
    wanted = [key for key in run.tables if key.startswith("encodings/")]
    if run.is_done("encode") and len(run.folders("encodings")) == len(wanted):
        current |= {
            name
            for name in run.subfolders("codebooks", 2)
            if _digest_of(name) in run.digests_in_use
        }
        roots |= {"codebooks": 2}
    old = [
        f for root, depth in roots.items() for f in run.subfolders(root, depth) if f not in current
    ]
    if old and run.tables:
        files = [name for folder in old for name in run.files_in(folder)]
        num_bytes = sum(run.sizes[name] for name in files)
        found = f"{len(old)} folders of other settings or inputs, {num_bytes:,} bytes"
        yield Problem("", found, len(old), tuple(old[:EXAMPLES]))


# --- safetensors ------------------------------------------------------------------------------


def unreadable_tensors(run: Run) -> Iterator[Problem]:
    for item in run.tensors:
        if item.error and item.name not in run.unanswered:
            yield Problem(item.name, item.error, advice=remake_tensors(run, item.name))


def tensor_values(run: Run) -> Iterator[Problem]:
    for item in run.tensors:
        if item.not_finite:
            yield Problem(
                item.name,
                "tensors hold NaN or infinity",
                len(item.not_finite),
                item.not_finite[:EXAMPLES],
                remake_tensors(run, item.name),
            )


def codebook_digests(run: Run) -> Iterator[Problem]:
    for folder in run.subfolders("codebooks", 2):
        mark = f"{folder}/{DONE}"
        if mark not in run.sizes:
            continue
        try:
            said = json.loads(run.store.read(mark)).get("video_fisher.codebook")
        except StorageError as error:
            run.said(mark, error)
            continue
        except (OSError, ValueError, AttributeError) as error:
            yield Problem(mark, f"cannot be read ({type(error).__name__}: {error})")
            continue
        if said != _digest_of(folder):
            yield Problem(folder, f"its {DONE} is of codebook {said}")


def missing_tensors(run: Run) -> Iterator[Problem]:
    """Codebooks that today's encodings name, classifiers and SOLUTIONS of today's scores."""
    if run.is_recorded("encode"):
        there = {
            _digest_of(folder)
            for folder in run.subfolders("codebooks", 2)
            if f"{folder}/codebook.safetensors" in run.sizes
        }
        lost = sorted(run.digests_in_use - there)
        if lost:
            yield Problem(
                "codebooks",
                "encodings name codebooks that are gone",
                len(lost),
                tuple(lost[:EXAMPLES]),
            )
    fused = {f"scores/{'-'.join(one.pair)}": one.stream for one in run.combinations}
    for folder in run.folders("scores"):
        rule = fused.get(folder.key, "")
        bases = [
            f"classifiers/{file.name.removeprefix('scores/').removesuffix('.parquet')}"
            for file in folder.files
        ]
        wanted = []
        if not rule or sums_kernels(rule):
            wanted += [f"{base}.safetensors" for base in bases]
            wanted += [f"{base.replace('/fold-', '/solutions-')}.parquet" for base in bases]
        if rule:
            names = (base.replace("classifiers/", "fusions/", 1) for base in bases)
            wanted += [f"{name}.parquet" for name in names]
        lost = [name for name in wanted if name not in run.sizes]
        if lost:
            what = "scores without their classifier, or its rows of SOLUTIONS or FUSIONS"
            yield Problem(folder.name, what, len(lost), tuple(lost[:EXAMPLES]))


def unanswered(run: Run) -> Iterator[Problem]:
    """To be asked last: until then files are read."""
    if found := run.unanswered:
        texts = tuple(dict.fromkeys(found.values()))
        yield Problem("", f"{len(found)} files were not given", len(found), texts[:EXAMPLES])


def unfinished_folders(run: Run) -> Iterator[Problem]:
    found = [
        folder
        for root in ("codebooks", "samples")
        for folder in run.subfolders(root, 2)
        if f"{folder}/{DONE}" not in run.sizes
    ]
    if found:
        yield Problem(
            "", "codebooks or samples without their mark", len(found), tuple(found[:EXAMPLES])
        )


# --- commands ---------------------------------------------------------------------------------

THEN = "   # then run the job's command again"


def remake(run: Run, folder: Folder, files: list[str]) -> str:
    """The command after which the job makes these files again."""
    if folder.table.name == "attention":
        # Videos whose encodings are visible are not encoded again.
        made = run.tables.get(folder.key.replace("attention/", "encodings/", 1), folder.name)
        return delete_command(run, [f"{folder.name}/", f"{made}/"]) + THEN
    if folder.table.name in ("solutions", "fusions"):
        # Folds whose scores are visible are not trained again.
        made = "scores/" + folder.name.partition("/")[2]
        return delete_command(run, [f"{folder.name}/", f"{made}/"]) + THEN
    marks = [name for name in _marks_of(run, folder) if name in run.sizes]
    some = [*files, *marks] if len(files) <= EXAMPLES else [f"{folder.name}/", *marks]
    return delete_command(run, some) + THEN


def _marks_of(run: Run, folder: Folder) -> list[str]:
    if folder.table.name in ("curves", "samples", "scores"):
        return [f"{folder.name}/{DONE}"]
    if folder.table.name == "encodings":
        return [f"{folder.name}/_done-{run.videos_digest}.json"]
    return run.marks(folder.table.step)[:1]


def remake_tensors(run: Run, name: str) -> str:
    """As `remake`, of a file of codebooks, classifiers or weights."""
    root, _, rest = name.partition("/")
    others = {
        "codebooks": [f"{_folder(name)}/{DONE}"],
        "classifiers": [
            f"scores/{_folder(rest)}/{DONE}",
            f"scores/{rest.replace('compression-', 'fold-').removesuffix('.safetensors')}.parquet",
        ],
    }.get(root, [])
    return delete_command(run, [name, *(other for other in others if other in run.sizes)]) + THEN


def delete_command(run: Run, names: list[str]) -> str:
    """A shell command that removes files of the run, and folders where a name ends with /."""
    if run.store.is_local:
        return shlex.join(["rm", "-rf", *(run.store.path(name) for name in names)])
    if run.store.root.startswith("s3://"):
        commands = [
            [
                "aws",
                "s3",
                "rm",
                *(["--recursive"] if name.endswith("/") else []),
                run.store.uri(name),
            ]
            for name in names
        ]
        return "; ".join(shlex.join(command) for command in commands)
    return f"delete {' '.join(shlex.quote(run.store.uri(name)) for name in names)}"


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _digest_of(folder: str) -> str:
    return folder.rpartition("/")[2]
