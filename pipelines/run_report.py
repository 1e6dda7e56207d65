"""What the report of a run says, collected from its tables; `pipelines.report` renders it."""

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from PIL import Image

from encoders.metrics import confusion_matrix
from pipelines.comparison import comparison
from pipelines.config import Config
from pipelines.decode import decode_segment
from pipelines.evaluate import Evaluated, results_table
from pipelines.isolation import IsolatedDecoder
from pipelines.layout import STEPS, Job
from pipelines.report import render
from pipelines.report_data import (
    AttentionStrip,
    ClassRow,
    Confusion,
    Curve,
    Failure,
    Ledger,
    Report,
    Result,
    Sample,
    StepFact,
)
from pipelines.results import ScoreMatrix
from pipelines.video import VideoError

NUM_SAMPLES = 8
NUM_STRIPS = 4
FRAMES_PER_SAMPLE = 6
THUMBNAIL_PX = 112


def write(job: Job, evaluated: Evaluated, ledger: Ledger, evaluate_s: float) -> None:
    """Publishes report/index.html."""
    metrics, best = evaluated.metrics, evaluated.best
    results = _results(job, metrics)
    shown = _shown(job, best)
    report = Report(
        title=f"{job.config.recipe}: {job.manifest.num_rows} videos",
        recipe=job.config.recipe,
        weights=job.weights.description,
        num_videos=job.manifest.num_rows,
        num_classes=len(best.classes),
        ledger=ledger,
        multi_label=best.multi_label,
        chance=_chance(best),
        top_k=min(min(job.config.evaluate.top_k), len(best.classes)),
        notes=_notes(job),
        facts=_facts(job),
        steps=_steps(job, evaluate_s, metrics.num_rows),
        results=tuple(results),
        per_class=_per_class(best, metrics),
        confusion=None if best.multi_label else _confusion(best),
        curves=_curves(job),
        failures=_failures(job),
        samples=_samples(best, shown),
        attention=_attention(job, best, results, shown),
        paper=comparison(job) if job.config.recipe == "compare_encoders" else None,
        provenance=job.footer("evaluate") | {"tables": job.store.root},
    )
    job.store.publish(job.report, render(report).encode())


def _results(job: Job, metrics: pa.Table) -> list[Result]:
    headline = "accuracy"
    rows = metrics.to_pylist()
    if not any(row["metric"] == "balanced_accuracy" for row in rows):
        headline = "mAP"
    folds: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["split"] != "all" and row["metric"] == headline and row["value"] is not None:
            folds.setdefault((row["encoder"], row["stream"]), []).append(row["value"])
    return [
        Result(
            encoder=row["encoder"],
            stream=row["stream"],
            accuracy=row["accuracy"],
            top_k=next((row[name] for name in row if name.startswith("top_")), None),
            map=row["mAP"],
            num_videos=int(row["num_videos"]),
            output_dim=job.output_dim(row["encoder"], row["stream"]),
            fold_values=tuple(folds.get((row["encoder"], row["stream"]), ())),
            is_fusion="+" in row["encoder"] + row["stream"],
        )
        for row in results_table(metrics)
    ]


def _chance(matrix: ScoreMatrix) -> float:
    """Accuracy of always naming the most frequent class; mAP of a random order."""
    shares = matrix.targets.mean(0)
    return float(shares.mean() if matrix.multi_label else shares.max())


def _notes(job: Job) -> tuple[str, ...]:
    notes = []
    if job.weights.is_random:
        notes.append(
            "The network has seeded RANDOM filters, because no trained weights were given: the numbers "
            "show that the pipeline works, not what the method can do."
        )
    per_fold = sorted({b.encoder for b in job.codebooks if b.fold >= 0})
    if per_fold:
        notes.append(
            f"Codebooks that use labels ({', '.join(per_fold)}) were fitted once per fold, without the "
            "videos that the fold tests."
        )
    once = sorted({b.encoder for b in job.codebooks if b.fold < 0})
    if once and job.num_folds > 1:
        notes.append(
            f"Codebooks that use no labels ({', '.join(once)}) were fitted once, on descriptors of all "
            "labelled videos; classifiers never see the videos that they are tested on."
        )
    notes.append(
        "A fusion is the mean of the scores of its parts. Metrics are over the tested videos of all folds "
        "together; videos that failed are not tested."
    )
    return tuple(notes)


