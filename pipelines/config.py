"""The one frozen configuration of a run: sections of plain values, checked before the cluster is touched.

Units are in the names. A wrong value raises ConfigError with the section, what was expected, what
was got and what to do. This module imports no torch and no Ray, so that mistakes show at once.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, Self

from encoders.settings import (
    FV_VAE_PRESETS,
    AveSettings,
    BilinearSettings,
    CompressSettings,
    FinetuneSettings,
    FvVaeSettings,
    GmmFvSettings,
    VladSettings,
    require,
)
from encoders.stream_specs import (
    FRAME,
    LEAST_FLOW_PX,
    SPECS,
    FlowWindow,
    Scaling,
    StreamSpec,
    Window,
)
from pipelines.settings_text import near, parsed, split_entry, split_setting


class ConfigError(ValueError):
    """A setting or an input that cannot be right; the message is meant for the user as it stands."""


class RunError(Exception):
    """A run that cannot go on because of what the videos hold; meant for the user as it stands."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What to do where videos and labels do not match: stop, leave them out, or encode without label."""

    unlabelled: Literal["error", "skip", "encode"] = "error"
    missing: Literal["error", "skip"] = "error"


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which videos train and which test (METHODS 4).

    auto:            `given` where the labels have a split column, else `group_kfold` where they have a
                     group column, else `random`.
    given:           the split column says train, test or unused; `name` is the column, "split" where it is empty.
                     Benchmarks with several splits have a column for each (jobs/average_splits.py).
    random:          test_fraction of the groups, or of each class where there are no groups.
    leave_one_group_out, group_kfold: every video is tested once, with its group left out of training.
    """

    kind: Literal["auto", "given", "random", "leave_one_group_out", "group_kfold"] = "auto"
    name: str = ""
    test_fraction: float = 0.5
    num_folds: int = 4

    def __post_init__(self) -> None:
        require(0 < self.test_fraction < 1, "split.test_fraction", "0 < x < 1", self.test_fraction)
        require(self.num_folds >= 2, "split.num_folds", "at least 2", self.num_folds)
        # It becomes part of a file name.
        require(
            re.fullmatch(r"[0-9A-Za-z_.-]*", self.name) is not None,
            "split.name",
            "letters, digits, and _ . - alone",
            self.name,
        )
        require(
            not self.name or self.kind in ("auto", "given"),
            "split.name",
            "a name only where split.kind is given or auto",
            self.name,
        )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of a video are described (METHODS 1). Each policy reads only its own fields.

    uniform:   num_frames spread evenly over the video (DQ 5.2: 25).
    interval:  one frame every interval_s seconds (VU 5.4.1: 3 s).
    fps:       `fps` frames per second of the first max_duration_s seconds (VU 3.4.1: 1 fps, 300 s).
    segments:  num_frames equal segments, frames_per_segment consecutive frames from the middle of each
               (VU 5.3.4).
    keyframes: the key frames nearest to the times that `interval_s` gives, each decoded alone; none
               farther from its time than keyframe_tolerance_s (0: at any distance).
    """

    policy: Literal["uniform", "interval", "fps", "segments", "keyframes"] = "interval"
    num_frames: int = 25
    interval_s: float = 3.0
    fps: float = 1.0
    max_duration_s: float = 300.0
    frames_per_segment: int = 2
    keyframe_tolerance_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_frames", "frames_per_segment"):
            require(getattr(self, name) >= 1, f"sampling.{name}", "at least 1", getattr(self, name))
        for name in ("interval_s", "fps", "max_duration_s"):
            require(getattr(self, name) > 0, f"sampling.{name}", "more than 0", getattr(self, name))
        tolerance_s = self.keyframe_tolerance_s
        require(tolerance_s >= 0, "sampling.keyframe_tolerance_s", "at least 0", tolerance_s)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a decoded frame becomes: resize_px x resize_px (aspect ratio not kept, as VU 5.4.1), then the
    centre crop_px x crop_px.

    views: the crops of a frame that are described: the centre; it and its mirror image; or ten, the centre and
        the four corners, each with its mirror image (DQ Table 4, VU 5.4.2).
    """

    resize_px: int = 256
    crop_px: int = 224
    views: Literal["centre", "mirror", "ten"] = "centre"

    @property
    def decoded_px(self) -> int:
        """A side of what is kept of a decoded frame: its centre, of which all views are cut."""
        return self.resize_px if self.views == "ten" else self.crop_px

    def __post_init__(self) -> None:
        require(self.crop_px >= 1, "picture.crop_px", "at least 1", self.crop_px)
        require(
            self.resize_px >= self.crop_px,
            "picture.resize_px",
            f"at least picture.crop_px = {self.crop_px}",
            self.resize_px,
        )


@dataclass(frozen=True, kw_only=True)
class Decode:
    """The decoder, and the budget of one segment; what goes over it becomes a failed row.

    timeout_s: for the whole segment; its optical flow gets time of its own (`pipelines.flow.limit_s`).
    frame_timeout_s: between two signs of life, such as frames.
    """

    decoder: Literal["pyav", "decord"] = "pyav"
    timeout_s: float = 120.0
    frame_timeout_s: float = 30.0
    memory_bytes: int = 4 * 2**30
    max_frame_px: int = 64 * 2**20

    def __post_init__(self) -> None:
        for name in ("timeout_s", "frame_timeout_s", "memory_bytes", "max_frame_px"):
            require(getattr(self, name) > 0, f"decode.{name}", "more than 0", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Describe:
    """The network and how its maps become descriptors.

    nodes: names of the network and of the papers; `input` is the normalised picture itself, `stages` the last
        node before each loss of resolution (VU 5.3.2).
    streams: what is kept of each node's maps (docs/streams.md): pyramids of the maps, of their differences and of
        rank pooling, of maps of optical flow, or every position, which `concat` and DQ's AVE read. kind, or kind@field=value:field=value
        with the fields of `encoders.stream_specs.SPECS`, lists with /. A node without spatial extent, such as fc7,
        gives one stream "global" instead, which `ga` reads.
    weights: a torchvision weights name, a file or URI of a state dict, or random:SEED.
    batch_frames: frames of one forward pass; 0 means: few on a CPU, on a GPU what its memory holds.
    batch_segments: segments an actor with a GPU takes at a time, so that frames of several videos fill a forward pass.
    precision: of the forward pass; auto is float32 on a CPU and bfloat16 on a GPU.
    compile: whether torch.compile makes the network faster, which takes a minute at the start of each actor.
    """

    backbone: str = "vgg19"
    nodes: tuple[str, ...] = ("pool5",)
    weights: str = "IMAGENET1K_V1"
    streams: tuple[str, ...] = ("appearance", "difference")
    scaling: Scaling = "per_position"
    spp_levels: tuple[int, ...] = (6, 3, 2, 1)
    batch_frames: int = 0
    batch_segments: int = 8
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False

    @property
    def specs(self) -> tuple[tuple[str, StreamSpec], ...]:
        """Kind and fields of each entry of `streams`."""
        return tuple(self._spec(entry) for entry in self.streams)

    @property
    def used_nodes(self) -> tuple[str, ...]:
        """The nodes of all streams, as named."""
        nodes = (node for _, spec in self.specs for node in spec.nodes or self.nodes)
        return tuple(dict.fromkeys(nodes))

    @property
    def windows(self) -> tuple[Window, ...]:
        """What frames are decoded for: the sampled ones, and those that the streams read beside them."""
        return tuple(dict.fromkeys((FRAME, *(spec.window for _, spec in self.specs))))

    def _spec(self, entry: str) -> tuple[str, StreamSpec]:
        kind, parts = split_entry(entry)
        with _at(f"describe.streams={entry}"):
            if kind not in SPECS:
                raise ValueError(f"expected one of {list(SPECS)}, got {kind!r}")
            changes = {}
            for name, equals, text in parts:
                if not equals or name in changes:
                    raise ValueError("expected kind@field=value:field=value, each field once")
                changes[name] = parsed(SPECS[kind], name, text.replace("/", ","))
            return kind, dataclasses.replace(SPECS[kind], **changes)

    def __post_init__(self) -> None:
        for name in ("nodes", "streams", "spp_levels"):
            value = getattr(self, name)
            require(
                len(value) > 0 and len(set(value)) == len(value),
                f"describe.{name}",
                "one or more, each once",
                value,
            )
        require(
            all(side >= 1 for side in self.spp_levels),
            "describe.spp_levels",
            "sides of at least 1",
            self.spp_levels,
        )
        for name, least in (("batch_frames", 0), ("batch_segments", 1)):
            value = getattr(self, name)
            require(value >= least, f"describe.{name}", f"at least {least}", value)
        for entry in self.streams:
            self._spec(entry)


FIT_WORKER_BYTES = 2 * 2**30
"""Memory of a process that fits codebooks, beside twice its share of the sample."""

TEAM_BYTES = 2**26
"""Of samples to fit codebooks on: less takes a team no longer than its processes take to start."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The sample that codebooks are fitted on, and the workers that fit them (Ray Train).

    num_frames: frames drawn from the training videos for each stream (50 descriptors each by default).
    num_workers: that fit a codebook together, each on its share of the sample; its last bits depend on it.
    codebooks_at_once: each on num_workers workers of its own; 0: as many as pay, and as there are CPUs, or GPUs, and
        memory for. Nothing depends on it.
    checkpoint_s: seconds between checkpoints of a running fit.
    """

    num_frames: int = 20_000
    num_workers: int = 1
    codebooks_at_once: int = 0
    checkpoint_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("num_frames", "num_workers", "checkpoint_s"):
            require(getattr(self, name) > 0, f"fit.{name}", "more than 0", getattr(self, name))
        at_once = self.codebooks_at_once
        require(at_once >= 0, "fit.codebooks_at_once", "0 or more", at_once)

    def teams(self, sample_bytes: Sequence[float], places: float, memory: float = inf) -> int:
        """How many codebooks are fitted at once.

        Args:
            sample_bytes: of each codebook's sample. places: CPUs, or GPUs, for a worker each. memory: bytes for all workers.
        """
        team_bytes = self.num_workers * FIT_WORKER_BYTES + 2 * max(sample_bytes)
        room = min(places // self.num_workers, memory // team_bytes)
        pays = sum(sample_bytes) // TEAM_BYTES
        return min(len(sample_bytes), self.codebooks_at_once or max(1, int(min(room, pays))))


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Which encodings are made of every stream, and how their vectors are stored.

    encoders: registry names, or variants such as vlad@num_centroids=64 (see `Config.variant`).
    normalisation: of finished vectors; signed_sqrt and none keep their lengths. vlad.intra has one of its own. Variants may
        have another: ave@normalisation=signed_sqrt.
    temporal_pyramid: into how many parts of equal duration each level cuts a video; 1,2 is the whole video and its
        halves, three vectors side by side. Variants may have their own: vlad@temporal_pyramid=1/2.
    attention: write ATTENTION, for encoders that have one (fv_vae).
    """

    encoders: tuple[str, ...] = ("ave", "vlad", "gmm_fv", "fv_vae")
    normalisation: Literal["signed_sqrt_l2", "signed_sqrt", "l2", "none"] = "signed_sqrt_l2"
    temporal_pyramid: tuple[int, ...] = (1,)
    dtype: Literal["float32", "float16"] = "float32"
    attention: bool = True
    batch_videos: int = 8

    def __post_init__(self) -> None:
        require(
            len(self.encoders) > 0 and len(set(self.encoders)) == len(self.encoders),
            "encode.encoders",
            "one or more, each once",
            self.encoders,
        )
        parts = self.temporal_pyramid
        require(
            len(parts) > 0 and len(set(parts)) == len(parts) and min(parts) >= 1,
            "encode.temporal_pyramid",
            "one or more numbers of parts, each once and at least 1",
            parts,
        )
        require(self.batch_videos >= 1, "encode.batch_videos", "at least 1", self.batch_videos)


