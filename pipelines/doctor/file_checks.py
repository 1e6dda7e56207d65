"""The doctor's checks of files: the run's record, folders, marks, Parquet files and footers."""

import time
from collections import Counter
from collections.abc import Iterator

from pipelines.doctor.check import AGAIN, Check, Problem, check, delete_command, remake
from pipelines.doctor.scan import BY_NAME, CODEBOOK_KEY, EXAMPLES, PROVENANCE, UNNAMED, Folder, Run
from pipelines.run.lock import LOCK, Holder
from pipelines.run.steps import NEED_LABELS, STEPS
from pipelines.run.versions import FORMAT_VERSION
from pipelines.storage.store import is_visible
from pipelines.storage.tables import FRAMES, NAMED_BY_KEYS, SEARCH, TABLES

CHECKS: list[Check] = []

KEYS = ("format", "step", "recipe", "config", "weights", "backbone", "decoder", "sampling", "code")
"""What `pipelines.run.job.Job.footer` writes into every file."""

MADE_BY = ("weights", "backbone", "decoder", "sampling")
"""Part of the digest that names the folder of DESCRIPTORS, and of all that is made from them.

Recipe, configuration digest and code revision are no part of any: a run that goes on after a change
of other settings leaves files of both in one folder.
"""


# --- the run ----------------------------------------------------------------------------------


@check(CHECKS, "run.record", "error", "run.json can be read", f"{AGAIN}: it writes run.json anew")
def record(run: Run) -> Iterator[Problem]:
    if run.record_error:
        yield Problem("run.json", run.record_error)


@check(
    CHECKS,
    "run.folder",
    "error",
    "the folders of steps that are recorded as done are there",
    f"restore them, or {AGAIN}: it makes what is missing",
)
def folders(run: Run) -> Iterator[Problem]:
    for key, name in run.tables.items():
        table = BY_NAME.get(key.partition("/")[0])
        if table and run.is_recorded(table.step) and not run.files_in(name):
            found = f"{key} is empty or missing, but step {table.step} is recorded as done"
            yield Problem(name, found)


@check(
    CHECKS,
    "run.mark",
    "warning",
    "steps that are recorded as done have their marks and their report",
    f"{AGAIN}: it makes what is missing of the step, and its mark",
)
def marks(run: Run) -> Iterator[Problem]:
    for step in filter(run.is_recorded, STEPS):
        wanted = run.marks(step) + (["report/index.html"] if step == "evaluate" else [])
        there = [m for m in wanted if m.startswith("report/") or run.files_in(_folder(m))]
        missing = [mark for mark in there if mark not in run.sizes]
        if missing:
            found = f"step {step} is recorded as done, but its mark is missing"
            yield Problem.of(_folder(missing[0]), found, missing)


@check(
    CHECKS,
    "run.unfinished",
    "note",
    "every step is done for the settings of the last run",
    f"{AGAIN} to finish; the counts of a step that is not done are not checked",
)
def unfinished(run: Run) -> Iterator[Problem]:
    if run.record_error:
        return
    labelled = run.record.get("split", {}).get("num_folds", 0) > 0
    wanted = [step for step in STEPS if labelled or step not in NEED_LABELS]
    left = [step for step in wanted if not run.is_done(step)]
    if left:
        yield Problem("run.json", f"not done for today's settings: {', '.join(left)}", len(left))


@check(
    CHECKS,
    "run.lock",
    "note",
    "no run is under way",
    "where it is alive, ask again when it has ended: what it is writing may look incomplete. "
    f"Where it is dead, {AGAIN} with --take-over",
)
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
    ended = ", its process has ended" if holder.is_gone else ""
    yield Problem(
        LOCK,
        f"process {holder.pid} on {holder.host} ({holder.command}), "
        f"last heartbeat {age_s:.0f} s ago{ended}",
    )


# --- Parquet files ----------------------------------------------------------------------------


@check(CHECKS, "file.unreadable", "error", "every visible Parquet file can be read")
def unreadable(run: Run) -> Iterator[Problem]:
    for folder in run.all_folders():
        errors = {file.name: file.error for file in folder.files if file.error}
        bad = {name: text for name, text in errors.items() if name not in run.unanswered}
        yield from _bad_files(run, folder, bad, "cannot be read")


@check(CHECKS, "file.schema", "error", "columns, types and order are the declared ones")
def schemas(run: Run) -> Iterator[Problem]:
    for folder in run.all_folders():
        bad = {file.name: file.misfit for file in folder.files if file.misfit}
        yield from _bad_files(run, folder, bad, f"are not {folder.table.name}")


def _bad_files(run: Run, folder: Folder, bad: dict[str, str], what: str) -> Iterator[Problem]:
    if bad:
        texts = [f"{name}: {text}" for name, text in bad.items()]
        found = f"{len(bad)} of {len(folder.files)} files {what}"
        advice = remake(run, folder, [*bad])
        yield Problem.of(folder.name, found, texts, advice)


