"""Reports for the tests of the page: an empty one, a full one, and one with hostile text
everywhere."""

from dataclasses import replace

import numpy as np

from pipelines.evaluate.best import Confusion, Curve
from pipelines.evaluate.results import Estimate
from pipelines.ledger.accounts import Account
from pipelines.report.papers.tables import DQ_TABLE_5, BesidePaper, Compared, Comparison
from pipelines.report.records import (
    AttentionStrip,
    ClassRow,
    Failure,
    Failures,
    Ledger,
    Near,
    Neighbours,
    NeighbourSearch,
    Report,
    Result,
    Sample,
    Solved,
    StepFact,
)
from tests.pipelines.report.page import HOSTILE

JPEG = b"\xff\xd8\xff\xe0 not much of a picture"
LEVELS = (3, 2, 1)


def strip(cells: np.ndarray | None = None, num_shown: int = 3, **changes) -> AttentionStrip:
    """Frames half a second apart; without cells, 5 frames whose second looks at the top right."""
    if cells is None:
        cells = np.ones((5, 14), np.float32)
        cells[1, 2] = 29.0
    shown = np.linspace(0, len(cells) - 1, num_shown).astype(int)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (num_shown, 60, 60, 3), dtype=np.uint8)
    fields = {
        "video_id": "v/1.mp4",
        "encoder": "fv_vae",
        "stream": "pool5_appearance",
        "times_s": tuple(0.5 * np.arange(len(cells))),
        "values": cells.sum(1),
        "frames": tuple(frames),
        "shown": tuple(shown.tolist()),
        "cells": cells,
        "levels": LEVELS,
    }
    return AttentionStrip(**fields | changes)


EMPTY = Report(
    title="Empty",
    recipe="fcvid",
    weights="none",
    num_videos=0,
    num_classes=0,
    ledger=Ledger(0, 0, 0, 0),
)
FULL = Report(
    title="A run",
    recipe="demo",
    weights="squeezenet1_0, random filters",
    num_videos=1234,
    num_classes=3,
    ledger=Ledger(planned=1300, ok=1296, partial=1, failed=3),
    chance=0.3333,
    top_k=2,
    warnings=("random filters: published weights could not be fetched",),
    notes=("Metrics are over the tested videos of all folds together.",),
    facts=(("Sampling", "uniform, 8 frames"),),
    steps=(
        StepFact(
            "describe",
            3725.0,
            Account("segments", 1300, 1297, 3),
            59600.0,
            3725.0,
            12.5,
            "waiting for decoding 97 % of the time",
        ),
        StepFact("fit", 12.345, Account("codebooks", 7, 7, 0), 197.52, 12.345, 0.0525),
        StepFact("evaluate", None, None),
    ),
    results=(
        Result(
            encoder="ave",
            stream="pool5",
            accuracy=Estimate(0.51249, 0.48, 0.5425),
            top_k=Estimate(0.75, 0.7, 0.8),
            map=Estimate(0.4, 0.35, 0.45),
            num_videos=1200,
            output_dim=512,
            fold_mean=0.52,
            fold_sd=0.082,
        ),
        Result(
            encoder="fv_vae",
            stream="pool5",
            accuracy=Estimate(0.6),
            top_k=Estimate(0.8125),
            map=Estimate(0.35),
            num_videos=1200,
            output_dim=131072,
        ),
        Result(
            encoder="ave+fv_vae",
            stream="pool5",
            accuracy=Estimate(0.853, 0.8, 0.9),
            top_k=Estimate(1.0),
            map=Estimate(),
            num_videos=1199,
            fusion="chosen 0.25 : 0.75",
        ),
    ),
    per_class=(
        ClassRow("walk", Estimate(0.25, 0.125, 0.5), 4),
        ClassRow("jump", Estimate(), 0),
        ClassRow("run", Estimate(0.875, 0.75, 1.0), 2),
    ),
    precision_recall=(
        Curve("Precision against recall", "mean", "recall", "precision", (0, 1), (0.9, 0.6)),
        Curve(
            "Precision against recall", "run, AP 0.875", "recall", "precision", (0, 1), (1, 0.75)
        ),
    ),
    confusion=Confusion(("walk", "jump", "run"), ((3, 0, 1), (0, 0, 0), (2, 0, 6))),
    curves=(
        Curve(
            "gmm_fv, pool5", "fold 0", "EM iteration", "log-likelihood", (0, 1, 2), (1.0, 2.0, 2.5)
        ),
        Curve(
            "gmm_fv, pool5", "fold 1", "EM iteration", "log-likelihood", (0, 1, 2), (1.5, 2.0, 2.25)
        ),
        Curve("fv_vae, pool5", "loss", "batch", "loss", (0, 1000), (7.0, float("nan"))),
    ),
    solved=(
        Solved(
            encoder="fv_vae",
            stream="pool5",
            form="gram",
            values_of_c=(1.0, 100.0),
            num_svms=30,
            num_trivial=2,
            num_unsolved=1,
            largest_gap=1.25e-6,
            rounds=17,
        ),
        Solved(
            encoder="ave",
            stream="pool5",
            form="primal",
            values_of_c=(0.5,),
            num_svms=3,
            num_trivial=3,
            num_unsolved=0,
            largest_gap=None,
            rounds=None,
        ),
    ),
    failures=Failures.of(
        [
            Failure("a.mp4", "decode", "failed", "TimeoutError", "no frame for 120 s"),
            Failure("b.mp4", "probe", "failed", "NoVideoStream", "no video stream"),
            Failure("c.mp4", "probe", "failed", "NoVideoStream", "no video stream"),
            Failure("d.mp4", "decode", "partial", "InvalidDataError", "2 of 8 frames"),
        ]
    ),
    samples=(
        Sample("v/2.mp4", ("run",), "jump", 1.25, (JPEG,)),
        Sample("v/3.mp4", ("run",), "walk", 1.0, missing="cannot be read any more (damaged)"),
        Sample("v/1.mp4", ("walk",), "walk", 2.5, (JPEG, JPEG)),
        Sample("v/4.mp4", ("walk",), "walk", 2.0, (JPEG,), attention=strip()),
        Sample(
            "v/5.mp4", ("walk",), "walk", 1.5, (JPEG,), attention=strip(stream="pool5_difference")
        ),
    ),
    neighbours=NeighbourSearch(
        "fv_vae",
        "pool5",
        1000,
        1234,
        (
            Neighbours(
                Near("v/1.mp4", ("walk",), 1.0, JPEG),
                (
                    Near("v/6.mp4", ("run",), 0.75, JPEG),
                    Near("v/7.mp4", ("walk", "run"), 0.5, None),
                ),
            ),
        ),
    ),
    currency="EUR",
    paper_tables=(
        BesidePaper(
            DQ_TABLE_5,
            (("ave on pool5", (Estimate(0.51249, 0.48, 0.5425), Estimate(0.75), Estimate())),),
            "60 own clips",
        ),
    ),
    paper=Comparison(
        (Compared("ave", "pool5", "AVE", 512, 0.51249), Compared("sum", "pool5", None, 77, None)),
        data="60 own clips",
        differences="other clips, other network.",
    ),
    provenance={"code revision": "312e83c"},
)