@dataclass(frozen=True, kw_only=True)
class Classify:
    """One-vs-rest linear SVM: C = 100 (DQ 5.2), quadratic regulariser and hinge loss (FK 4.3).

    c: one value, or several of which each fold takes the one with the best mAP on held-out groups of its
        training videos.
    class_weight: balanced gives a class's own videos and all others the same total cost.
    form: gram solves on the matrix of inner products of the training vectors, primal on the weights, with
        the vectors streamed; auto takes gram where the matrix fits into memory.
    tolerance: relative gap between primal and dual objective at which a class is solved.
    fusions: rules by which encoders and streams are fused into results of their own (docs/fusion.md); all but
        kernel_sum and early need the Gram matrix.
        auto:            late_weighted where there is a Gram matrix, else none.
        kernel_sum:      SVMs on the mean of the cosine-normalised kernels.
        early:           the same under the name of what it equals, concatenated unit vectors.
        kernel_weighted: the same with a weight for each kernel, by its log loss on inner folds.
        kernel_selected: as kernel_sum, of the parts that greedy forward selection takes on inner folds.
        calibrated:      mean of the parts' probabilities, Platt's sigmoids of scores of inner folds.
        late_weighted:   mean of the parts' scores, with weights as those of kernel_weighted.
    fusion_groups: what is fused with each other. encoders: all streams of each encoder; all: all encoders and streams;
        NAME=PATTERN+PATTERN: the results whose ENCODER-STREAM a pattern (with * and ?) matches.
    """

    c: tuple[float, ...] = (100.0,)
    loss: Literal["hinge", "squared_hinge"] = "hinge"
    class_weight: Literal["none", "balanced"] = "none"
    form: Literal["auto", "gram", "primal"] = "auto"
    tolerance: float = 1e-6
    fusions: tuple[
        Literal[
            "auto",
            "kernel_sum",
            "early",
            "kernel_weighted",
            "kernel_selected",
            "calibrated",
            "late_weighted",
        ],
        ...,
    ] = ("auto",)
    fusion_groups: tuple[str, ...] = ("encoders", "all")

    @property
    def words(self) -> str:
        """For a page: what the classifiers minimise."""
        c = " or ".join(f"{c:g}" for c in self.c)
        balanced = ", classes balanced" if self.class_weight == "balanced" else ""
        return f"C = {c}, {self.loss}{balanced}"

    def __post_init__(self) -> None:
        require(
            len(self.c) > 0 and len(set(self.c)) == len(self.c),
            "classify.c",
            "one or more values, each once",
            self.c,
        )
        for c in self.c:
            require(0 < c < float("inf"), "classify.c", "more than 0", c)
        require(
            1e-12 <= self.tolerance <= 0.1, "classify.tolerance", "1e-12 to 0.1", self.tolerance
        )
        for name in ("fusions", "fusion_groups"):
            value = getattr(self, name)
            require(len(set(value)) == len(value), f"classify.{name}", "each once", value)
        rules = self.fusions
        require("auto" not in rules or len(rules) == 1, "classify.fusions", "auto alone", rules)
        require(
            self.form != "primal" or {*rules} <= {"auto", "kernel_sum", "early"},
            "classify.fusions",
            "auto, or kernel_sum and early, where classify.form is primal",
            rules,
        )
        for group in self.fusion_groups:
            # A name becomes part of a file name.
            require(
                group in ("encoders", "all")
                or re.fullmatch(r"[0-9A-Za-z_]+=\S+", group) is not None,
                "classify.fusion_groups",
                "encoders, all, or NAME=PATTERN+PATTERN with a name of letters, digits and _",
                group,
            )
        names = [group.partition("=")[0] for group in self.fusion_groups]
        require(len(set(names)) == len(names), "classify.fusion_groups", "each name once", names)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Metrics, and the late fusions of an encoder's streams (METHODS 4).

    top_k: K of top-K accuracy; with several labels a video, of Hit@K.
    fusions: those of which METRICS get numbers, where the streams and folds allow them.
        given:      mean of the scores by `stream_weights` (DQ 5.3).
        two_stream: appearance 1, motion (differences, rank pooling and flow) 1.5, after L1 normalisation (VU 5.3.3).
        chosen:     for each fold the weights that are best on the others; a split into two has none.
    stream_weights: of the streams, in the order of describe.nodes x describe.streams; empty means equal.
    bootstrap: draws of the intervals; 0 leaves them out.
    """

    top_k: tuple[int, ...] = (3, 5)
    fusions: tuple[Literal["given", "two_stream", "chosen"], ...] = (
        "given",
        "two_stream",
        "chosen",
    )
    stream_weights: tuple[float, ...] = ()
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        require(all(k >= 1 for k in self.top_k), "evaluate.top_k", "at least 1 each", self.top_k)
        require(
            len(set(self.fusions)) == len(self.fusions),
            "evaluate.fusions",
            "each once",
            self.fusions,
        )
        weights = self.stream_weights
        require(
            not weights or (min(weights) >= 0 and sum(weights) > 0),
            "evaluate.stream_weights",
            "none below 0, and not all 0",
            weights,
        )
        require(self.bootstrap >= 0, "evaluate.bootstrap", "0 or more", self.bootstrap)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What belongs to the run as a whole.

    max_failed_fraction: above this share of failed segments the job exits non-zero, after writing all.
    """

    seed: int = 0
    max_failed_fraction: float = 0.75

    def __post_init__(self) -> None:
        require(
            0 <= self.max_failed_fraction <= 1,
            "run.max_failed_fraction",
            "0 to 1",
            self.max_failed_fraction,
        )


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Sizes of the actor pools; 0 means: from what the cluster has when the step starts, or may grow to.

    max_cpus, max_gpus: what an autoscaling cluster may grow to, all workers together; 0 CPUs means that it does not grow.
        Ray does not tell its own limits.
    node_wait_s: how long a growing cluster may take to start a node, and so how much longer a step waits without progress.
    grow_warning_s: a pool that is smaller than it should be for so long, although work waits, is warned of.
    allow_missing_gpu: an actor that holds a GPU which torch does not see goes on with the CPU, instead of ending the run.
    placement: separate has a stage of decoders that feeds the describers, also from nodes without a GPU; together has
        each describer decode its own frames, as always on a growing cluster without GPUs.
    price_per_cpu_hour and price_per_gpu_hour: what the report counts the steps' cost with; 0 gives none.
    """

    num_decoders: int = 0
    num_describers: int = 0
    num_encoders: int = 0
    max_cpus: int = 0
    max_gpus: int = 0
    node_wait_s: int = 1800
    grow_warning_s: float = 300.0
    allow_missing_gpu: bool = False
    placement: Literal["separate", "together"] = "separate"
    no_progress_timeout_s: int = 600
    price_per_cpu_hour: float = 0.0
    price_per_gpu_hour: float = 0.0
    currency: str = "USD"

    @property
    def grows(self) -> bool:
        """Whether nodes come and go while the run works."""
        return self.max_cpus > 0

    def __post_init__(self) -> None:
        for name in ("num_decoders", "num_describers", "num_encoders", "max_cpus", "max_gpus"):
            value = getattr(self, name)
            require(value >= 0, f"cluster.{name}", "0 or more", value)
        require(
            self.max_cpus > 0 or self.max_gpus == 0,
            "cluster.max_gpus",
            "0 where cluster.max_cpus is not given",
            self.max_gpus,
        )
        for name in ("node_wait_s", "grow_warning_s", "no_progress_timeout_s"):
            value = getattr(self, name)
            require(0 < value < float("inf"), f"cluster.{name}", "more than 0", value)
        for name in ("price_per_cpu_hour", "price_per_gpu_hour"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), f"cluster.{name}", "0 or more", value)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `--plan` plans for; a run reads none of it.

    num_cpus, num_gpus: of the cluster, all nodes together; 0 CPUs means this machine with its GPUs.
    gpu: the kind of those GPUs, as in the price table.
    prices: another price table, laid out as pipelines/prices.toml.
    probe_s: about how long videos and encoders are tried for. sample: most videos whose header is read.
    """

    num_cpus: int = 0
    num_gpus: int = 0
    gpu: str = "l4"
    prices: str = ""
    probe_s: float = 20.0
    sample: int = 256

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus"):
            require(getattr(self, name) >= 0, f"plan.{name}", "0 or more", getattr(self, name))
        require(
            self.num_cpus > 0 or self.num_gpus == 0,
            "plan.num_gpus",
            "0 where plan.num_cpus is not given",
            self.num_gpus,
        )
        require(0 < self.probe_s < float("inf"), "plan.probe_s", "more than 0", self.probe_s)
        require(self.sample >= 1, "plan.sample", "at least 1", self.sample)


