"""The sections of a run's configuration: plain values, checked before the cluster is touched.

Units are in the names. A wrong value raises ValueError with the section, what was expected and what was got. Sections of the
encoders are in encoders/settings.py. No torch and no Ray here, so that mistakes show at once.
"""

import dataclasses
import re
from dataclasses import dataclass
from math import inf
from typing import Literal

from encoders.settings import at_least, each_once, more_than_0, one_or_more, require
from encoders.stream_specs import FRAME, SPECS, Scaling, StreamSpec, Window
from pipelines.errors import at_setting
from pipelines.settings.text import parsed, split_entry


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
        at_least(2, self, "split", "num_folds")
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
    fps:       `fps` frames per second of the first max_duration_s seconds (VU 3.4.1: 1 fps, 300 s), at most 48 hours.
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
        at_least(1, self, "sampling", "num_frames", "frames_per_segment")
        more_than_0(self, "sampling", "interval_s", "fps", "max_duration_s")
        # Every 64 sampled frames of a video are a row of SEGMENTS.
        for name, most in (("num_frames", 1_000_000), ("frames_per_segment", 1000), ("fps", 1000)):
            value = getattr(self, name)
            require(value <= most, f"sampling.{name}", f"at most {most}", value)
        require(self.interval_s >= 0.001, "sampling.interval_s", "at least 0.001", self.interval_s)
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
        at_least(1, self, "picture", "crop_px")
        require(
            self.resize_px >= self.crop_px,
            "picture.resize_px",
            f"at least picture.crop_px = {self.crop_px}",
            self.resize_px,
        )


@dataclass(frozen=True, kw_only=True)
class Decode:
    """The decoder, and the budget of one segment; what goes over it becomes a failed row.

    timeout_s: for the whole segment; its optical flow gets time of its own (`pipelines.video.flow.limit_s`).
    frame_timeout_s: between two signs of life, such as frames.
    """

    decoder: Literal["pyav", "decord"] = "pyav"
    timeout_s: float = 120.0
    frame_timeout_s: float = 30.0
    memory_bytes: int = 4 * 2**30
    max_frame_px: int = 64 * 2**20

    def __post_init__(self) -> None:
        more_than_0(self, "decode", "timeout_s", "frame_timeout_s", "memory_bytes", "max_frame_px")


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
        with at_setting(f"describe.streams={entry}"):
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
            one_or_more(f"describe.{name}", getattr(self, name))
        require(
            all(side >= 1 for side in self.spp_levels),
            "describe.spp_levels",
            "sides of at least 1",
            self.spp_levels,
        )
        require(self.batch_frames >= 0, "describe.batch_frames", "at least 0", self.batch_frames)
        at_least(1, self, "describe", "batch_segments")
        for entry in self.streams:
            self._spec(entry)


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
        more_than_0(self, "fit", "num_frames", "num_workers", "checkpoint_s")
        at_least(0, self, "fit", "codebooks_at_once")


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
        one_or_more("encode.encoders", self.encoders)
        parts = self.temporal_pyramid
        require(
            len(parts) > 0 and len(set(parts)) == len(parts) and min(parts) >= 1,
            "encode.temporal_pyramid",
            "one or more numbers of parts, each once and at least 1",
            parts,
        )
        at_least(1, self, "encode", "batch_videos")


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
        one_or_more("classify.c", self.c, "one or more values")
        for c in self.c:
            require(0 < c < inf, "classify.c", "more than 0", c)
        require(
            1e-12 <= self.tolerance <= 0.1, "classify.tolerance", "1e-12 to 0.1", self.tolerance
        )
        for name in ("fusions", "fusion_groups"):
            each_once(f"classify.{name}", getattr(self, name))
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
        two_stream: appearance 1, motion (differences, rank pooling and flow) 1.5, each in equal shares of its streams,
            after L1 normalisation (VU 5.3.3).
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
        each_once("evaluate.fusions", self.fusions)
        weights = self.stream_weights
        require(
            not weights or (min(weights) >= 0 and sum(weights) > 0),
            "evaluate.stream_weights",
            "none below 0, and not all 0",
            weights,
        )
        at_least(0, self, "evaluate", "bootstrap")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What belongs to the run as a whole.

    seed: of all that is drawn, 0 to 2**32 - 1.
    max_failed_fraction: above this share of failed segments the job exits non-zero, after writing all.
    """

    seed: int = 0
    max_failed_fraction: float = 0.75

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "run.seed", "0 to 2**32 - 1", self.seed)
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
    grow_warning_s: a warning is logged of a pool that stays smaller than it should be for so long although work waits.
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
        pools = ("num_decoders", "num_describers", "num_encoders")
        at_least(0, self, "cluster", *pools, "max_cpus", "max_gpus")
        require(
            self.max_cpus > 0 or self.max_gpus == 0,
            "cluster.max_gpus",
            "0 where cluster.max_cpus is not given",
            self.max_gpus,
        )
        for name in ("node_wait_s", "grow_warning_s", "no_progress_timeout_s"):
            value = getattr(self, name)
            require(0 < value < inf, f"cluster.{name}", "more than 0", value)
        for name in ("price_per_cpu_hour", "price_per_gpu_hour"):
            value = getattr(self, name)
            require(0 <= value < inf, f"cluster.{name}", "0 or more", value)


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
        at_least(0, self, "plan", "num_cpus", "num_gpus")
        require(
            self.num_cpus > 0 or self.num_gpus == 0,
            "plan.num_gpus",
            "0 where plan.num_cpus is not given",
            self.num_gpus,
        )
        require(0 < self.probe_s < inf, "plan.probe_s", "more than 0", self.probe_s)
        at_least(1, self, "plan", "sample")