def hostile() -> Report:
    """Hostile text in every place that takes text."""
    return Report(
        title=HOSTILE,
        recipe=HOSTILE,
        weights=HOSTILE,
        num_videos=1,
        num_classes=2,
        ledger=Ledger(1, 0, 0, 1),
        notes=(HOSTILE,),
        facts=((HOSTILE, HOSTILE),),
        steps=(StepFact(HOSTILE, 1.0, Account(HOSTILE, 1, 1, 0), 2.0, 0.0, 3.0, HOSTILE, 4.0),),
        planned_for=HOSTILE,
        results=(replace(FULL.results[0], encoder=HOSTILE, stream=HOSTILE, fusion=HOSTILE),),
        per_class=(ClassRow(HOSTILE, Estimate(0.5), 1),),
        precision_recall=tuple(
            Curve("Precision", HOSTILE + n, "recall", "precision", (0, 1), (1, 0)) for n in "ab"
        ),
        confusion=Confusion((HOSTILE, "b"), ((1, 2), (0, 1))),
        curves=tuple(Curve(HOSTILE, HOSTILE + n, HOSTILE, HOSTILE, (0, 1), (0, 1)) for n in "ab"),
        solved=(replace(FULL.solved[0], encoder=HOSTILE, stream=HOSTILE, form=HOSTILE),),
        failures=Failures.of([Failure(HOSTILE, HOSTILE, "failed", HOSTILE, HOSTILE)]),
        samples=(
            Sample(HOSTILE, (HOSTILE,), HOSTILE, 0.0, (JPEG,)),
            Sample(HOSTILE, (HOSTILE,), "b", 0.0, missing=HOSTILE),
            Sample(
                HOSTILE,
                (HOSTILE,),
                "b",
                0.0,
                attention=strip(video_id=HOSTILE, encoder=HOSTILE, stream=HOSTILE),
            ),
        ),
        neighbours=NeighbourSearch(
            HOSTILE,
            HOSTILE,
            1,
            1,
            (
                Neighbours(
                    Near(HOSTILE, (HOSTILE,), 1.0, JPEG), (Near(HOSTILE, (HOSTILE,), 0.5, None),)
                ),
            ),
        ),
        currency=HOSTILE,
        paper_tables=(BesidePaper(DQ_TABLE_5, ((HOSTILE, (Estimate(),) * 3),), HOSTILE),),
        paper=Comparison((Compared(HOSTILE, HOSTILE, None, None, None),), HOSTILE, HOSTILE),
        provenance={HOSTILE: HOSTILE},
    )