_OF_ENCODE = ("temporal_pyramid", "normalisation")
"""Fields of section encode that a variant may have a value of its own for."""


@dataclass(frozen=True)
class Variant:
    """One entry of encode.encoders: what is fitted, and what the classifier is given.

    Attributes:
        name: as in encode.encoders; names results.
        base: the registry key.
        codebook: the name without what only concerns the classifier; names codebooks and encodings.
        settings: the encoder's record, None where it has none.
        temporal_pyramid, normalisation: see `Encode`.
        compress: of the finished vectors.
    """

    name: str
    base: str
    codebook: str
    settings: Any
    temporal_pyramid: tuple[int, ...]
    normalisation: str
    compress: CompressSettings

    @property
    def uses_labels(self) -> bool:
        """Whether the codebook depends on labels, and so must be fitted without the test fold."""
        return getattr(self.settings, "uses_labels", False)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run is made from except its inputs and its output URI."""

    recipe: str = "fcvid"
    manifest: Manifest = field(default_factory=Manifest)
    split: Split = field(default_factory=Split)
    sampling: Sampling = field(default_factory=Sampling)
    picture: Picture = field(default_factory=Picture)
    decode: Decode = field(default_factory=Decode)
    describe: Describe = field(default_factory=Describe)
    fit: Fit = field(default_factory=Fit)
    ave: AveSettings = field(default_factory=AveSettings)
    vlad: VladSettings = field(default_factory=VladSettings)
    gmm_fv: GmmFvSettings = field(default_factory=GmmFvSettings)
    fv_vae: FvVaeSettings = FV_VAE_PRESETS["paper"]
    bilinear: BilinearSettings = field(default_factory=BilinearSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    encode: Encode = field(default_factory=Encode)
    compress: CompressSettings = field(default_factory=CompressSettings)
    classify: Classify = field(default_factory=Classify)
    evaluate: Evaluate = field(default_factory=Evaluate)
    run: Run = field(default_factory=Run)
    cluster: Cluster = field(default_factory=Cluster)
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        for name in self.encode.encoders:
            variant = self.variant(name)
            used = getattr(variant.settings, "levels", ())
            require(
                set(used) <= set(self.describe.spp_levels),
                f"encode.encoders={name}: {variant.base}.levels",
                f"some of describe.spp_levels {self.describe.spp_levels}",
                used,
            )
        flows = [w for w in self.describe.windows if isinstance(w, FlowWindow)]
        require(
            not flows or self.picture.resize_px >= LEAST_FLOW_PX,
            "picture.resize_px",
            f"at least {LEAST_FLOW_PX} px where describe.streams has flow",
            self.picture.resize_px,
        )
        apart = [w for w in self.describe.windows if not w.is_sampled]
        require(
            not apart or self.sampling.policy != "keyframes",
            "describe.streams",
            "no gap and no flow where sampling.policy is keyframes, which decodes nothing but key frames",
            self.describe.streams,
        )

    def variant(self, name: str) -> Variant:
        """What a name of encode.encoders means: an encoder with settings of its own.

        `base@field=value:field=value` changes fields of the section `base`, lists written with / ; fields
        that begin with `compress.` change that section, `temporal_pyramid` and `normalisation` are those of section `encode`.

        Raises:
            ValueError: malformed, or a field or value that the section does not have.
        """
        base, parts = split_entry(name)
        changes: dict[str, dict[str, object]] = {base: {}, "encode": {}, "compress": {}}
        own = []
        for path, equals, text in parts:
            section, _, field_name = path.rpartition(".")
            changed = section or ("encode" if path in _OF_ENCODE else base)
            record = getattr(self, changed, None)
            with _at(f"encode.encoders={name}"):
                if (
                    not equals
                    or section not in ("", "compress")
                    or not dataclasses.is_dataclass(record)
                ):
                    raise ValueError("expected encoder@field=value:field=value")
                changes[changed][field_name] = parsed(record, field_name, text.replace("/", ","))
            if not section:
                own.append(f"{path}={text}")
        settings = getattr(self, base, None)
        encode = dataclasses.replace(self.encode, **changes["encode"])
        return Variant(
            name=name,
            base=base,
            codebook=f"{base}@{':'.join(own)}" if own else base,
            settings=settings and dataclasses.replace(settings, **changes[base]),
            temporal_pyramid=encode.temporal_pyramid,
            normalisation=encode.normalisation,
            compress=dataclasses.replace(self.compress, **changes["compress"]),
        )

    def with_settings(self, settings: list[str]) -> Self:
        """This configuration after `section.field=value` (or fv_vae=PRESET) settings, in their order.

        The values of a section are checked together, so their order does not matter.

        Raises:
            ConfigError: a setting that is malformed, unknown, of the wrong type or out of range.
        """
        sections = [f.name for f in dataclasses.fields(self) if f.name != "recipe"]
        records: dict[str, object] = {}
        changes: dict[str, dict[str, object]] = {}
        for setting in settings:
            with _at(setting):
                section, name, text = split_setting(setting)
                if section not in sections:
                    raise ValueError(f"no section {section!r}{near(section, sections)}")
                if not name:
                    records[section], changes[section] = _preset(section, text), {}
                else:
                    value = parsed(getattr(self, section), name, text)
                    changes.setdefault(section, {})[name] = value
        for section, values in changes.items():
            ours = [s for s in settings if s.partition(".")[0].strip() == section]
            with _at(" --set ".join(ours)):
                record = records.get(section, getattr(self, section))
                records[section] = dataclasses.replace(record, **values)
        with _at(" --set ".join(settings)):
            return dataclasses.replace(self, **records)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for run.json and file footers."""
        return dataclasses.asdict(self)


def digest(*parts: object) -> str:
    """Twelve hex digits that name whatever was made from these JSON-able parts and records."""

    def plain(value: object) -> object:
        return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)

    text = json.dumps(parts, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _preset(section: str, text: str) -> FvVaeSettings:
    if section != "fv_vae":
        raise ValueError("expected section.field=value, got no field")
    if text not in FV_VAE_PRESETS:
        raise ValueError(f"expected one of {sorted(FV_VAE_PRESETS)}, got {text!r}")
    return FV_VAE_PRESETS[text]


@contextmanager
def _at(settings: str) -> Iterator[None]:
    """Of a ValueError, says which settings it is about."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--set {settings}: {error}") from error