@check(
    CHECKS,
    "file.footer",
    "error",
    "footers say what made a file, and all files of a folder say the same of what names it",
)
def footers(run: Run) -> Iterator[Problem]:
    made_by = _made_by(run)
    for folder in run.all_folders():
        wanted = {"format": FORMAT_VERSION, "step": folder.table.step} | made_by
        if folder.table.step == "index":
            wanted = {name: wanted[name] for name in wanted if name not in MADE_BY[:-1]}
        wanted = {f"{PROVENANCE}{name}": value for name, value in wanted.items()}
        books = {str(file.footer.get(CODEBOOK_KEY)) for file in folder.usable}
        if books and folder.table.name in ("encodings", "attention"):
            wanted[CODEBOOK_KEY] = min(books)
        elif books and folder.table.name == "curves":
            wanted[CODEBOOK_KEY] = folder.name.rpartition("/")[2]
        found = {
            file.name: texts
            for file in folder.files
            if not file.error and (texts := _contradictions(file.footer, wanted))
        }
        if found:
            texts = [f"{name}: {text}" for name in found for text in found[name]]
            what = "provenance is missing or another"
            yield Problem(folder.name, what, len(found), tuple(texts[:EXAMPLES]))


def _contradictions(footer: dict[str, str], wanted: dict[str, str]) -> list[str]:
    names = dict.fromkeys([*(f"{PROVENANCE}{name}" for name in KEYS), *wanted])
    missing = [name for name in names if name not in footer]
    return [f"lacks {', '.join(missing)}"] * bool(missing) + [
        f"{name}: expected {value!r}, got {footer[name]!r}"
        for name, value in wanted.items()
        if footer.get(name, value) != value
    ]


def _made_by(run: Run) -> dict[str, str]:
    """Provenance of most files of DESCRIPTORS, which all that is made from them shares."""
    folder = run.folder("descriptors")
    kinds = Counter(
        tuple((name, f.footer.get(f"{PROVENANCE}{name}")) for name in MADE_BY)
        for f in (folder.usable if folder else [])
    )
    most = kinds.most_common(1)[0][0] if kinds else ()
    return {name: value for name, value in most if value is not None}


@check(
    CHECKS,
    "file.name",
    "warning",
    "the name of a file follows from the keys inside",
    "rows were copied, dropped or added after they were written, or another tool wrote the file; "
    "readers do not mind, but a task that is tried again would write its rows a second time",
)
def names(run: Run) -> Iterator[Problem]:
    for folder in run.all_folders():
        if folder.table in NAMED_BY_KEYS:
            usable = [file for file in folder.usable if file.keys_name]
            bad = [file for file in usable if not file.name.endswith(f"/{file.keys_name}")]
            texts = [f"{file.name}: expected {file.keys_name}" for file in bad]
            found = f"{len(bad)} of {len(folder.files)} names do not follow from the keys inside"
            if bad:
                yield Problem.of(folder.name, found, texts)


@check(
    CHECKS,
    "file.revisions",
    "note",
    "one code revision and one configuration made all files",
    "nothing, where the run went on after a change on purpose; else delete the older files",
)
def revisions(run: Run) -> Iterator[Problem]:
    every = [file.footer for folder in run.all_folders() for file in folder.usable]
    for name, what in (("code", "code revisions"), ("config", "configurations")):
        made = Counter(footer.get(f"{PROVENANCE}{name}") for footer in every)
        del made[None]
        if len(made) > 1:
            texts = [f"{value}: {count} files" for value, count in sorted(made.items())]
            yield Problem.of("footers", f"files of {len(made)} {what}", texts)


@check(
    CHECKS,
    "file.leftover",
    "note",
    "no hidden, temporary or empty files",
    "a killed run leaves them and readers pass over them: delete them when no run is under way",
)
def leftovers(run: Run) -> Iterator[Problem]:
    names = [name for name in run.sizes if _is_leftover(run, name)]
    if names:
        num_bytes = sum(run.sizes[name] for name in names)
        found = f"{len(names)} hidden, temporary or empty files, {num_bytes:,} bytes"
        is_safe = len(names) <= EXAMPLES and LOCK not in run.sizes
        yield Problem.of("", found, names, delete_command(run, names) if is_safe else "")


def _is_leftover(run: Run, name: str) -> bool:
    base = name.rpartition("/")[2]
    hidden = base.startswith(".") or (base.startswith("_") and not base.startswith("_done"))
    empty = run.sizes[name] == 0 and not is_visible(name)
    return hidden or empty or name.startswith("train/")


@check(
    CHECKS,
    "folder.older",
    "note",
    "no folders of older settings or inputs",
    "kept, so that going back to a setting is free; delete them to save room",
)
def older(run: Run) -> Iterator[Problem]:
    """Codebooks are told by what today's encodings say, so only where these are done."""
    current = {*run.tables.values()}
    named = [table for table in TABLES if table not in (*UNNAMED, SEARCH, FRAMES)]
    roots = {table.files.partition("/")[0]: table.files.count("/") - 1 for table in named}
    if run.is_done("encode") and len(run.folders("encodings")) == len(run.expected("encodings")):
        books = run.subfolders("codebooks", 2)
        current |= {name for name in books if name.rpartition("/")[2] in run.digests_in_use}
        roots["codebooks"] = 2
    every = [folder for root, depth in roots.items() for folder in run.subfolders(root, depth)]
    old = [folder for folder in every if folder not in current]
    if old and run.tables:
        num_bytes = sum(run.sizes[name] for folder in old for name in run.files_in(folder))
        found = f"{len(old)} folders of other settings or inputs, {num_bytes:,} bytes"
        yield Problem.of("", found, old)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
