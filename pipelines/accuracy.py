"""What each switch of the configuration gives in accuracy, on small labelled sets of real video (docs/accuracy.md).

A switch is one result, an encoder on a stream, of a run whose configuration differs from the base in a few settings. Its
gain over what it changes is paired over videos. Every number is of videos whose group took no part in training.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from encoders.intervals import gains, intervals
from pipelines.config import Config
from pipelines.descriptor_stages import described_streams
from pipelines.evaluate import read_scores
from pipelines.layout import Job
from pipelines.results import SINGLE, ScoreMatrix

DRAWS = 2000
"""Bootstrap draws of an interval."""

MOTION = "difference@gap_s=0.16:scaling=whole_map"
"""The entry of describe.streams that switches start from."""


@dataclass(frozen=True)
class Switch:
    """One row of the table.

    Attributes:
        says: what it changes, for a reader.
        stream: entry of describe.streams whose result is shown; its node may be another one.
        encoder: entry of encode.encoders.
        settings: of the run, beside these two; switches with equal ones share a run.
    """

    says: str
    stream: str = MOTION
    encoder: str = "vlad"
    settings: tuple[str, ...] = ("picture.views=centre",)


BASE = Switch("base: VLAD, differences over 0.16 s at the last layer, one view")

SWITCHES = (
    Switch("AVE", encoder="ave"),
    Switch("GMM-FV", encoder="gmm_fv"),
    Switch("FV-VAE", encoder="fv_vae"),
    Switch("appearance", stream="appearance"),
    Switch("optical flow", stream="flow@gap=2:bound_px=10"),
    Switch(
        "differences of neighbouring source frames", stream="difference@gap=1:scaling=whole_map"
    ),
    Switch("differences over 0.32 s", stream="difference@gap_s=0.32:scaling=whole_map"),
    Switch("differences of neighbouring sampled frames", stream="difference@scaling=whole_map"),
    Switch(
        "rank pooling of five frames, 0.08 s apart",
        stream="rank@gap_s=0.08:frames=5:scaling=whole_map",
    ),
    Switch(
        "L2 at each position, not of the map", stream="difference@gap_s=0.16:scaling=per_position"
    ),
    Switch(
        "a part of what there is to see, not of the map",
        stream="difference@gap_s=0.16:scaling=relative",
    ),
    Switch("a layer before, features.10", stream=f"{MOTION}:nodes=features.10"),
    Switch("two layers before, features.7", stream=f"{MOTION}:nodes=features.7"),
    Switch("the picture itself", stream=f"{MOTION}:nodes=input"),
    Switch("AVE: its length kept", encoder="ave@normalisation=signed_sqrt"),
    Switch("VLAD: no intra-normalisation", encoder="vlad@intra=false"),
    Switch("VLAD: positions appended", encoder="vlad@position_weight=0.5"),
    Switch("VLAD: a codebook for each level", encoder="vlad@per_level=true"),
    Switch("VLAD: temporal pyramid, whole and halves", encoder="vlad@temporal_pyramid=1/2"),
    Switch("VLAD: 256 centroids", encoder="vlad@num_centroids=256"),
    Switch("VLAD: on 128 principal components", encoder="vlad@pca_components=128"),
    Switch("FV-VAE: positions appended", encoder="fv_vae@position_weight=0.5"),
    Switch("FV-VAE: a codebook for each level", encoder="fv_vae@per_level=true"),
    Switch("FV-VAE: temporal pyramid, whole and halves", encoder="fv_vae@temporal_pyramid=1/2"),
    Switch("FV-VAE: Kronecker whitening", encoder="fv_vae@information=kronecker"),
    Switch("FV-VAE: class loss, lambda3 = 1,000", encoder="fv_vae@lambda3=1000"),
    Switch("FV-VAE: gradients of their own length", encoder="fv_vae@gradient_power=1"),
    Switch("FV-VAE: on 128 principal components", encoder="fv_vae@pca_components=128"),
    Switch("FV-VAE: 400 training steps", encoder="fv_vae@num_steps=400"),
    Switch("FV-VAE: 255 latents", encoder="fv_vae@num_latents=255"),
    Switch("mirror images", settings=("picture.views=mirror",)),
    Switch("ten crops", settings=("picture.views=ten",)),
)


def compared_with(switch: Switch) -> Switch:
    """What a switch is measured against: an encoder with settings of its own, the same without; others, the base."""
    plain, _, changed = switch.encoder.partition("@")
    return next(one for one in (BASE, *SWITCHES) if one.encoder == plain) if changed else BASE


def configurations(recipe: Config, wanted: Sequence[Switch]) -> list[tuple[Config, list[Switch]]]:
    """The runs that measure these switches, and what each measures.

    All encoders on all streams would be many times what is asked for: switches of the encoder share a run, and so do those of
    the stream. The base is in the first.
    """
    shared: dict[tuple, list[Switch]] = {}
    for switch in dict.fromkeys((BASE, *map(compared_with, wanted), *wanted)):
        shared.setdefault((switch.stream != MOTION, switch.settings), []).append(switch)
    return [(_config(recipe, own), own) for own in shared.values()]


def _config(recipe: Config, switches: list[Switch]) -> Config:
    streams = dict.fromkeys(switch.stream for switch in switches)
    encoders = dict.fromkeys(switch.encoder for switch in switches)
    return recipe.with_settings(
        [
            f"describe.streams={','.join(streams)}",
            f"encode.encoders={','.join(encoders)}",
            "encode.attention=false",
            "classify.fusions=",
            "evaluate.fusions=",
            *switches[0].settings,
        ]
    )


@dataclass(frozen=True)
class Measured:
    """A result: accuracy and its 95 % interval; for a switch also its gain over what it changes."""

    name: str
    accuracy: float
    low: float
    high: float
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None


def scores(job: Job, switch: Switch) -> ScoreMatrix:
    """Of the result that a switch names, from a finished run."""
    alone = dataclasses.replace(job.config.describe, streams=(switch.stream,))
    (stream,) = described_streams(dataclasses.replace(job.config, describe=alone))
    pair = (switch.encoder, stream)
    return read_scores(job.store, *pair, job.scores(*pair), job.failures)


def measured(switch: Switch, own: ScoreMatrix, base: ScoreMatrix) -> Measured:
    """Accuracy of a switch, and its gain over the scores `base`.

    Raises:
        ValueError: they are not of the same videos.
    """
    if own.video_ids != base.video_ids:
        raise ValueError(
            f"{switch.says}: expected scores of the {len(base.video_ids)} videos it is compared on, got {len(own.video_ids)}; "
            "delete the output folder and measure again"
        )
    numbers = intervals(own.scores, own.targets, top_k=(), num_draws=DRAWS, seed=0)
    gain = gains(own.scores, base.scores, own.targets, num_draws=DRAWS, seed=0)["accuracy"]
    hit = (own.scores.argmax(1) == own.targets.argmax(1)).mean()
    ends = numbers["accuracy"].tolist()
    return Measured(switch.says, float(hit), *ends, gain.value, gain.low, gain.high)


def results_of(job: Job) -> list[Measured]:
    """Every result of a finished run, from METRICS, the best first."""
    rows = [
        row
        for row in job.store.read_table(job.metrics).to_pylist()
        if (row["split"], row["metric"], row["class"]) == ("all", "accuracy", None)
    ]
    rows.sort(key=lambda row: -row["value"])
    return [Measured(_name(row), row["value"], row["ci_low"], row["ci_high"]) for row in rows]


def seconds_of(job: Job) -> float:
    """What the steps of a finished run took, as run.json has it: also where it was resumed."""
    steps = (job.store.read_json("run.json") or {})["steps"]
    return sum(step["seconds"] for step in steps.values())


def _name(row: dict) -> str:
    encoder, stream, fusion = row["encoder"], row["stream"], row["fusion"]
    if fusion == SINGLE:
        return f"{encoder} on {stream}"
    if stream == fusion:
        return f"{encoder}: {fusion}"
    return f"{'all' if '+' in encoder else encoder}, scores of all streams: {fusion}"


def recipe_lines(found: dict[str, list[Measured]], seconds: dict[str, float]) -> list[str]:
    """A Markdown table of the recipe's results, one column a set, in the order of their mean."""
    sets = list(found)
    values = {name: {one.name: one for one in results} for name, results in found.items()}
    names = {one.name for results in found.values() for one in results}

    def mean(name: str) -> float:
        own = [values[s][name].accuracy for s in sets if name in values[s]]
        return sum(own) / len(own)

    lines = [f"| result | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    for name in sorted(names, key=lambda name: (-mean(name), name)):
        cells = [_cell(values[s].get(name)) for s in sets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    took = ", ".join(f"{name} {value / 60:.1f} min" for name, value in seconds.items())
    return [*lines, "", f"All steps of a run, one after the other: {took}."]


def switch_lines(found: dict[str, list[Measured]]) -> list[str]:
    """A Markdown table of switches, with the gain over the base on each set."""
    sets = list(found)
    lines = [f"| switch | {' | '.join(sets)} | helps |", "|---" * (len(sets) + 2) + "|"]
    for own in zip(*found.values(), strict=True):
        better = sum((one.gain or 0) > 0 for one in own)
        worse = sum((one.gain or 0) < 0 for one in own)
        verdict = "on all" if better == len(own) else "nowhere" if not better else "on some"
        verdict = "" if not better and not worse else verdict
        cells = [
            f"{_cell(one)}, {one.gain:+.3f} [{one.gain_low:+.3f}, {one.gain_high:+.3f}]"
            for one in own
        ]
        lines.append(f"| {own[0].name} | {' | '.join(cells)} | {verdict} |")
    return lines


def _cell(one: Measured | None) -> str:
    return "" if one is None else f"{one.accuracy:.3f} [{one.low:.3f}, {one.high:.3f}]"


def to_json(parts: dict[str, dict[str, list[Measured]]], about: dict) -> str:
    """{about, recipe: {set: [...]}, switches: {set: [...]}}."""
    plain = {
        part: {name: [dataclasses.asdict(one) for one in rows] for name, rows in found.items()}
        for part, found in parts.items()
    }
    return json.dumps(about | plain, indent=1) + "\n"


def between_marks(page: str, name: str, lines: Iterable[str]) -> str:
    """The page with what stands between <!-- name --> and <!-- end name --> replaced.

    Raises:
        ValueError: the page has no such marks.
    """
    first, last = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    before, found, rest = page.partition(first)
    _, closed, after = rest.partition(last)
    if not (found and closed):
        raise ValueError(f"expected the marks {first.strip()} and {last}, found none; put them in")
    return before + first + "\n".join(lines) + "\n" + last + after
