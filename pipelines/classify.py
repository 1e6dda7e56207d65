"""One-vs-rest SVMs: ENCODINGS to classifiers, SOLUTIONS and SCORES.

All classes and all folds on the same vectors are one problem. It is solved on the Gram matrix of the
training vectors where that fits on a node, else on the weights, with the vectors streamed. The driver
holds where vectors are; ids and labels are in the object store.
"""

import logging
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import ray

from pipelines import classify_fusion, classify_gram, classify_primal
from pipelines.classify_gram import Prepared
from pipelines.classify_results import (
    Batch,
    Labels,
    Places,
    Work,
    batches,
    fused_batches,
    locate,
)
from pipelines.combination import chooses
from pipelines.errors import RunError
from pipelines.layout import Job
from pipelines.ledger import Account, Spent, merged, settle
from pipelines.progress import ProgressLine
from pipelines.run_settings import Classify
from pipelines.shared import task_errors
from pipelines.storage import Store

log = logging.getLogger(__name__)

GRAM_SHARE = 0.5
"""A Gram matrix may take so much of the largest node's object store."""

KEPT_SHARE = 0.5
"""Matrices and vectors of single results are kept for combinations while they take so much of it together."""


def classify(job: Job) -> Spent:
    """Trains all classifiers that are missing, and publishes their SCORES; returns where the time went.

    Raises:
        RunError: vectors or settings that no classifier can be trained with, such as a rule of classify.fusions that
            needs a larger Gram matrix than there can be. The default rule is left out then.
    """
    manifest = ray.put(job.manifest.select(["video_id", "source", "labels", "group", "fold"]))
    store_bytes = _object_store_bytes()
    on_gram: list[Work] = []
    on_weights: list[Work] = []
    with task_errors("classify"):
        single, fused = _located(job, manifest)
        fused = _possible(job, fused, store_bytes)
        for work in (*single, *fused):
            form, reason = choose_form(job.config.classify, work.places.num_training, store_bytes)
            log.info("classify %s: form %s, because %s", work.batch.name, form, reason)
            (on_gram if form == "gram" else on_weights).append(work)
        parts = []
        if on_gram:
            line = ProgressLine("classify", sum(len(work.batch.todo) for work in on_gram))
            with line:
                _solve_on_gram(job, line, on_gram, store_bytes)
            parts.append(line.spent)
        return merged([*parts, classify_primal.solve(job, on_weights)])


def _located(job: Job, manifest: ray.ObjectRef) -> tuple[list[Work], list[Work]]:
    """What is to be done of single results, and of combinations."""
    todo, fused = batches(job), fused_batches(job)
    every = [*todo, *(part for batch in fused for part in batch.parts)]
    found = {}
    for batch in every:
        if batch.vectors not in found:
            found[batch.vectors] = _locate.remote(job.store, batch, manifest)

    def work_of(batch: Batch) -> Work:
        labels, places = found[batch.vectors]
        return Work(batch, labels, ray.get(places))

    single = [work_of(batch) for batch in todo]
    combined = []
    for batch in fused:
        parts = tuple(work_of(part) for part in batch.parts)
        combined.append(Work(batch, parts[0].labels, parts[0].places, parts))
    return single, combined


def _possible(job: Job, fused: list[Work], store_bytes: float) -> list[Work]:
    """The combinations; without those of the rule `auto`, for this run and its later steps, where there is no matrix."""
    for work in fused:
        form, reason = choose_form(job.config.classify, work.places.num_training, store_bytes)
        if form == "gram" or not chooses(work.batch.stream):
            continue
        if job.config.classify.fusions != ("auto",):
            raise RunError(
                f"classify.fusions: expected rules that need no Gram matrix where it is too large ({reason}), got "
                f"{work.batch.stream}; set classify.fusions=kernel_sum, or auto, which fuses nothing here"
            )
        job.leave_out(reason)
        log.warning("classify: left out: %s", job.left_out)
        return []
    return fused


def _solve_on_gram(job: Job, line: ProgressLine, works: list[Work], store_bytes: float) -> None:
    """The single results, several at once; then the combinations, with the same matrices where they can be kept."""
    single = [work for work in works if not work.parts]
    fused = [work for work in works if work.parts]
    wanted = {part.batch.vectors: part for work in fused for part in work.parts}
    keeps = sum(_num_bytes(part) for part in wanted.values()) <= KEPT_SHARE * store_bytes
    kept: dict[tuple, Prepared] = {}

    def keep(work: Work, prepared: Prepared) -> Prepared:
        if keeps and work.batch.vectors in wanted:
            kept[work.batch.vectors] = prepared
        return prepared

    def prepared(part: Work) -> Prepared:
        found = kept.get(part.batch.vectors)
        return found or keep(part, classify_gram.prepare(job, line.meter, part))

    # The tasks of one batch wait for each other; those of another one have the CPUs meanwhile.
    with ThreadPoolExecutor(_batches_at_once(single, store_bytes)) as pool:
        list(pool.map(lambda work: keep(work, classify_gram.solve(job, line, work)), single))
    scored: classify_fusion.Scored = {}
    for work in fused:
        classify_fusion.solve(job, line, work, prepared, scored)


@ray.remote(num_returns=2, max_retries=3)
def _locate(store: Store, batch: Batch, manifest: pa.Table) -> tuple[Labels, Places]:
    labels = locate(store, batch, manifest)
    return labels, labels.places


def settle_scores(job: Job, tested: frozenset[str], without_vector: frozenset[str]) -> Account:
    """The account of all SCORES, which tasks count through.

    Raises:
        RunError: a tested video that has a vector has no scores.
    """
    names = ray.put((tested, without_vector))
    with task_errors("classify"):
        tasks = [
            _settle.remote(job.store, " ".join(pair), job.scores(*pair), names)
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
    """gram or primal, and why.

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


def _batches_at_once(work: list[Work], store_bytes: float) -> int:
    """As many as have matrices and float32 vectors in one object store, but at least one."""
    largest = max((_num_bytes(one) for one in work), default=1)
    return max(1, min(len(work), int(store_bytes / 2 // max(1, largest))))


def _num_bytes(work: Work) -> int:
    places = work.places
    return 4 * places.num_training**2 + 4 * len(places.row) * places.dim