def _facts(job: Job) -> tuple[tuple[str, str], ...]:
    config = job.config
    return (
        ("Network", f"{config.describe.backbone}, {', '.join(config.describe.nodes)}"),
        ("Weights", job.weights.description),
        ("Sampling", f"{config.sampling.policy} ({config.sampling})"),
        ("Descriptors", f"L2 {config.describe.scaling}, pyramid {config.describe.spp_levels}"),
        ("Split", f"{job.split}, {job.num_folds} fold(s)"),
        ("Codebook sample", f"about {config.fit.num_frames:,} frames per stream"),
        (
            "Classifier",
            f"one-vs-rest linear SVM, C = {config.classify.c:g}, {config.classify.loss}",
        ),
        ("Seed", str(config.run.seed)),
    )


def _steps(job: Job, evaluate_s: float, metric_rows: int) -> tuple[StepFact, ...]:
    record = (job.store.read_json("run.json") or {}).get("steps", {})
    now = {"evaluate": {"seconds": evaluate_s, "rows": metric_rows}}
    return tuple(
        StepFact(name, "done", step["seconds"], step["rows"])
        for name in STEPS
        if (step := (record | now).get(name))
    )


def _per_class(matrix: ScoreMatrix, metrics: pa.Table) -> tuple[ClassRow, ...]:
    positives = dict(zip(matrix.classes, matrix.targets.sum(0).astype(int).tolist(), strict=True))
    return tuple(
        ClassRow(row["class"], row["value"], positives[row["class"]])
        for row in metrics.to_pylist()
        if (row["encoder"], row["stream"], row["fusion"]) == matrix.key
        and (row["split"], row["metric"]) == ("all", "AP")
    )


def _confusion(matrix: ScoreMatrix) -> Confusion:
    counts = confusion_matrix(matrix.scores, matrix.targets)
    return Confusion(tuple(matrix.classes), tuple(tuple(int(n) for n in row) for row in counts))


