"""One-vs-rest SVMs: ENCODINGS to classifiers, SOLUTIONS and SCORES.

All classes and all folds on the same vectors are one problem. It is solved on the Gram matrix of
the training vectors where that fits on a node, else on the weights, with the vectors streamed. The
driver holds where vectors are; ids and labels are in the object store.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipelines.classify import fusion, gram, primal
from pipelines.classify.examples import Examples, Places, Work, locate
from pipelines.classify.fold_sets import FoldSet, fold_sets, fused_fold_sets
from pipelines.classify.gram import Prepared
from pipelines.cluster.broadcast import task_errors
from pipelines.cluster.progress import ProgressLine
from pipelines.errors import RunError
from pipelines.index import current_rows
from pipelines.ledger.accounts import Account, Spent, merged, settle
from pipelines.networks.clips import pictured
from pipelines.run.combination import chooses
from pipelines.run.job import Job
from pipelines.run.makers import MAKERS
from pipelines.settings.sections import Classify
from pipelines.storage.columns import names
from pipelines.storage.store import Store

log = logging.getLogger(__name__)

GRAM_SHARE = 0.5
"""A Gram matrix may take so much of the largest node's object store."""

KEPT_SHARE = 0.5
"""Matrices and vectors of single results are kept for combinations if all together take at most so
much of it."""


def classify(job: Job) -> tuple[Account, Spent]:
    """Publish SCORES of every result, and account for the videos that must have them."""
    spent = merged([maker.function()(job) for maker in MAKERS.values()])
    tested = names(job.manifest.filter(pc.greater_equal(job.manifest["fold"], 0)))
    without = {"vectors": tested - names(current_rows.places(job))}
    without["pictures"] = without["vectors"] if job.variants else frozenset()
    if job.networks_see_pictures:
        without["pictures"] |= tested - pictured(job).keys()
    return settle_scores(job, tested, without), spent


def train(job: Job) -> Spent:
    """Train all classifiers that are missing and publish their SCORES; return the time spent.

    Raises:
        RunError: see `solve`.
    """
    return solve(job, fold_sets(job), fused_fold_sets(job), "classify")


def solve(
    job: Job, unfinished: Sequence[FoldSet], fused_sets: Sequence[FoldSet], step: str
) -> Spent:
    """Train the classifiers of fold sets, single ones and combinations; return the time spent.

    Raises:
        RunError: vectors or settings that no classifier can be trained with, such as a rule of
            classify.fusions that needs a larger Gram matrix than there can be. The default rule is
            left out then.
    """
    columns = ["video_id", "source", "labels", "group", "fold", "ignored"]
    manifest = job.manifest.select([n for n in columns if n in job.manifest.column_names])
    manifest = ray.put(manifest)
    store_bytes = _object_store_bytes()
    on_gram: list[Work] = []
    on_weights: list[Work] = []
    with task_errors(step):
        single, fused = _located(job, unfinished, fused_sets, manifest)
        fused = _possible(job, fused, store_bytes)
        for work in (*single, *fused):
            form, reason = choose_form(job.config.classify, work.places.num_training, store_bytes)
            log.debug("%s %s: form %s, because %s", step, work.fold_set.name, form, reason)
            (on_gram if form == "gram" else on_weights).append(work)
        parts = []
        if on_gram:
            line = ProgressLine(step, sum(len(work.fold_set.todo) for work in on_gram))
            with line:
                _solve_on_gram(job, line, on_gram, store_bytes)
            parts.append(line.spent)
        return merged([*parts, primal.solve(job, on_weights, step)])


def _located(
    job: Job, unfinished: Sequence[FoldSet], fused: Sequence[FoldSet], manifest: ray.ObjectRef
) -> tuple[list[Work], list[Work]]:
    """Return the work of single results, and of combinations."""
    all_fold_sets = [*unfinished, *(part for fold_set in fused for part in fold_set.parts)]
    located = {}
    for fold_set in all_fold_sets:
        if fold_set.vectors not in located:
            located[fold_set.vectors] = _locate.remote(
                job.store, fold_set, manifest, job.config.run.seed
            )

    def work_of(fold_set: FoldSet) -> Work:
        examples, places = located[fold_set.vectors]
        return Work(fold_set, examples, ray.get(places))

    single = [work_of(fold_set) for fold_set in unfinished]
    combined = []
    for fold_set in fused:
        parts = tuple(work_of(part) for part in fold_set.parts)
        combined.append(Work(fold_set, parts[0].examples, parts[0].places, parts))
    return single, combined


