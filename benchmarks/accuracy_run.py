"""What each switch of the configuration gives in accuracy, on small labelled sets of real video
(docs/accuracy.md).

A switch is one result, an encoder on a stream, of a run whose configuration differs from the base
in a few settings. Its gain over what it changes is paired over videos. Every number is of videos
whose group took no part in training.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.accuracy_numbers import Measured
from encoders.scores.intervals import gains, intervals
from pipelines.describe.stage import described_streams
from pipelines.evaluate.results import SINGLE, ScoreMatrix
from pipelines.evaluate.step import read_scores
from pipelines.run.job import Job
from pipelines.settings.config import Config

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
        settings: of the run, beside stream and encoder; switches with equal settings share a run.
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
    Switch("AVE: maxima over the whole map alone", encoder="ave@levels=1"),
    Switch("AVE: a mean for each level", encoder="ave@per_level=true"),
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
    Switch("FV-VAE: square roots of the gradients' lengths", encoder="fv_vae@gradient_power=0.5"),
    Switch("FV-VAE: on 128 principal components", encoder="fv_vae@pca_components=128"),
    Switch("FV-VAE: 400 training steps", encoder="fv_vae@num_steps=400"),
    Switch("FV-VAE: 255 latents", encoder="fv_vae@num_latents=255"),
    Switch(
        "FV-VAE: square roots, 400 steps, 255 latents and halves together",
        encoder="fv_vae@gradient_power=0.5:num_latents=255:num_steps=400:temporal_pyramid=1/2",
    ),
    Switch("mirror images", settings=("picture.views=mirror",)),
    Switch("ten crops", settings=("picture.views=ten",)),
    Switch(
        "the whole picture, not its centre",
        settings=("picture.views=centre", "picture.resize_px=224"),
    ),
)


def compared_with(switch: Switch) -> Switch:
    """What a switch is measured against: for an encoder with changed settings the same encoder
    without them, else the base."""
    plain, _, changed = switch.encoder.partition("@")
    return next(one for one in (BASE, *SWITCHES) if one.encoder == plain) if changed else BASE


def base_of(recipe: Config) -> Config:
    """The configuration that all switches start from: it has nothing of the recipe's streams and
    encoders."""
    return _config(recipe, [BASE])


def configurations(recipe: Config, wanted: Sequence[Switch]) -> list[tuple[Config, list[Switch]]]:
    """The runs that measure these switches, and what each measures.

    A run computes all its encoders on all its streams. Switches that change the encoder share a
    run, and those that change
    the stream share another: in one run together they would cost many times what is asked for. The
    base is in the first.
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
            "picture.resize_px=256",
            *switches[0].settings,
        ]
    )


def scores(job: Job, switch: Switch) -> ScoreMatrix:
    """The scores of a switch's encoder and stream, from a finished run."""
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
            f"{switch.says}: expected scores of the {len(base.video_ids)} videos it is compared on,"
            f" got {len(own.video_ids)}; delete the output folder and measure again"
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
    """What the steps of a finished run took, as run.json has it: in all processes that worked on
    them.

    Python's and Ray's start, before the steps, is not in it.
    """
    steps = (job.store.read_json("run.json") or {})["steps"]
    return sum(step["seconds"] for step in steps.values())


def _name(row: dict) -> str:
    encoder, stream, fusion = row["encoder"], row["stream"], row["fusion"]
    if fusion == SINGLE:
        return f"{encoder} on {stream}"
    if stream == fusion:
        return f"{encoder}: {fusion}"
    return f"{'all' if '+' in encoder else encoder}, scores of all streams: {fusion}"