def _curves(job: Job) -> tuple[Curve, ...]:
    curves = []
    for book in job.codebooks:
        name = f"{book.folder}/curves.parquet"
        if not job.store.exists(name):
            continue
        with job.store.open_parquet(name) as file:
            table = file.read()
        fold = "" if book.fold < 0 else f", fold {book.fold}"
        for quantity in pc.unique(table["quantity"]).to_pylist():
            part = table.filter(pc.equal(table["quantity"], quantity)).sort_by("step")
            stride = max(1, part.num_rows // 300)
            curves.append(
                Curve(
                    chart=f"{book.encoder}: {quantity}",
                    name=book.stream + fold,
                    x_label="step",
                    y_label=quantity,
                    x=tuple(part["step"].to_pylist()[::stride]),
                    y=tuple(part["value"].to_pylist()[::stride]),
                )
            )
    return tuple(curves)


def _failures(job: Job) -> tuple[Failure, ...]:
    columns = ["video_id", "stage", "status", "error_type", "error"]
    rows = job.store.read_table(job.failures, columns).to_pylist()
    return tuple(Failure(**{name: row[name] or "" for name in columns}) for row in rows)


@dataclass(frozen=True)
class _Shown:
    """A tested video of the report, and some of its frames as the network saw them."""

    place: int  # in the score matrix
    video_id: str
    labels: tuple[str, ...]
    frame_indices: list[int]
    images: np.ndarray


def _shown(job: Job, matrix: ScoreMatrix) -> list[_Shown]:
    """Tested videos, the most confident wrong ones first, then right ones."""
    order = np.argsort(-matrix.scores.max(1), kind="stable")
    right = matrix.targets[np.arange(len(order)), matrix.scores.argmax(1)] > 0
    wrong_first = [i for i in order if not right[i]][: NUM_SAMPLES // 2]
    chosen = wrong_first + [i for i in order if right[i]][: NUM_SAMPLES - len(wrong_first)]
    columns = ["video_id", "uri", "labels", "num_segments"]
    wanted = [matrix.video_ids[i] for i in chosen]
    found = job.store.read_rows(job.videos, columns, "video_id", wanted).to_pylist()
    videos = {row["video_id"]: row for row in found}
    rows = [videos[name] for name in wanted]
    frames = ray.get(_frames.remote([(r["uri"], r["num_segments"]) for r in rows], job.config))
    return [
        _Shown(int(i), row["video_id"], tuple(row["labels"]), indices, images)
        for i, row, (indices, images) in zip(chosen, rows, frames, strict=True)
    ]


def _samples(matrix: ScoreMatrix, shown: list[_Shown]) -> tuple[Sample, ...]:
    return tuple(
        Sample(
            video_id=video.video_id,
            labels=video.labels,
            predicted=matrix.classes[int(matrix.scores[video.place].argmax())],
            jpegs=tuple(_jpeg(image) for image in video.images),
        )
        for video in shown
    )


def _attention(
    job: Job, matrix: ScoreMatrix, results: list[Result], shown: list[_Shown]
) -> tuple[AttentionStrip, ...]:
    """Where the best encoder that can say so looked in those videos."""
    books = {
        pair: {fold: job.codebook(*pair, fold) for fold in job.folds}
        for pair in job.pairs()
        if job.writes_attention(job.codebook(*pair, job.folds[0]))
    }
    rank = {(result.encoder, result.stream): result.accuracy or 0.0 for result in results}
    if not books:
        return ()
    pair = max(books, key=lambda pair: rank[pair])
    strips = []
    for video in shown[:: max(1, len(shown) // NUM_STRIPS)][:NUM_STRIPS]:
        folder = job.attention(books[pair][int(matrix.folds[video.place])])
        rows = job.store.read_rows(folder, None, "video_id", [video.video_id])
        rows = rows.sort_by("frame_index")
        places = {index: i for i, index in enumerate(rows["frame_index"].to_pylist())}
        kept = [i for i, index in enumerate(video.frame_indices) if index in places]
        if not kept:
            continue
        strips.append(
            AttentionStrip(
                video_id=video.video_id,
                encoder=pair[0],
                stream=pair[1],
                labels=video.labels,
                predicted=matrix.classes[int(matrix.scores[video.place].argmax())],
                times_s=tuple(rows["timestamp_s"].to_pylist()),
                values=rows["value"].to_numpy(),
                frames=tuple(video.images[i] for i in kept),
                shown=tuple(places[video.frame_indices[i]] for i in kept),
                cells=np.stack(rows["cells"].to_numpy()),
                levels=job.config.describe.spp_levels,
            )
        )
    return tuple(strips)


@ray.remote
def _frames(videos: list[tuple[str, int]], config: Config) -> list[tuple[list[int], np.ndarray]]:
    """Some frames of each video's first segment, and their places in it; none where it cannot be read."""
    found = []
    with IsolatedDecoder(config.decode) as decoder:
        for uri, num_segments in videos:
            try:
                frames = decoder.call(
                    decode_segment,
                    uri,
                    0,
                    num_segments,
                    config.sampling,
                    config.picture,
                    config.decode,
                )
            except VideoError:
                found.append(([], np.empty((0, 0, 0, 3), np.uint8)))
                continue
            count = min(FRAMES_PER_SAMPLE, len(frames.images))
            places = np.linspace(0, len(frames.images) - 1, count).astype(int)
            found.append((frames.frame_indices[places].tolist(), frames.images[places]))
    return found


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    Image.fromarray(image).resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
