"""One-vs-rest SVMs: ENCODINGS to classifiers, SOLUTIONS and SCORES.

All classes and all folds on the same vectors are one problem. It is solved on the Gram matrix of the
training vectors where that fits on a node, else on the weights, with the vectors streamed. The driver
holds ids and labels, never vectors.
"""

import logging
from concurrent.futures import ThreadPoolExecutor

import ray
from ray.exceptions import RayTaskError

from pipelines import classify_gram, classify_primal
from pipelines.classify_results import Batch, Labels, batches, locate
from pipelines.config import Classify, RunError
from pipelines.layout import Job
from pipelines.ledger import Spent, merged
from pipelines.progress import ProgressLine

log = logging.getLogger(__name__)

GRAM_SHARE = 0.5
"""A Gram matrix may take so much of the largest node's object store."""


def classify(job: Job) -> Spent:
    """Trains all classifiers that are missing, and publishes their SCORES; returns where the time went.

    Raises:
        RunError: vectors or settings that no classifier can be trained with.
    """
    manifest = job.manifest.select(["video_id", "source", "labels", "group", "fold"])
    store_bytes = _object_store_bytes()
    on_gram: list[tuple[Batch, Labels]] = []
    on_weights: list[tuple[Batch, Labels]] = []
    for batch in batches(job):
        labels = locate(job.store, batch, manifest)
        form, reason = choose_form(job.config.classify, labels.num_training, store_bytes)
        log.info("classify %s: form %s, because %s", batch.name, form, reason)
        (on_gram if form == "gram" else on_weights).append((batch, labels))
    try:
        # The tasks of one batch wait for each other; those of another one have the CPUs meanwhile.
        parts = []
        if on_gram:
            line = ProgressLine("classify", sum(len(batch.todo) for batch, _ in on_gram))
            with line, ThreadPoolExecutor(_batches_at_once(on_gram, store_bytes)) as pool:
                list(pool.map(lambda work: classify_gram.solve(job, line, *work), on_gram))
            parts.append(line.spent)
        return merged([*parts, classify_primal.solve(job, on_weights)])
    except RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise RunError(f"classify: {error.cause}") from error
        raise


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


def _batches_at_once(work: list[tuple[Batch, Labels]], store_bytes: float) -> int:
    """As many as have matrices and float32 vectors in one object store, but at least one."""
    largest = max(
        (4 * labels.num_training**2 + 4 * len(labels.row) * labels.dim for _, labels in work),
        default=1,
    )
    return max(1, min(len(work), int(store_bytes / 2 // largest)))
