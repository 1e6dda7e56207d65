"""Class activation maps of networks (VU Figure 5.3), the optical flow that they estimate (Figure
4.5), and the classes that one result improves over another (Figure 4.6, VU 5.4.3.3)."""

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipelines.evaluate.results import ScoreMatrix, common
from pipelines.evaluate.step import READ_BYTES, matrix_memory, read_scores
from pipelines.report.attention import painted
from pipelines.report.records import AccuracyGains, ActivationFigure, ClassGains, FlowFigure
from pipelines.run.job import Job
from pipelines.storage.columns import names
from pipelines.storage.store import Store

NUM_CLASSES = 5
"""Classes with the largest gains, as many as the thesis names."""


def activations(job: Job, rows: list[dict]) -> tuple[ActivationFigure, ...]:
    """Return the figures of the network with the highest accuracy on pictures.

    Args:
        rows: of METRICS.
    """
    pairs = [r.pair for r in job.scored_by_networks() if "cams" in r.tables]
    if not pairs or not job.config.network.pictures:
        return ()
    best = max(pairs, key=accuracies(rows).__getitem__)
    by_video: dict[str, list[dict]] = {}
    for row in job.store.read_table(job.cams(*best)).to_pylist():
        by_video.setdefault(row["video_id"], []).append(row)
    return tuple(_figure(name, by_video[name]) for name in sorted(by_video))


def _figure(video_id: str, rows: list[dict]) -> ActivationFigure:
    rows.sort(key=lambda row: (row["subnetwork"] != "image", row["subnetwork"], row["place"]))
    return ActivationFigure(
        video_id=video_id,
        network=f"{rows[0]['encoder']} on {rows[0]['stream']}",
        labels=tuple(rows[0]["labels"]),
        predicted=rows[0]["label"],
        columns=tuple(
            (
                f"{row['subnetwork']}, frame {' to '.join(map(str, row['frame_indices']))}",
                *painted(row["picture"], row["values"]),
            )
            for row in rows
        ),
    )


def flows(job: Job, rows: list[dict]) -> tuple[FlowFigure, ...]:
    """Return the figures of the network of flow with the highest accuracy, by videos.

    Args:
        rows: of METRICS.
    """
    accuracy = accuracies(rows)
    pairs = [r.pair for r in job.scored_by_networks() if "flows" in r.tables]
    if not pairs:
        return ()
    best = max(pairs, key=lambda pair: accuracy.get(pair, 0.0))
    folder = job.flows(*best)

    def pictured(name: str) -> pa.Table:
        with job.store.open_parquet(name) as file:
            rows = file.read(columns=["video_id", "flow"])
        return rows.filter(pc.is_valid(rows["flow"])).select(["video_id"])

    # Rows of all tested videos, pictures of a few: only these are brought here.
    shown = names(job.store.gather(pictured, job.store.files(folder)))
    by_video: dict[str, list[dict]] = {name: [] for name in sorted(shown)}
    for row in job.store.read_rows(folder, None, "video_id", [*by_video]).to_pylist():
        by_video[row["video_id"]].append(row)
    return tuple(_flow_figure(name, own) for name, own in by_video.items())


def _flow_figure(video_id: str, rows: list[dict]) -> FlowFigure:
    rows.sort(key=lambda row: row["place"])
    return FlowFigure(
        video_id=video_id,
        network=f"{rows[0]['encoder']} on {rows[0]['stream']}",
        error_px=sum(row["error_px"] for row in rows) / len(rows),
        length_px=sum(row["length_px"] for row in rows) / len(rows),
        columns=tuple(
            (
                row["frame_index"],
                row["is_extrapolated"],
                *(row[name] for name in ("picture", "flow", "truth")),
            )
            for row in rows
            if row["flow"]
        ),
    )


