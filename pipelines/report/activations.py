"""Class activation maps of networks (VU Figure 5.3), and the classes that one network improves over
another (VU 5.4.3.3)."""

from pipelines.report.attention import painted
from pipelines.report.records import ActivationFigure, ClassGains
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


def accuracies(rows: list[dict]) -> dict[tuple[str, str], float]:
    """Return {(encoder, stream): accuracy of a single result}, from METRICS."""
    return {
        (row["encoder"], row["stream"]): row["value"] or 0.0
        for row in rows
        if (row["fusion"], row["split"], row["metric"]) == ("none", "all", "accuracy")
    }
