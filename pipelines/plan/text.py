"""A plan for a terminal."""

import textwrap

from pipelines.plan.estimate import Counts, StepPlan
from pipelines.plan.prices import Offer, Range, Shape
from pipelines.plan.trials import Trials
from pipelines.text_table import aligned

_Costs = tuple[dict[str, Range], list[Offer], str]


def text(
    counts: Counts,
    trials: Trials,
    steps: list[StepPlan],
    shape: Shape,
    wall: Range,
    costs: _Costs,
) -> str:
    """Return the paragraphs: the sample, a table of the steps, tables' bytes, GPU hours, prices."""
    hours, offers, currency = costs
    parts = [
        _sample(counts, trials),
        _steps(steps, shape, wall),
        _tables(steps),
        *((_gpus(hours), _prices(offers, shape, currency)) if _is_worth(hours, offers) else ()),
    ]
    return "\n\n".join(part for part in parts if part)


def _is_worth(hours: dict[str, Range], offers: list[Offer]) -> bool:
    """Return whether GPU hours and prices are more than zeros."""
    return any(o.price.high >= 0.01 for o in offers) or any(h.high >= 0.01 for h in hours.values())


def _sample(counts: Counts, trials: Trials) -> str:
    headers, segments = trials.headers, trials.segments
    lines = [
        f"{counts.videos:,} videos; headers of {headers.looked:,} looked at, {segments.tried} "
        "segments decoded, in "
        f"{trials.seconds:.0f} s",
        f"a video is {headers.mean_duration_s:,.1f} s long and has {headers.mean_segments:,.2f} "
        "segments"
        + (f" (standard error {headers.relative_error:.1%})" if headers.relative_error else "")
        + f" of {segments.frames:,.1f} frames; a segment takes {segments.decode_s:.2g} s to "
        "decode, "
        f"a frame {trials.rates.describe_s:.2g} s to describe",
    ]
    if segments.requests:
        lines.append(
            f"a segment reads {segments.read_bytes / 1e6:,.1f} MB of its video in "
            f"{segments.requests:,.1f} requests; a video has {headers.mean_bytes / 1e6:,.1f} MB"
        )
    if headers.missing:
        share = headers.missing / headers.looked
        lines.append(
            f"MISSING: {headers.missing:,} of {headers.looked:,} videos ({share:.0%}) do not "
            "exist: a run would "
            "stop and say which; the plan counts them as failed"
        )
    odd = [f"{count} x {kind}" for kind, count in headers.reasons]
    if segments.failed:
        odd.append(f"{segments.failed} of {segments.tried} segments failed to decode")
    if odd:
        lines.append(f"will fail, by the sample: {', '.join(odd)}")
    return "\n".join(lines)


def _steps(steps: list[StepPlan], shape: Shape, wall: Range) -> str:
    head = ["step", "", "", "core time", "GPU time", "wall", "at least", "at most"]
    rows = [[*head, "written", "reads", "writes", "memory"]]
    rows += [
        [step.name, f"{step.units:,}", step.unit, *_amounts([step], shape, step.wall_s)]
        for step in steps
    ]
    rows.append(["all", "", "with start-up", *_amounts(steps, shape, wall)])
    return "\n".join(
        [f"on {shape.text}; memory is of the largest process", *aligned(rows, left=(0, 2))]
    )


def _amounts(steps: list[StepPlan], shape: Shape, wall: Range) -> list[str]:
    return [
        _duration(sum(step.core_s for step in steps)),
        _duration(sum(step.gpu_s.value for step in steps)) if shape.gpus else "-",
        *(_duration(seconds) for seconds in (wall.value, wall.low, wall.high)),
        _bytes(sum(sum(step.tables.values()) for step in steps)),
        f"{sum(step.reads for step in steps):,}",
        f"{sum(step.writes for step in steps):,}",
        _bytes(max((step.peak_bytes for step in steps), default=0)),
    ]


def _tables(steps: list[StepPlan]) -> str:
    sizes = sorted(
        ((size, name) for step in steps for name, size in step.tables.items() if size), reverse=True
    )
    words = ", ".join(f"{name} {_bytes(size)}" for size, name in sizes)
    return textwrap.fill(f"tables: {words}", 120, break_on_hyphens=False) if words else ""


def _gpus(hours: dict[str, Range]) -> str:
    rows = [["GPU", "hours", "at least", "at most"]]
    rows += [
        [name, *(_hours(3600 * h) for h in (r.value, r.low, r.high))] for name, r in hours.items()
    ]
    title = (
        "one GPU for all that can run on one (operations over the share of the peak that the price "
        "table assumes)"
    )
    return "\n".join([title, *aligned(rows, left=(0,))])


def _prices(offers: list[Offer], shape: Shape, currency: str) -> str:
    if not offers:
        return f"no price: the price table has no machine with the GPUs of {shape.text}"
    rows = [["machines", "", "on demand", "at least, spot", "at most"]]
    rows += [
        [
            f"{o.number} x",
            o.machine.name,
            *(f"{p:,.2f}" for p in (o.price.value, o.price.low, o.price.high)),
        ]
        for o in offers
    ]
    title = f"price in {currency}, by the machines that make up the cluster"
    return "\n".join([title, *aligned(rows, left=(0, 1))])


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}" if seconds >= 36 else f"{seconds / 3600:.4f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