def class_gains(job: Job, rows: list[dict]) -> tuple[ClassGains, ...]:
    """Return, on each stream with several networks, the classes whose average precision the best
    one has improved most over the next."""
    accuracy, precision = accuracies(rows), {}
    for row in rows:
        is_own = row["fusion"] == "none" and (row["split"], row["metric"]) == ("all", "AP")
        if is_own and row["value"] is not None:
            precision[row["encoder"], row["stream"], row["class"]] = row["value"]
    by_stream: dict[str, list[str]] = {}
    for encoder, stream in (result.pair for result in job.scored_by_networks()):
        by_stream.setdefault(stream, []).append(encoder)
    found = []
    for stream, encoders in by_stream.items():
        if len(encoders) < 2:
            continue
        first, second = sorted(encoders, key=lambda name: -accuracy[name, stream])[:2]
        gains = {
            label: value - precision[second, stream, label]
            for (encoder, own, label), value in precision.items()
            if (encoder, own) == (first, stream) and (second, stream, label) in precision
        }
        largest = sorted(gains.items(), key=lambda item: (-item[1], item[0]))[:NUM_CLASSES]
        found.append(ClassGains(f"{first} on {stream}", second, tuple(largest)))
    return tuple(found)


def accuracy_gains(job: Job, rows: list[dict]) -> AccuracyGains | None:
    """Return, by class, the accuracy of the best network less that of the best result of vectors
    that is no fusion, from the largest gain to the largest loss; None where either is missing, or
    videos have several labels."""
    compared = compared_results(job, rows)
    if not compared:
        return None
    pairs = {pair: job.scores(*pair) for pair in compared}
    task = _gains.options(**matrix_memory(job, 2 * READ_BYTES))
    ranked = ray.get(task.remote(job.store, pairs, job.failures))
    best, other = (" on ".join(pair) for pair in compared)
    return AccuracyGains(best, other, ranked) if ranked else None


def compared_results(job: Job, rows: list[dict]) -> tuple[tuple[str, str], ...]:
    """Return the best network, and the best result of vectors that is no fusion; none where either
    is missing.
    """
    accuracy = accuracies(rows)
    networks = [r.pair for r in job.scored_by_networks() if r.pair in accuracy]
    vectors = [pair for pair in job.pairs() if pair in accuracy]
    if not networks or not vectors:
        return ()
    return tuple(max(pairs, key=accuracy.__getitem__) for pairs in (networks, vectors))


@ray.remote(max_retries=3)
def _gains(
    store: Store, pairs: dict[tuple[str, str], str], failures: str
) -> tuple[tuple[str, float], ...]:
    return gains_by_class(store, pairs, failures)


def gains_by_class(
    store: Store, pairs: dict[tuple[str, str], str], failures: str
) -> tuple[tuple[str, float], ...]:
    """Return classes and gains in accuracy of the first result over the second; none where videos
    have several labels.

    Args:
        pairs: {encoder and stream: the folder of SCORES}.
    """
    parts = [read_scores(store, *pair, folder, failures) for pair, folder in pairs.items()]
    if any(part.multi_label for part in parts):
        return ()
    own, less = map(_by_class, common(parts))
    gains = {label: share - less[label] for label, share in own.items()}
    return tuple(sorted(gains.items(), key=lambda item: (-item[1], item[0])))


def _by_class(matrix: ScoreMatrix) -> dict[str, float]:
    """Return {class: the share of its videos whose highest score it has}."""
    true = matrix.targets.argmax(1)
    is_right = matrix.scores.argmax(1) == true
    return {matrix.classes[label]: is_right[true == label].mean() for label in set(true.tolist())}


def accuracies(rows: list[dict]) -> dict[tuple[str, str], float]:
    """Return {(encoder, stream): accuracy of a single result}, from METRICS."""
    return {
        (row["encoder"], row["stream"]): row["value"] or 0.0
        for row in rows
        if (row["fusion"], row["split"], row["metric"]) == ("none", "all", "accuracy")
    }
