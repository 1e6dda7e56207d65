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
    between,
    require,
    setting,
)
from encoders.stream_specs import MOST_FRAMES

PAIR = 2
"""Frames that are one picture of six channels."""

SCALES = 4
"""Scales at which the network of a pair gives flow."""

Stream = Literal["rgb", "flow"]
"""Frames of a network: pictures, or stacks of optical flow."""

OF_RGB = "rgb"
"""Start of a network of flow: the network of pictures of the same run and fold (VU 3.3.4)."""

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

    reads_maps: ClassVar[bool] = False
    """It can read maps of a frozen backbone in place of pictures (network.input)."""

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
    classifier_rate_factor: Positive = setting(
        1.0, "What is no part of the backbone learns that much faster.", added=True
    )
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
    start: str = setting(
        "",
        "Folder or URI of a trained network of this kind (OUT/networks/NAME/DIGEST), whose weights "
        "the training starts from, of another corpus for example: all but the class scores, where "
        "the numbers of classes differ; none given: describe.weights, or drawn ones.",
        added=True,
    )
    flow_learning_rate: NotNegative = setting(0.0, "learning_rate on stream flow; 0: the same.")
    flow_start: str = setting(
        "",
        f"start on stream flow; {OF_RGB}: this run's own network of pictures, without the same "
        "fold; none given: the same as start.",
        added=True,
    )
    flow_num_steps: tuple[Steps, ...] = setting((), "num_steps on stream flow; none: the same.")
    flow_rate_at: Ascending = setting((), "rate_at on stream flow; none: the same.")
    flow_dropout: NotNegative = setting(0.0, "dropout on stream flow; 0: the same.")
    flow_clip_norm: NotNegative = setting(0.0, "clip_norm on stream flow; 0: the same.")
    flow_first_rate_factor: Positive = setting(
        1.0, "The first convolution learns that much faster on stream flow (TSN's code: 5)."
    )

    @property
    def phases(self) -> int:
        """Return how many numbers num_steps has, one for each phase of the training."""
        return 1

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the steps of each phase of the training."""
        return self.num_steps

    def tried(self, num_steps: int, batch_clips: int) -> Self:
        """Return the settings of a trial: so many steps of each phase, so many clips at a time."""
        steps = (num_steps,) * self.phases
        return dataclasses.replace(self, num_steps=steps, batch_clips=batch_clips, part_clips=0)

    @property
    def run_frames(self) -> int:
        """Return how many consecutive frames must be kept together of a video."""
        return 1

    @property
    def learns_flow(self) -> bool:
        """Return whether training needs the optical flow between these frames."""
        return False

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
class SnippetSettings(NetworkSettings):
    """Base of the networks whose clips are snippets out of parts of a video."""

    segments: Count = setting(3, "Equal parts of a video; a clip has a random snippet of each.")


@dataclass(frozen=True, kw_only=True)
class TsnSettings(SnippetSettings):
    """Temporal segment network: the mean of the snippets' scores before the softmax (VU 5.3.2)."""


@dataclass(frozen=True, kw_only=True)
class TdnSettings(SnippetSettings):
    """Temporal difference network (VU 5.3): an image subnetwork, and one of the differences of its
    maps between neighbouring snippets."""

    @property
    def phases(self) -> int:
        return 2

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


Alphas = Annotated[
    tuple[NotNegative, ...], Rule("four numbers", lambda weights: len(weights) == SCALES)
]


