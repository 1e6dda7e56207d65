"""Final: classifiers of all labelled videos, for videos that are to come.

They are the fold that tests nobody: trained as the others are, on vectors of the run's codebooks. A
codebook that uses labels, of which there is one a fold, is that of the first fold. Weights of a
fusion are the means of those of the folds. Networks are not trained again: new videos get the mean
of their scores over all folds. Probabilities are calibrated on SCORES, which no
classifier has seen.
"""

import functools
from dataclasses import dataclass

import numpy as np
import ray

from encoders.scores.calibration import fit_sigmoid
from encoders.settings import CompressSettings
from pipelines.classify import step as classify_step
from pipelines.classify.fold_sets import FINAL, FoldSet
from pipelines.cluster.broadcast import task_errors
from pipelines.evaluate import results
from pipelines.evaluate.results import Wanted
from pipelines.evaluate.step import MEASURE_BYTES, matrix_memory, read_scores, with_weights
from pipelines.ledger.accounts import Account, Spent
from pipelines.models.kept import best_first, kept
from pipelines.run.combination import sums_kernels
from pipelines.run.folders import folder_name
from pipelines.run.job import Job
from pipelines.storage.store import Store
from pipelines.storage.tables import MODELS


class FinalSet(FoldSet):
    """The fold that tests nobody, of one result; its files are in the folder of MODELS."""

    def files(self, fold: int) -> list[str]:
        """Return the names of all files; of a combination those of its parts' compressions too."""
        return [
            self.classifier_file(fold),
            self.solutions_file(fold),
            *(
                part.compression_file(fold)
                for part in self.parts or (self,)
                if part.compress.kind != "none"
            ),
        ]

    def classifier_file(self, fold: int) -> str:
        return f"{self._start}.safetensors"

    def compression_file(self, fold: int) -> str:
        return f"{self._start}.compression.safetensors"

    def solutions_file(self, fold: int) -> str:
        """Return the name of SOLUTIONS, which are beside MODELS and no part of that table."""
        return f"{self.classifiers}/solutions/{folder_name(self.encoder, self.stream)}.parquet"

    @property
    def _start(self) -> str:
        return f"{self.classifiers}/{folder_name(self.encoder, self.stream)}"


def train(job: Job) -> tuple[Account, Spent]:
    """Publish final classifiers of the results that are kept, and MODELS."""
    chosen = kept(job)
    every = [_final_set(job, result) for result in _needed(job, chosen)]
    todo = [each for each in every if not all(map(job.store.exists, each.files(FINAL)))]
    spent = Spent(0.0, ())
    if todo:
        single = [each for each in todo if not each.parts]
        spent = classify_step.solve(job, single, [e for e in todo if e.parts], "final")
    folds = job.folds if job.config.classify.keep_folds else []
    by_folds = best_first(job) if folds else []
    asked = {result: [FINAL] for result in chosen}
    for result in by_folds:
        asked[result] = [*asked.get(result, []), *folds]
    memory = matrix_memory(job, MEASURE_BYTES)
    with task_errors("final"):
        tasks = [
            _rows.options(**memory).remote(
                job.store, result, _sources(job, result), of, job.failures
            )
            for result, of in asked.items()
        ]
        rows = [row for rows in ray.get(tasks) for row in rows]
    table = MODELS.build(rows)
    job.store.publish_table(f"{job.models}/models.parquet", table, job.footer("final"))
    return Account("results", len(chosen), len(chosen), 0), spent


def _needed(job: Job, chosen: list[Wanted]) -> list[Wanted]:
    """Return the results that have classifiers of their own: sums of kernels, and single ones."""
    needed: dict[Wanted, None] = {}
    encoded = set(job.pairs())
    for result in chosen:
        own = [result] if sums_kernels(result.fusion) else [Wanted((p,)) for p in result.parts]
        # Networks are kept as they are.
        needed |= dict.fromkeys(part for part in own if encoded.issuperset(part.parts))
    return list(needed)


def _final_set(job: Job, result: Wanted) -> FinalSet:
    singles = tuple(_single(job, *part) for part in result.parts)
    if not result.pair:
        return singles[0]
    return _set(job, result.pair, "", CompressSettings(), singles)


def _single(job: Job, encoder: str, stream: str) -> FinalSet:
    encodings = job.encodings(job.codebook(encoder, stream, job.folds[0]))
    return _set(job, (encoder, stream), encodings, job.variants[encoder].compress)


def _set(
    job: Job,
    pair: tuple[str, str],
    encodings: str,
    compress: CompressSettings,
    parts: tuple[FoldSet, ...] = (),
) -> FinalSet:
    return FinalSet(
        encoder=pair[0],
        stream=pair[1],
        folds=(FINAL,),
        todo=(FINAL,),
        encodings=encodings,
        scores="",
        classifiers=job.models,
        compress=compress,
        footer=job.footer("final"),
        parts=parts,
        keeps=True,
    )


@dataclass(frozen=True)
class Source:
    """SCORES of a result, and FUSIONS where it has them ("": none)."""

    pair: tuple[str, str]
    scores: str
    fusions: str


def _sources(job: Job, result: Wanted) -> list[Source]:
    weighted = {each.pair for each in job.fused if "fusions" in each.tables}
    return [
        Source(pair, job.scores(*pair), job.fusions(*pair) if pair in weighted else "")
        for pair in result.sources
    ]


@ray.remote(max_retries=3)
def _rows(
    store: Store, result: Wanted, sources: list[Source], folds: list[int], failures: str
) -> list[dict]:
    """Return the rows of MODELS of a result, one for each of the folds."""
    matrices = []
    for source in sources:
        matrix = read_scores(store, *source.pair, source.scores, failures)
        if source.fusions:
            matrix = with_weights(matrix, result.fusion, source.fusions, store)
        matrices.append(matrix)
    made = result.make([functools.reduce(results.added, matrices)] if result.is_total else matrices)
    if made is None:
        raise RuntimeError(f"final: expected a result that METRICS have, got none for {result}")
    sigmoid = fit_sigmoid(made.scores, made.targets)
    weights = made.weights or dict.fromkeys(set(made.folds.tolist()), (1.0,))
    mean = tuple(np.mean(list(weights.values()), 0).tolist())
    encoder, stream, fusion = result.key
    return [
        {
            "encoder": encoder,
            "stream": stream,
            "fusion": fusion,
            "fold": fold,
            "part_encoders": [part for part, _ in result.parts],
            "part_streams": [part for _, part in result.parts],
            "weights": list(weights.get(fold, mean)),
            "slope": sigmoid.slope,
            "intercept": sigmoid.intercept,
            "num_calibration": len(made.video_ids),
        }
        for fold in folds
    ]
