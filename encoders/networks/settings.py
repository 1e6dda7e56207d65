"""Settings of the networks that write SCORES, a record for each.

No torch here: a wrong value must show at once. The section of the run's configuration has the
network's name in `encoders.networks.registry`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from encoders.fields import (
    COUNTABLE,
    Count,
    CountOrZero,
    NotNegative,
    Positive,
    Record,
    Rule,
    at_least,
    require,
    setting,
)

Stream = Literal["rgb", "flow"]
"""Frames of a network: pictures, or stacks of optical flow."""

Steps = Annotated[int, at_least(1), COUNTABLE]
Share = Annotated[float, Rule("0 <= x < 1", lambda x: 0 <= x < 1)]
Phases = Annotated[tuple[Steps, ...], Rule("one or more", lambda steps: len(steps) > 0)]
Ascending = Annotated[
    tuple[Steps, ...],
    Rule("ascending steps, each once", lambda steps: list(steps) == sorted(set(steps))),
]


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Record):
    """Base of every network's settings: its clips, its augmentation and its training.

    The defaults are VU's on FCVID (5.4.2).
    """

    phases: ClassVar[int] = 1
    """Phases of the training, each with a number of steps of its own."""

    segments: Count = setting(3, "Equal parts of a video; a clip has a random snippet of each.")
    num_steps: Phases = setting((30_000,), "Training steps of each phase.")
    batch_clips: Count = setting(128, "Clips of a training step, over all workers.")
    part_clips: CountOrZero = setting(
        0,
        "A worker computes so many clips at a time, and adds up their gradients; 0: all. Batch "
        "normalisations that are trained see one part.",
    )
    optimiser: Literal["sgd", "adam"] = setting("sgd", "Of the training.")
    learning_rate: Positive = setting(0.01, "Of the optimiser, at the start of each phase.")
    rate_factor: Annotated[float, Rule("0 < x <= 1", lambda x: 0 < x <= 1)] = setting(
        0.1, "The learning rate is multiplied by it."
    )
    rate_at: Ascending = setting((10_000, 20_000), "Steps of a phase at which that is done.")
    rate_every: CountOrZero = setting(
        0, "More than 0: it is done little by little, once in so many steps, instead of rate_at."
    )
    momentum: Share = setting(0.9, "Of sgd.")
    decay: NotNegative = setting(1e-4, "Weight decay.")
    bias_rate_factor: Positive = setting(1.0, "Biases learn that much faster (TSN's code: 2).")
    decay_biases: bool = setting(True, "Weight decay of biases too (TSN's code: none).")
    clip_norm: NotNegative = setting(
        0.0, "Longest gradient of all parameters together (TSN's code: 40); 0: no limit."
    )
    dropout: Share = setting(0.0, "Share of a vector's values that training takes for 0.")
    batch_norm: Literal["fixed", "first", "all"] = setting(
        "all",
        "Batch normalisations whose statistics are those of the training batch: none; the first "
        "alone (TSN's partial BN); or all. The others keep those of the weights.",
    )
    crops: Literal["centre", "random", "corners"] = setting(
        "random",
        "Crops in training. corners: one of four sizes at one of 13 places (TSN).",
    )
    mirror: bool = setting(True, "Half of the training clips are mirrored.")
    colour_jitter: Share = setting(
        0.0, "Brightness, contrast and saturation of a training clip change by at most this share."
    )
    flow_learning_rate: NotNegative = setting(0.0, "learning_rate on stream flow; 0: the same.")
    flow_num_steps: tuple[Steps, ...] = setting((), "num_steps on stream flow; none: the same.")
    flow_rate_at: Ascending = setting((), "rate_at on stream flow; none: the same.")
    flow_dropout: NotNegative = setting(0.0, "dropout on stream flow; 0: the same.")
    flow_clip_norm: NotNegative = setting(0.0, "clip_norm on stream flow; 0: the same.")
    flow_first_rate_factor: Positive = setting(
        1.0, "The first convolution learns that much faster on stream flow (TSN's code: 5)."
    )

    def __post_init__(self) -> None:
        for name in ("num_steps", "flow_num_steps"):
            steps = getattr(self, name)
            require(
                len(steps) == self.phases or (not steps and name != "num_steps"),
                name,
                f"{self.phases} number{'s' if self.phases > 1 else ''}, one for each phase",
                steps,
            )

    def on(self, stream: str) -> Self:
        """Return the settings on a stream: its own ones in their fields, and no other stream's."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        of_flow = [name for name in defaults if name.startswith("flow_")]
        values = {name: defaults[name] for name in of_flow}
        if stream == "flow":
            values |= {n.removeprefix("flow_"): v for n in of_flow if (v := getattr(self, n))}
            # The one that no picture has.
            values["flow_first_rate_factor"] = values.pop("first_rate_factor")
        return dataclasses.replace(self, **values)


@dataclass(frozen=True, kw_only=True)
class TsnSettings(NetworkSettings):
    """Temporal segment network: the mean of the snippets' scores before the softmax (VU 5.3.2)."""


@dataclass(frozen=True, kw_only=True)
class TdnSettings(NetworkSettings):
    """Temporal difference network (VU 5.3): an image subnetwork, and one of the differences of its
    maps between neighbouring snippets."""

    phases: ClassVar[int] = 2

    num_steps: Phases = setting(
        (30_000, 10_000),
        "Steps of both phases: with fixed convolutions of the image subnetwork, then of all.",
    )
    joint_rate_factor: Positive = setting(
        0.1,
        "The second phase begins with the learning rate times this. The thesis gives none; with 1 "
        "a network without batch normalisation diverged.",
    )
    layers: Annotated[
        tuple[str, ...],
        Rule(
            "input, then nodes of the network or `stages`, each once",
            lambda layers: layers[:1] == ("input",) and len(layers) == len(set(layers)),
        ),
    ] = setting(
        ("input", "stages"),
        "Nodes whose differences are added to the difference subnetwork; `stages`: the last before "
        "each loss of resolution (VU 5.3.2). Of a ResNet also conv1, res2, res3, res4 (Table 5.4).",
    )