@dataclass(frozen=True, kw_only=True)
class ActionFlowSettings(NetworkSettings):
    """ActionFlowNet: a network of clips that learns optical flow beside the classes (VU 4)."""

    frames: Annotated[int, between(2, MOST_FRAMES)] = setting(
        16,
        "Consecutive frames of a clip: convolutions over time, and a flow of each frame, the last "
        "one extrapolated. 2: a pair as one picture of six channels, and the flow between them.",
    )
    learns: Literal["multitask", "fine_tuned", "scratch", "stacked"] = setting(
        "multitask",
        "Classes and flow together; flow first and then the classes; the classes alone; or, with "
        "frames=2, classes by a second network of the first one's flow.",
    )
    width: Count = setting(64, "Channels of the first stage, which all others are multiples of.")
    pretraining_steps: CountOrZero = setting(
        40_000, "Steps of a phase of flow alone that comes first; none with learns=scratch."
    )
    num_steps: Phases = setting((40_000,), "Steps of the phase that learns the classes.")
    pairs: str = setting(
        "",
        "Folder or URI of pairs of pictures with true flow, as FlyingChairs, which the phase of "
        "flow alone learns with frames=2; none given: the videos, and flow computed of them.",
    )
    epe_weight: NotNegative = setting(1.0, "Factor of the loss of flow beside that of classes.")
    alphas: Alphas = setting(
        (0.08, 0.02, 0.01, 0.005),
        "With frames=2: factors of the errors of flow at each scale, the smallest first (FlowNet's "
        "code). With more frames there is the largest scale alone, and its factor is 1.",
    )
    batch_clips: Count = setting(128, "Clips of a training step, over all workers.")
    optimiser: Literal["sgd", "adam"] = setting("adam", "Of the training.")
    learning_rate: Positive = setting(1e-4, "Of the optimiser, at the start of each phase.")
    rate_at: Ascending = setting((), "Steps of a phase at which it is multiplied by rate_factor.")
    decay: NotNegative = setting(0.0, "Weight decay.")
    dropout: Share = setting(0.5, "Share of a vector's values that training takes for 0.")
    crops: Literal["centre", "random", "corners"] = setting(
        "corners", "Crops in training. corners: one of four sizes at one of 13 places."
    )
    colour_jitter: Share = setting(
        0.4, "Brightness, contrast and saturation of a training clip change by at most this share."
    )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the task of each phase: flow, classes, or both."""
        last = "both" if self.learns == "multitask" else "classes"
        return ("flow", last) if self.pretrains else (last,)

    @property
    def pretrains(self) -> bool:
        """Return whether a phase of flow alone comes first."""
        return self.learns_flow and self.pretraining_steps > 0

    @property
    def steps(self) -> tuple[int, ...]:
        return (self.pretraining_steps, *self.num_steps) if self.pretrains else self.num_steps

    def tried(self, num_steps: int, batch_clips: int) -> Self:
        few = super().tried(num_steps, batch_clips)
        steps = min(num_steps, self.pretraining_steps)
        return dataclasses.replace(few, pretraining_steps=steps and num_steps, pairs="")

    @property
    def run_frames(self) -> int:
        # The flow of the last frame leads to one more, which the network is not given.
        return self.frames + 1 if self.frames > PAIR else PAIR

    @property
    def learns_flow(self) -> bool:
        return self.learns != "scratch"

    def __post_init__(self) -> None:
        super().__post_init__()
        is_pair = self.frames == PAIR
        require(self.learns != "stacked" or is_pair, "frames", "2 with learns=stacked", self.frames)
        require(not self.pairs or is_pair, "frames", "2 with pairs, which have two", self.frames)
        require(
            not self.pairs or self.pretrains,
            "pairs",
            "none without a phase of flow alone (learns=scratch, or pretraining_steps=0)",
            self.pairs,
        )
        require(
            self.learns in ("scratch", "multitask") or self.pretraining_steps > 0,
            "pretraining_steps",
            f"1 or more with learns={self.learns}",
            self.pretraining_steps,
        )


Growing = Annotated[
    tuple[Steps, ...],
    Rule("one or more, none below the one before", lambda n: n and list(n) == sorted(n)),
]


@dataclass(frozen=True, kw_only=True)
class OverTimeSettings(NetworkSettings):
    """Base of the networks on full-length video (VU 3): a clip is consecutive sampled frames from a
    random one on.

    The defaults are for maps of a frozen backbone.
    """

    reads_maps: ClassVar[bool] = True

    clip_frames: Growing = setting(
        (1, 30, 120),
        "Frames of a clip in each phase of the training; parameters are carried over (VU 3.3.3). "
        "Videos are tested with the last one.",
    )
    num_steps: Phases = setting((3000, 1000, 1000), "Training steps of each phase.")
    learning_rate: Positive = setting(
        1e-3, "Of the optimiser, at the start of each phase (VU through the backbone: 1e-5)."
    )
    rate_factor: Annotated[float, Rule("0 < x <= 1", lambda x: 0 < x <= 1)] = setting(
        0.95, "The learning rate is multiplied by it."
    )
    rate_at: Ascending = setting((), "Steps of a phase at which that is done.")
    rate_every: CountOrZero = setting(
        100, "More than 0: it is done little by little, once in so many steps (VU: an epoch)."
    )
    decay: NotNegative = setting(5e-4, "Weight decay.")

    @property
    def phases(self) -> int:
        return len(self.clip_frames)


@dataclass(frozen=True, kw_only=True)
class PoolingSettings(OverTimeSettings):
    """A maximum over time, and two fully-connected layers (VU 3.3.1)."""

    units: Count = setting(4096, "Of each fully-connected layer.")
    dropout: Share = setting(
        0.6, "Share of a fully-connected layer's values that training takes for 0."
    )


@dataclass(frozen=True, kw_only=True)
class WindowSettings(PoolingSettings):
    """Pooling in windows of time; a clip shorter than one is one window."""

    window_frames: Count = setting(10, "Frames of a window.")
    window_stride: Count = setting(5, "Frames from one window to the next.")


@dataclass(frozen=True, kw_only=True)
class TimeConvSettings(WindowSettings):
    """Time-domain convolution (VU 3.3.1): of 3 x 3 positions over the frames of a window."""

    kernels: Count = setting(256, "Of the convolution.")


@dataclass(frozen=True, kw_only=True)
class LstmSettings(OverTimeSettings):
    """Deep LSTM with peepholes (VU 3.3.2), whose classifier scores each frame."""

    clip_frames: Growing = setting((30,), "Frames of a clip in each phase of the training.")
    num_steps: Phases = setting((3000,), "Training steps of each phase.")
    learning_rate: Positive = setting(
        0.03,
        "Of the optimiser, at the start of each phase: clip_frames times the pooling networks', "
        "as VU's 30 x 1e-5 through the backbone.",
    )
    layers: Count = setting(5, "Layers, each of which reads the one below.")
    cells: Count = setting(512, "Of each layer.")