def _possible(job: Job, fused: list[Work], store_bytes: float) -> list[Work]:
    """Return the combinations that can be solved.

    Where there is no matrix, those of the rule `auto` are left out, in this run and its later
    steps.
    """
    for work in fused:
        form, reason = choose_form(job.config.classify, work.places.num_training, store_bytes)
        if form == "gram" or not chooses(work.fold_set.stream):
            continue
        if job.config.classify.fusions != ("auto",):
            raise RunError(
                "classify.fusions: expected rules that need no Gram matrix where it is too "
                f"large ({reason}), got {work.fold_set.stream}; set "
                "classify.fusions=kernel_sum, or auto, which fuses nothing here"
            )
        job.leave_out(reason)
        log.warning("classify: left out: %s", job.left_out)
        return []
    return fused


def _solve_on_gram(job: Job, line: ProgressLine, works: list[Work], store_bytes: float) -> None:
    """Solve the single results, several at once; then the combinations, with the same matrices
    where these can be kept."""
    single = [work for work in works if not work.parts]
    fused = [work for work in works if work.parts]
    fused_parts = {part.fold_set.vectors: part for work in fused for part in work.parts}
    keeps = sum(_num_bytes(part) for part in fused_parts.values()) <= KEPT_SHARE * store_bytes
    kept: dict[tuple, Prepared] = {}

    def keep(work: Work, prepared: Prepared) -> Prepared:
        if keeps and work.fold_set.vectors in fused_parts:
            kept[work.fold_set.vectors] = prepared
        return prepared

    def prepared(part: Work) -> Prepared:
        kept_part = kept.get(part.fold_set.vectors)
        return kept_part or keep(part, gram.prepare(job, line.meter, part))

    # Tasks of one fold set wait for each other; tasks of others use the CPUs meanwhile.
    with ThreadPoolExecutor(_fold_sets_at_once(single, store_bytes)) as pool:
        list(pool.map(lambda work: keep(work, gram.solve(job, line, work)), single))
    scored: fusion.Scored = {}
    for work in fused:
        fusion.solve(job, line, work, prepared, scored)


@ray.remote(num_returns=2, max_retries=3)
def _locate(
    store: Store, fold_set: FoldSet, manifest: pa.Table, seed: int
) -> tuple[Examples, Places]:
    examples = locate(store, fold_set, manifest, seed)
    return examples, examples.places


def settle_scores(job: Job, tested: frozenset[str], without: dict[str, frozenset[str]]) -> Account:
    """Return the account of all SCORES, counted by tasks.

    Args:
        without: tested videos that have no scores, for lack of vectors or of pictures.

    Raises:
        RunError: another tested video has no scores.
    """
    names = {what: ray.put((tested, lacking)) for what, lacking in without.items()}
    seen = {(n.encoder, n.stream) for n in job.networks if not n.reads_maps}
    with task_errors("classify"):
        tasks = [
            _settle.remote(
                job.store,
                " ".join(pair),
                job.scores(*pair),
                names["pictures" if pair in seen else "vectors"],
            )
            for pair in job.scored()
        ]
        accounts = ray.get(tasks)
    planned, failed = (sum(getattr(a, name) for a in accounts) for name in ("planned", "failed"))
    return Account("scored videos", planned, planned - failed, failed)


@ray.remote(max_retries=3)
def _settle(
    store: Store, result: str, folder: str, names: tuple[frozenset[str], frozenset[str]]
) -> Account:
    tested, without_vector = names
    scored = store.distinct(folder, "video_id")
    return settle(f"classify {result}", "videos", tested, scored, without_vector)


def choose_form(settings: Classify, num_training: int, store_bytes: float) -> tuple[str, str]:
    """Return the form, gram or primal, and the reason.

    Args:
        store_bytes: the largest object store of a node.
    """
    needed, room = 4 * num_training**2, GRAM_SHARE * store_bytes
    size = f"the Gram matrix of {num_training:,} training vectors takes {needed / 2**30:.3g} GiB"
    room_words = f"{room / 2**30:.3g} GiB, half of the largest node's object store"
    if settings.form != "auto":
        return settings.form, f"classify.form says so ({size})"
    if needed <= room:
        return "gram", f"{size}, at most {room_words}"
    return "primal", f"{size}, more than {room_words}"


def _object_store_bytes() -> float:
    return max(node["Resources"].get("object_store_memory", 0) for node in ray.nodes())


def _fold_sets_at_once(work: list[Work], store_bytes: float) -> int:
    """Return the number of fold sets solved at the same time, at least 1: their matrices and
    float32 vectors have to fit in half an object store."""
    largest = max((_num_bytes(item) for item in work), default=1)
    return max(1, min(len(work), int(store_bytes / 2 // max(1, largest))))


def _num_bytes(work: Work) -> int:
    places = work.places
    return 4 * places.num_training**2 + 4 * len(places.row) * places.dim
