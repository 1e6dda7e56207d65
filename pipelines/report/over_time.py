"""What a network on full-length video says over the time of a video: spans of one class, and the
frames where it changes its mind."""

import itertools

from pipelines.report.activations import accuracies
from pipelines.report.records import MindChange, Span, TimeFigure
from pipelines.report.videos import FrameRequest, read_frames, videos_of
from pipelines.run.job import Job
from pipelines.settings.sections import Sampling
from pipelines.video.stages import box_of, stretch_of

NUM_FRAMES = 6
"""Changes of a video that are shown with their frames: the longest spans begin with them."""

ONE_FRAME = Sampling(policy="uniform", num_frames=1)


def over_time(job: Job, rows: list[dict]) -> tuple[TimeFigure, ...]:
    """Return the figures of some tested videos by the network with the highest accuracy among those
    that write SCORES_OVER_TIME.

    Args:
        rows: of METRICS.
    """
    pairs = [r.pair for r in job.scored_by_networks() if "scores_over_time" in r.tables]
    if not pairs or not job.config.network.pictures:
        return ()
    best = max(pairs, key=accuracies(rows).__getitem__)
    folder = job.scores_over_time(*best)
    names = sorted(job.store.distinct(folder, "video_id"))
    count = min(job.config.network.pictures, len(names))
    chosen = [names[len(names) * place // count] for place in range(count)]
    columns = ["video_id", "timestamp_s", "label"]
    found: dict[str, list[tuple[float, str]]] = {name: [] for name in chosen}
    for row in job.store.read_rows(folder, columns, "video_id", chosen).to_pylist():
        found[row["video_id"]].append((row["timestamp_s"], row["label"]))
    videos = dict(zip(chosen, videos_of(job, chosen), strict=True))
    spans = {name: spans_of(sorted(found[name])) for name in chosen}
    shown = {name: _shown(own) for name, own in spans.items()}
    requests = [
        FrameRequest(
            videos[name]["uri"], 1, ONE_FRAME, 1, _moment(videos[name], span), box_of(videos[name])
        )
        for name in chosen
        for span in shown[name]
    ]
    pictures = iter(read_frames(job, requests))
    return tuple(
        TimeFigure(
            video_id=name,
            network=f"{best[0]} on {best[1]}",
            labels=tuple(videos[name]["labels"]),
            uri=videos[name]["uri"],
            spans=tuple(spans[name]),
            changes=tuple(MindChange(span, next(pictures)) for span in shown[name]),
        )
        for name in chosen
    )


def spans_of(frames: list[tuple[float, str]]) -> list[Span]:
    """Return the spans of one class: each lasts until the next one begins, the last one as long as
    frames usually are apart.

    Args:
        frames: time in seconds and first class of each, in order of time.
    """
    groups = [list(group) for _, group in itertools.groupby(frames, key=lambda frame: frame[1])]
    begins = [group[0][0] for group in groups]
    steps = [after - before for (before, _), (after, _) in itertools.pairwise(frames)]
    last = frames[-1][0] + (sorted(steps)[len(steps) // 2] if steps else 1.0) if frames else 0.0
    ends = [*begins[1:], last]
    return [
        Span(group[0][1], begin, end)
        for group, begin, end in zip(groups, begins, ends, strict=True)
    ]


def _shown(spans: list[Span]) -> list[Span]:
    """Return the longest spans, in order of time."""
    longest = sorted(spans, key=lambda span: span.begin_s - span.end_s)[:NUM_FRAMES]
    return sorted(longest, key=lambda span: span.begin_s)


def _moment(video: dict, span: Span) -> tuple[float, float]:
    """Return the stretch of the file that begins with the span."""
    start_s, _ = stretch_of(video) or (0.0, 0.0)
    return start_s + span.begin_s, start_s + span.end_s
