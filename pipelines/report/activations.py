"""Class activation maps of networks (VU Figure 5.3), the optical flow that they estimate (Figure
4.5), and the classes that one result improves over another (Figure 4.6, VU 5.4.3.3)."""

from pipelines.evaluate.results import ScoreMatrix
from pipelines.evaluate.step import read_scores
from pipelines.report.attention import painted
from pipelines.report.records import AccuracyGains, ActivationFigure, ClassGains, FlowFigure
from pipelines.run.job import Job

NUM_CLASSES = 5
"""Classes with the largest gains, as many as the thesis names."""


def activations(job: Job, rows: list[dict]) -> tuple[ActivationFigure, ...]:
    """Return the figures of the network with the highest accuracy on pictures.

    Args:
        rows: of METRICS.
    """
    pairs = [r.pair for r in job.scored_by_networks() if "cams" in r.tables]
    if not pairs:
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
    by_video: dict[str, list[dict]] = {}
    for row in job.store.read_table(job.flows(*best)).to_pylist():
        by_video.setdefault(row["video_id"], []).append(row)
    shown = {name: own for name, own in by_video.items() if any(row["flow"] for row in own)}
    return tuple(_flow_figure(name, shown[name]) for name in sorted(shown))


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
    accuracy = accuracies(rows)
    networks = [r.pair for r in job.scored_by_networks() if r.pair in accuracy]
    vectors = [pair for pair in job.pairs() if pair in accuracy]
    if not networks or not vectors:
        return None
    best, other = (max(pairs, key=accuracy.__getitem__) for pairs in (networks, vectors))
    own, less = (
        read_scores(job.store, *pair, job.scores(*pair), job.failures) for pair in (best, other)
    )
    if own.multi_label or less.multi_label:
        return None
    both = set(own.video_ids) & set(less.video_ids)
    shares = [_by_class(matrix.of_videos(both)) for matrix in (own, less)]
    gains = {label: share - shares[1][label] for label, share in shares[0].items()}
    ranked = tuple(sorted(gains.items(), key=lambda item: (-item[1], item[0])))
    return AccuracyGains(" on ".join(best), " on ".join(other), ranked)


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
