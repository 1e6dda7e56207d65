"""Results that classifiers are trained for, and the folds of each."""

import dataclasses
from dataclasses import dataclass

from encoders.settings import CompressSettings
from pipelines.run.combination import sums_kernels
from pipelines.run.job import Job

INNER_FOLDS = 3
"""Parts of the training groups, of which each is held out once where C is chosen."""


FINAL = -2
"""The fold that tests no video: the final classifiers train on all labelled ones."""

CHOICE_TOLERANCE = 1e-3
"""Relative gap at which classes are solved where C is chosen: only the order of scores counts."""


@dataclass(frozen=True)
class FoldSet:
    """Folds of an encoder and stream whose classifiers have the same vectors, and where results go.

    `todo` are those that lack a file. Finished folds stay among `folds`: a run that goes on solves
    the same ones together as one that was not killed, and so gets the same bits.

    A combination's has `parts` instead of `encodings`: the fold sets of the same folds that are
    fused. Where it `keeps` classifiers, they and compressions are among its files.
    """

    encoder: str
    stream: str
    folds: tuple[int, ...]
    todo: tuple[int, ...]
    encodings: str
    scores: str
    classifiers: str
    compress: CompressSettings
    footer: dict[str, str]
    fusions: str = ""
    parts: tuple["FoldSet", ...] = ()
    keeps: bool = False

    @property
    def name(self) -> str:
        return f"{self.encoder}-{self.stream}"

    def files(self, fold: int) -> list[str]:
        """Return the names of all files of a finished fold."""
        names = [self.scores_file(fold)]
        if not self.parts or sums_kernels(self.stream):
            names += [self.solutions_file(fold)]
            names += [self.classifier_file(fold)] if self.keeps else []
        if self.keeps and self.compress.kind != "none":
            names.append(self.compression_file(fold))
        if self.parts:
            names.append(self.fusions_file(fold))
        return names

    def classifier_file(self, fold: int) -> str:
        return f"{self.classifiers}/fold-{fold:05d}.safetensors"

    def compression_file(self, fold: int) -> str:
        return f"{self.classifiers}/compression-{fold:05d}.safetensors"

    def fusions_file(self, fold: int) -> str:
        return f"{self.fusions}/fold-{fold:05d}.parquet"

    def solutions_file(self, fold: int) -> str:
        return f"{self.classifiers}/solutions-{fold:05d}.parquet"

    def scores_file(self, fold: int) -> str:
        """Return the name of the fold's SCORES, which are published last."""
        return f"{self.scores}/fold-{fold:05d}.parquet"

    @property
    def vectors(self) -> tuple[str, tuple[int, ...], CompressSettings]:
        """The key of the vectors and their order: fold sets with equal keys have one Gram
        matrix."""
        return self.encodings, self.folds, self.compress


def fold_sets(job: Job) -> list[FoldSet]:
    """Return the unfinished fold sets of single results."""
    return _unfinished(
        job, [fold_set for pair in job.pairs() for fold_set in _fold_sets_of(job, *pair)]
    )


def _fold_sets_of(job: Job, encoder: str, stream: str) -> list[FoldSet]:
    """Return all folds of a result, grouped by their vectors.

    Folds share vectors where codebook and compression are the same for them.
    """
    shared: dict[tuple, list[int]] = {}
    compress = job.variants[encoder].compress
    for fold in job.folds:
        folder = job.encodings(job.codebook(encoder, stream, fold))
        fold_of_compression = fold if compress.kind != "none" else None
        shared.setdefault((folder, fold_of_compression), []).append(fold)
    return [
        FoldSet(
            encoder=encoder,
            stream=stream,
            folds=tuple(folds),
            todo=(),
            encodings=folder,
            scores=job.scores(encoder, stream),
            classifiers=job.classifiers(encoder, stream),
            compress=compress,
            footer=job.footer("classify"),
            keeps=job.config.classify.keep_folds,
        )
        for (folder, _), folds in shared.items()
    ]


def fused_fold_sets(job: Job) -> list[FoldSet]:
    """Return the unfinished fold sets of combinations.

    Folds are together where they are together in all parts.
    """
    combined, sets_of_pair = [], {pair: _fold_sets_of(job, *pair) for pair in job.pairs()}
    for combination in job.combinations:
        together: dict[tuple[int, ...], list[int]] = {}
        for fold in job.folds:
            indices = (
                next(
                    index
                    for index, fold_set in enumerate(sets_of_pair[part])
                    if fold in fold_set.folds
                )
                for part in combination.parts
            )
            together.setdefault(tuple(indices), []).append(fold)
        for indices, folds in together.items():
            parts = tuple(
                dataclasses.replace(sets_of_pair[part][index], folds=tuple(folds))
                for part, index in zip(combination.parts, indices, strict=True)
            )
            combined.append(
                FoldSet(
                    encoder=combination.encoder,
                    stream=combination.stream,
                    folds=tuple(folds),
                    todo=(),
                    encodings="",
                    scores=job.scores(*combination.pair),
                    classifiers=job.classifiers(*combination.pair),
                    compress=CompressSettings(),
                    footer=job.footer("classify"),
                    fusions=job.fusions(*combination.pair),
                    parts=parts,
                    keeps=job.config.classify.keep_folds,
                )
            )
    return _unfinished(job, combined)


def _unfinished(job: Job, all_fold_sets: list[FoldSet]) -> list[FoldSet]:
    unfinished = []
    for fold_set in all_fold_sets:
        folders = (fold_set.scores, fold_set.classifiers, fold_set.fusions)
        there = {name for folder in filter(None, folders) for name in job.store.sizes(folder)}
        todo = tuple(fold for fold in fold_set.folds if not there.issuperset(fold_set.files(fold)))
        if todo:
            unfinished.append(dataclasses.replace(fold_set, todo=todo))
    return unfinished
