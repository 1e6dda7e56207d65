"""The sections of a run's configuration; each field declares its own bounds (`encoders.fields`).

pydantic checks them wherever one is made. Sections of the encoders are in encoders/settings.py. No
torch and no Ray here, so that mistakes show at once. docs/settings.md is made of them by `python -m
pipelines.settings.page`.
"""

import re
from typing import Annotated, Literal

from pydantic.dataclasses import dataclass

from encoders.fields import (
    COUNTABLE,
    EACH_ONCE,
    ONE_OR_MORE,
    TIMED,
    Bytes,
    Changes,
    Count,
    CountOrZero,
    NotNegative,
    Pixels,
    Positive,
    Record,
    Rule,
    Seconds,
    Unit,
    WholeSeconds,
    at_least,
    at_most,
    between,
    require,
    setting,
)
from encoders.settings import Side
from encoders.stream_specs import (
    FRAME,
    LEAST_FLOW_PX,
    MOST_FLOWS,
    MOST_FRAMES,
    SPECS,
    ClipSpec,
    Scaling,
    StreamSpec,
    Window,
)
from pipelines.errors import near
from pipelines.settings.text import changed, parsed, split_entry

FileName = Annotated[
    str,
    Rule(
        "letters, digits, and _ . - alone",
        lambda name: re.fullmatch(r"[0-9A-Za-z_.-]*", name) is not None,
    ),
]
"""Text that becomes part of a file name."""

FusionGroup = Annotated[
    str,
    Rule(
        "encoders, all, or NAME=PATTERN+PATTERN with a name of letters, digits and _",
        lambda group: (
            group in ("encoders", "all") or re.fullmatch(r"[0-9A-Za-z_]+=\S+", group) is not None
        ),
    ),
]
"""A name, which becomes part of a file name, and what it stands for."""

ExternalVectors = Annotated[
    str,
    Rule(
        "NAME:URI with a name of letters, digits and _",
        lambda entry: re.fullmatch(r"[0-9A-Za-z_]+:\S+", entry) is not None,
    ),
]
"""A name, and the file of its vectors."""


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """The treatment of videos and labels that do not match."""

    unlabelled: Literal["error", "skip", "encode"] = setting(
        "error",
        "Videos without a label: stop, leave them out, or encode them without label.",
        Changes.WHICH,
    )
    missing: Literal["error", "skip"] = setting(
        "error", "Labels without a video: stop, or leave them out.", Changes.WHICH
    )
    media: Literal["auto", "videos", "images"] = setting(
        "auto",
        "What is taken of a folder or glob: videos, or images, which are videos of one frame; "
        "auto: videos where there are some, else images. A manifest may name both.",
        Changes.WHICH,
    )
    stretches: Literal["auto", "use", "ignore"] = setting(
        "auto",
        "Rows of the labels with start_s and end_s. use: each is a video of its own, that stretch "
        "of the file; ignore: the label is the whole file's; auto: use, but ignore for "
        "ActivityNet, whose videos are classified untrimmed.",
        Changes.WHICH,
    )


@dataclass(frozen=True, kw_only=True)
class Split(Record):
    """The split into training and test videos (METHODS 4).

    Digests hold the folds that it comes to.
    """

    kind: Literal["auto", "given", "random", "leave_one_group_out", "group_kfold"] = setting(
        "auto",
        "auto: `given` where the labels have a split column, else `group_kfold` where they have a "
        "group column, else `random`. given: the split column says train, test or unused. random: "
        "test_fraction of the groups, or of each class where there are no groups. "
        "leave_one_group_out, group_kfold: every video is tested once, with its group left out of "
        "training.",
        Changes.CONTENT,
    )
    name: FileName = setting(
        "",
        'The split column, of `given`; empty is "split". Benchmarks with several splits have a '
        "column for "
        "each (jobs/average_splits.py).",
        Changes.CONTENT,
    )
    test_fraction: Annotated[float, Rule("0 < x < 1", lambda x: 0 < x < 1)] = setting(
        0.5, "Share of test videos, of `random`.", Changes.CONTENT
    )
    num_folds: Annotated[int, at_least(2), COUNTABLE] = setting(
        4, "Folds of `group_kfold`.", Changes.CONTENT
    )

    def __post_init__(self) -> None:
        require(
            not self.name or self.kind in ("auto", "given"),
            "name",
            "a name only where split.kind is given or auto",
            self.name,
        )


@dataclass(frozen=True, kw_only=True)
class Sampling(Record):
    """The choice of frames that are described (METHODS 1).

    Each policy reads only its own fields.
    """

    policy: Literal["uniform", "interval", "fps", "segments", "keyframes"] = setting(
        "interval",
        "uniform: num_frames spread evenly over the video (DQ 5.2: 25). interval: one frame every "
        "interval_s seconds (VU 5.4.1: 3 s). fps: `fps` frames per second of the first "
        "max_duration_s seconds (VU 3.4.1: 1 fps, 300 s), at most 48 hours. segments: num_frames "
        "equal segments, frames_per_segment consecutive frames from the middle of each (VU "
        "5.3.4). keyframes: the key frames nearest to the times that interval_s gives, each "
        "decoded alone.",
    )
    # Every 64 sampled frames of a video are a row of SEGMENTS.
    num_frames: Annotated[int, at_least(1), at_most(1_000_000), Unit("frames")] = setting(
        25, "Frames of a video, of `uniform`; its segments, of `segments`."
    )
    interval_s: Annotated[float, at_least(0.001), TIMED, Unit("s")] = setting(
        3.0, "Seconds between two frames."
    )
    fps: Annotated[Positive, at_most(1000), Unit("frames/s")] = setting(1.0, "Frames per second.")
    max_duration_s: Seconds = setting(300.0, "What is read of a video by `fps`.")
    frames_per_segment: Annotated[int, at_least(1), at_most(1000), Unit("frames")] = setting(
        2, "Consecutive frames of a segment."
    )
    keyframe_tolerance_s: Annotated[float, at_least(0), TIMED, Unit("s")] = setting(
        0.0, "No key frame is farther from its time; 0: at any distance."
    )


@dataclass(frozen=True, kw_only=True)
class Picture(Record):
    """Resizing and cropping of a decoded frame: its box, resize_px x resize_px (aspect ratio not
    kept, as VU 5.4.1), then the centre crop_px x crop_px.
    """

    resize_px: Pixels = setting(256, "Side of the resized frame.")
    crop_px: Pixels = setting(224, "Side of what is cut out of it.")
    views: Literal["centre", "mirror", "ten", "fifty"] = setting(
        "centre",
        "The crops of a frame that are described: the centre; it and its mirror image; ten, "
        "the centre and the four corners, each with its mirror image (DQ Table 4, VU 5.4.2); or "
        "fifty, a grid of 5 x 5, each with its mirror image (FK's AP50).",
    )
    resize: Literal["stretch", "short_side"] = setting(
        "stretch",
        "stretch: to a square; short_side: the shorter side to resize_px, with the proportions of "
        "the picture.",
        added=True,
    )
    box: Literal["ignore", "crop"] = setting(
        "ignore",
        "crop: only the box of each picture is the video, by columns box_x, box_y, box_width and "
        "box_height of the labels or of the manifest, in px of the picture as shown.",
        added=True,
    )
    box_margin: Annotated[float, between(0, 10)] = setting(
        0.0,
        "What is added to each side of the box, as a share of its width and height.",
        added=True,
    )
    scales: Annotated[
        tuple[Pixels, ...],
        Rule("sides in px, ascending", lambda sides: [*sides] == sorted(set(sides))),
    ] = setting(
        (),
        "Sides to which each picture is resized, one forward pass each, instead of resize_px and "
        "crop_px (FK: 227,322,454,643,908,1285,1816; VU 2: 224,448). A stream's rows are those of "
        "all scales, smallest first; encoders pool them by `scales` and `sides`.",
        added=True,
    )

    @property
    def decoded_px(self) -> int:
        """Return the side of the centre of a decoded frame, from which all views are cut."""
        return self.resize_px if self.views in ("ten", "fifty") else self.crop_px

    @property
    def decoded_shape(self) -> tuple[int, int]:
        """Return height and width of what is kept of a decoded frame.

        Of several scales it is one row with the pixels of each, row by row.
        """
        if self.scales:
            return 1, sum(side**2 for side in self.scales)
        return self.decoded_px, self.decoded_px

    @property
    def sides(self) -> tuple[int, ...]:
        """Return the sides at which the network sees a picture, smallest first."""
        return self.scales or (self.crop_px,)

    def __post_init__(self) -> None:
        require(
            not self.scales or self.views in ("centre", "mirror"),
            "views",
            "centre or mirror where picture.scales is given",
            self.views,
        )
        require(
            self.box == "crop" or not self.box_margin,
            "box_margin",
            "0 where picture.box is ignore",
            self.box_margin,
        )
        require(
            self.resize_px >= self.crop_px,
            "resize_px",
            f"at least picture.crop_px = {self.crop_px}",
            self.resize_px,
        )


@dataclass(frozen=True, kw_only=True)
class Decode(Record):
    """The decoder, and the budget of one segment; what goes over it becomes a failed row."""

    decoder: Literal["pyav", "decord"] = setting("pyav", "The library that decodes.")
    timeout_s: Seconds = setting(
        120.0,
        "For a whole segment, at up to full HD; larger pictures get more by their pixels, optical "
        "flow time of its own (`pipelines.video.flow.limit_s`).",
        Changes.NOTHING,
    )
    frame_timeout_s: Seconds = setting(
        30.0,
        "Between two signs of life, such as frames, at up to full HD; more by the pixels of larger "
        "pictures.",
        Changes.NOTHING,
    )
    memory_bytes: Bytes = setting(4 * 2**30, "Memory of the decoding process.", Changes.NOTHING)
    max_frame_px: Annotated[Count, Unit("px")] = setting(
        64 * 2**20, "Pixels of the largest frame that is decoded.", Changes.NOTHING
    )
    accept_old_codecs: bool = setting(
        False,
        "Let `--retry-failed decord` give files that failed to decord, whose codecs are FFmpeg's "
        "of 2018, without its security fixes since then.",
        Changes.NOTHING,
    )


@dataclass(frozen=True, kw_only=True)
class Describe(Record):
    """The network, and the pooling of its maps to descriptors."""

    backbone: str = setting("vgg19", "The network, by its name in torchvision, or timm:NAME.")
    nodes: Annotated[tuple[str, ...], ONE_OR_MORE] = setting(
        ("pool5",),
        "Names of the network and of the papers; `input` is the normalised picture itself, "
        "`stages` the last node before each loss of resolution (VU 5.3.2).",
    )
    weights: str = setting(
        "IMAGENET1K_V1",
        "A torchvision weights name, a file or URI of a state dict, or random:SEED.",
        Changes.CONTENT,
    )
    clip_backbone: str = setting(
        "r3d_18",
        "The network that streams of clips are described by: r3d_18, mc3_18, r2plus1d_18, s3d, "
        "mvit_v2_s, swin3d_t and others of torchvision.models.video, or the encoder of a trained "
        "actionflownet (of width 16 actionflownet_16).",
        Changes.CONTENT,
    )
    clip_weights: str = setting(
        "KINETICS400_V1",
        "Its weights: a torchvision weights name, a file or URI of a state dict, or random:SEED.",
        Changes.CONTENT,
    )
    streams: Annotated[tuple[str, ...], ONE_OR_MORE] = setting(
        ("appearance", "difference"),
        "What is kept of each node's maps (docs/streams.md): pyramids of the maps, of their "
        "differences and of rank pooling, of maps of optical flow, of clips, or every position, "
        "which `concat` and DQ's AVE read. kind, or kind@field=value:field=value, lists with /. A "
        "node without spatial extent, such as fc7, gives one stream "
        '"global" instead, which `ga` reads.',
    )
    scaling: Scaling = setting("per_position", "What maps are divided by before the pyramid.")
    spp_levels: Annotated[tuple[Side, ...], ONE_OR_MORE] = setting(
        (6, 3, 2, 1), "Sides of the levels of the spatial pyramid, in cells."
    )
    pca_components: CountOrZero = setting(
        0,
        "Values of a stored descriptor: a first pass fits a PCA on 256 rows of each of 1,000 "
        "training videos at most (FK 4.3), the second stores its components; 0 stores descriptors "
        "as they are.",
        added=True,
    )
    batch_frames: Annotated[CountOrZero, Unit("frames")] = setting(
        0,
        "Frames of one forward pass; 0: few on a CPU, on a GPU what its memory holds.",
        Changes.NOTHING,
    )
    batch_segments: Annotated[Count, Unit("segments")] = setting(
        8,
        "Segments an actor with a GPU takes at a time, so that frames of several videos fill a "
        "forward pass.",
        Changes.NOTHING,
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "Of the forward pass; auto is float32 on a CPU and bfloat16 on a GPU."
    )
    compile: bool = setting(
        False,
        "torch.compile makes the network faster, which takes a minute at the start of each actor.",
        Changes.NOTHING,
    )

    @property
    def specs(self) -> tuple[tuple[str, StreamSpec], ...]:
        """Return kind and fields of each entry of `streams`."""
        return tuple(_spec(entry) for entry in self.streams)

    @property
    def used_nodes(self) -> tuple[str, ...]:
        """Return the nodes of all streams of pictures and of flow, as named."""
        specs = [spec for kind, spec in self.specs if kind != "clip"]
        return tuple(dict.fromkeys(node for spec in specs for node in spec.nodes or self.nodes))

    @property
    def clips(self) -> tuple[ClipSpec, ...]:
        """Return the entries of `streams` that a network of clips describes."""
        return tuple(spec for _, spec in self.specs if isinstance(spec, ClipSpec))

    @property
    def windows(self) -> tuple[Window, ...]:
        """Return the windows of frames to decode: the sampled frames, and their neighbours that
        streams read.
        """
        return tuple(dict.fromkeys((FRAME, *(spec.window for _, spec in self.specs))))

    def __post_init__(self) -> None:
        for entry in self.streams:
            try:
                _spec(entry)
            except ValueError as error:
                raise ValueError(f"streams: {entry}: {error}") from error


def _spec(entry: str) -> tuple[str, StreamSpec]:
    kind, parts = split_entry(entry)
    if kind not in SPECS:
        raise ValueError(f"expected one of {list(SPECS)}, got {kind!r}{near(kind, SPECS, '')}")
    changes = {}
    for name, equals, text in parts:
        if not equals or name in changes:
            raise ValueError("expected kind@field=value:field=value, each field once")
        changes[name] = parsed(SPECS[kind], kind, name, text.replace("/", ","))
    return kind, changed(SPECS[kind], kind, changes)


LEAST_FRAMES, MOST_DESCRIPTORS = 20_000, 2**23
"""Bounds of a sample that follows the corpus: of 512 values in half precision, 8 GiB at most."""


@dataclass(frozen=True, kw_only=True)
class Fit(Record):
    """The sample that codebooks are fitted on, and the workers that fit them (Ray Train)."""

    num_frames: Annotated[CountOrZero, Unit("frames")] = setting(
        0,
        f"Frames drawn from the training videos for each stream. 0: at least one of each of them, "
        f"{LEAST_FRAMES:,} or more in all, of at most {MOST_DESCRIPTORS:,} descriptors together: "
        "then of some videos none.",
    )
    num_workers: Annotated[Count, Unit("workers")] = setting(
        1,
        "Workers that fit a codebook together, each on its share of the sample; its last bits "
        "depend on it.",
    )
    codebooks_at_once: CountOrZero = setting(
        0,
        "Codebooks that are fitted at a time, each on num_workers workers of its own; 0: as many "
        "as pay, and as there are CPUs, or GPUs, and memory for.",
        Changes.NOTHING,
    )
    checkpoint_s: Seconds = setting(
        30.0, "Seconds between checkpoints of a running fit.", Changes.NOTHING
    )

    def frames_for(self, num_videos: int, num_descriptors: int) -> int:
        """Return the frames drawn from so many training videos, with so many descriptors each."""
        most = max(1, MOST_DESCRIPTORS // num_descriptors)
        return self.num_frames or min(max(LEAST_FRAMES, num_videos), most)


@dataclass(frozen=True, kw_only=True)
class Encode(Record):
    """The encodings of every stream, and the storage of their vectors."""

    encoders: Annotated[tuple[str, ...], ONE_OR_MORE] = setting(
        ("ave", "vlad", "gmm_fv", "fv_vae"),
        "Names of encoders (docs/encoders.md), or variants such as vlad@num_centroids=64, which "
        "change fields of the encoder's section, lists with /; also fields of `compress`, as "
        "compress.kind=pca. auto, alone: by the number of videos.",
        Changes.WHICH,
    )
    external: Annotated[
        tuple[ExternalVectors, ...],
        EACH_ONCE,
        Rule(
            "each name once",
            lambda entries: len({entry.partition(":")[0] for entry in entries}) == len(entries),
        ),
    ] = setting(
        (),
        "Vectors of your own beside those of the encoders, NAME:URI of a Parquet file with columns "
        "path and vector, one row a video (docs/encoders.md). They get classifiers as they are, "
        "and are fused where classify.fusion_groups names them.",
        Changes.WHICH,
        added=True,
    )
    normalisation: Literal["signed_sqrt_l2", "signed_sqrt", "l2", "none"] = setting(
        "signed_sqrt_l2",
        "Of finished vectors; signed_sqrt and none keep their lengths. vlad.intra has one of its "
        "own. Variants may have another: ave@normalisation=signed_sqrt.",
    )
    temporal_pyramid: Annotated[
        tuple[Side, ...],
        Rule(
            "one or more numbers of parts, each once and at least 1",
            lambda parts: 0 < len(parts) == len(set(parts)),
        ),
    ] = setting(
        (1,),
        "Into how many parts of equal duration each level cuts a video; 1,2 is the whole video "
        "and its halves, three vectors side by side. Variants may have their own: "
        "vlad@temporal_pyramid=1/2.",
    )
    dtype: Literal["float32", "float16"] = setting("float32", "Of the stored vectors.")
    attention: bool = setting(
        True, "Write ATTENTION, for encoders that have one (fv_vae).", Changes.WHICH
    )
    batch_videos: Annotated[Count, Unit("videos")] = setting(
        8, "Videos that an encoder is given at a time.", Changes.NOTHING
    )


@dataclass(frozen=True, kw_only=True)
class Network(Record):
    """Networks that write SCORES themselves (VU 5; docs/networks.md): their clips, tests and
    workers. They start from describe.backbone with its weights.

    Their own settings are in the sections of their names.
    """

    networks: Annotated[tuple[str, ...], EACH_ONCE] = setting(
        (),
        "Names of networks, or variants such as tdn@layers=input, which change fields of the "
        "network's section, lists with /; none: no networks.",
        Changes.WHICH,
    )
    streams: Annotated[tuple[Literal["rgb", "flow"], ...], ONE_OR_MORE] = setting(
        ("rgb",),
        "What each is trained on: pictures, and stacks of optical flow (extra `flow`).",
        Changes.WHICH,
    )
    input: Literal["maps", "pixels"] = setting(
        "maps",
        "What the networks on full-length video read: maps of the frozen backbone, out of "
        "DESCRIPTORS, which need describe.streams=positions; or pictures, whose backbone is "
        "trained too. tsn and tdn always read pictures.",
    )
    node: str = setting(
        "", "The node whose maps are classified; none given: the first of describe.nodes."
    )
    side_px: Pixels = setting(256, "Side of the pictures that are kept (aspect ratio not kept).")
    crop_px: Pixels = setting(224, "Side of what a network is given.")
    frames: Annotated[int, between(1, MOST_FRAMES), Unit("frames")] = setting(
        32, "Pictures that are kept of each video, spread evenly over it."
    )
    flow_stack: Annotated[int, between(1, MOST_FLOWS), Unit("flows")] = setting(
        5, "Consecutive flows from each kept picture on, of stream flow (VU 5.3.4)."
    )
    flow_method: Literal["dis", "tvl1"] = setting("dis", "Dense inverse search, or TV-L1.")
    flow_bound_px: Annotated[float, between(0.1, 1000), Unit("px")] = setting(
        20.0, "Larger displacements in x or y are cut off to it."
    )
    stream: bool = setting(
        False,
        "Store no pictures: videos are decoded again for each clip of the training and for each "
        "test, while a GPU works. CLIPS then say which videos there are.",
        Changes.WHICH,
        added=True,
    )
    width: CountOrZero = setting(
        0,
        "Channels of the first stage, which all others are multiples of, of each network that has "
        "a field width (actionflownet), but for variants that give one; 0: its own section's.",
        Changes.WHICH,
        added=True,
    )
    test_clips: Annotated[Count, Unit("clips")] = setting(
        25, "Clips at random times of a tested video, whose mean score counts (VU 5.4.2)."
    )
    test_views: Literal["centre", "mirror", "ten"] = setting(
        "ten", "Crops of each: the centre; it and its mirror image; corners and centre with both."
    )
    pictures: Annotated[CountOrZero, Unit("videos")] = setting(
        8, "Tested videos of which class activation maps are kept and shown (VU 5.4.5)."
    )
    over_time: Literal["none", "shown", "all"] = setting(
        "none",
        "Tested videos of which networks on full-length video write SCORES_OVER_TIME, the score at "
        "each frame that they are given: those of network.pictures, whose changes of the first "
        "class the report shows, or all.",
        Changes.WHICH,
    )
    num_workers: Annotated[Count, Unit("workers")] = setting(
        1, "Workers that train a network together, each on its own videos."
    )
    at_once: CountOrZero = setting(
        0,
        "Networks that are trained at a time, each on num_workers workers of its own; 0: as many "
        "as there are CPUs, or GPUs, for.",
        Changes.NOTHING,
    )

    def __post_init__(self) -> None:
        require(
            self.side_px >= self.crop_px,
            "side_px",
            f"at least network.crop_px = {self.crop_px}",
            self.side_px,
        )
        require(
            "flow" not in self.streams or self.side_px >= LEAST_FLOW_PX,
            "side_px",
            f"at least {LEAST_FLOW_PX} px where network.streams has flow",
            self.side_px,
        )


@dataclass(frozen=True, kw_only=True)
class Classify(Record):
    """One-vs-rest linear SVM: C = 100 (DQ 5.2), quadratic regulariser and hinge loss (FK 4.3)."""

    c: Annotated[
        tuple[Positive, ...],
        Rule("one or more values, each once", lambda c: 0 < len(c) == len(set(c))),
    ] = setting(
        (100.0,),
        "One value, or several of which each fold takes the one with the best mAP on held-out "
        "groups of its training videos.",
    )
    loss: Literal["hinge", "squared_hinge"] = setting("hinge", "Loss of a training video.")
    class_weight: Literal["none", "balanced"] = setting(
        "none", "balanced gives a class's own videos and all others the same total cost."
    )
    form: Literal["auto", "gram", "primal"] = setting(
        "auto",
        "gram solves on the matrix of inner products of the training vectors, primal on the "
        "weights, with the vectors streamed; auto takes gram where the matrix fits into memory.",
    )
    tolerance: Annotated[float, between(1e-12, 0.1)] = setting(
        1e-6, "Relative gap between primal and dual objective at which a class is solved."
    )
    fusions: Annotated[
        tuple[Literal["auto", "kernel_sum", "late_weighted"], ...],
        EACH_ONCE,
        Rule("auto alone", lambda rules: "auto" not in rules or len(rules) == 1),
    ] = setting(
        ("auto",),
        "Rules by which encoders and streams are fused into results of their own "
        "(docs/fusion.md). kernel_sum: SVMs on the mean of the cosine-normalised kernels. "
        "late_weighted: mean of the parts' scores, with weights by their log loss on inner folds; "
        "it needs the Gram matrix. auto: late_weighted where there is a Gram matrix, else none.",
        Changes.WHICH,
    )
    fusion_groups: Annotated[
        tuple[FusionGroup, ...],
        EACH_ONCE,
        Rule(
            "each name once",
            lambda groups: len({group.partition("=")[0] for group in groups}) == len(groups),
        ),
    ] = setting(
        ("encoders", "all"),
        "What is fused with each other. encoders: all streams of each encoder; all: all encoders "
        "and streams; NAME=PATTERN+PATTERN: the results whose ENCODER-STREAM a pattern (with * "
        "and ?) matches.",
        Changes.WHICH,
    )

    final: Literal["best", "all", "none"] = setting(
        "best",
        "Results that get final classifiers of all labelled videos, for new ones "
        "(docs/predict.md). best: the one that the recipe names, else the one with the best number "
        "in METRICS; all: every one; none: no classifier is kept.",
        Changes.WHICH,
    )
    keep_folds: bool = setting(
        False,
        "Keep the classifiers of each fold too, for `jobs.predict --fold`.",
        Changes.WHICH,
    )

    @property
    def words(self) -> str:
        """Return the objective of the classifiers in words, for a page."""
        c = " or ".join(f"{c:g}" for c in self.c)
        balanced = ", classes balanced" if self.class_weight == "balanced" else ""
        return f"C = {c}, {self.loss}{balanced}"

    def __post_init__(self) -> None:
        require(
            self.form != "primal" or {*self.fusions} <= {"auto", "kernel_sum"},
            "fusions",
            "auto or kernel_sum, where classify.form is primal",
            self.fusions,
        )


@dataclass(frozen=True, kw_only=True)
class Evaluate(Record):
    """Metrics, and the late fusions of an encoder's streams (METHODS 4)."""

    top_k: tuple[Count, ...] = setting(
        (3, 5), "K of top-K accuracy; with several labels a video, of Hit@K."
    )
    fusions: Annotated[tuple[Literal["given", "two_stream"], ...], EACH_ONCE] = setting(
        ("given", "two_stream"),
        "Fusions of which METRICS get numbers, where the streams allow them. given: "
        "mean of the scores by stream_weights (DQ 5.3). two_stream: appearance 1, motion "
        "(differences, rank pooling and flow) 1.5, each in equal shares of its streams, after L1 "
        "normalisation (VU 5.3.3).",
    )
    stream_weights: Annotated[
        tuple[float, ...],
        Rule(
            "none below 0, and not all 0",
            lambda weights: not weights or (min(weights) >= 0 and sum(weights) > 0),
        ),
    ] = setting(
        (),
        "Of the streams, in the order of describe.nodes x describe.streams; empty means equal.",
    )
    bootstrap: CountOrZero = setting(1000, "Draws of the intervals; 0 leaves them out.")


@dataclass(frozen=True, kw_only=True)
class Run(Record):
    """Settings of the run as a whole."""

    seed: Annotated[int, between(0, 2**32 - 1)] = setting(0, "Of all that is drawn.")
    max_failed_fraction: Annotated[float, between(0, 1)] = setting(
        0.75,
        "Above this share of failed segments the job exits non-zero, after writing all.",
        Changes.NOTHING,
    )


TrackTo = Annotated[
    str,
    Rule(
        "empty, tensorboard:FOLDER or mlflow:URI",
        lambda text: text == "" or re.fullmatch(r"(tensorboard|mlflow):.+", text) is not None,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Track(Record):
    """Where curves and numbers go beside the run's own tables."""

    to: TrackTo = setting(
        "",
        "tensorboard:FOLDER or mlflow:URI: CURVES when fit ends, METRICS when evaluate ends; empty "
        "sends nothing. No step needs it, and a server that does not answer costs a warning.",
        Changes.NOTHING,
    )

    @property
    def name(self) -> str:
        """Return the tool; "" where nothing is sent."""
        return self.to.partition(":")[0]

    @property
    def where(self) -> str:
        """Return its folder or URI."""
        return self.to.partition(":")[2]


def _pool(description: str) -> int:
    return setting(0, f"{description}; 0: as the cluster has room for.", Changes.NOTHING)


@dataclass(frozen=True, kw_only=True)
class Cluster(Record):
    """Sizes of the actor pools, from what the cluster has when the step starts, or may grow to."""

    num_decoders: CountOrZero = _pool("Actors that decode")
    num_describers: CountOrZero = _pool("Actors that describe")
    num_encoders: CountOrZero = _pool("Actors that encode")
    max_cpus: CountOrZero = setting(
        0,
        "CPUs that an autoscaling cluster may grow to, all workers together; 0 means that it does "
        "not grow. Ray does not tell its own limits.",
        Changes.NOTHING,
    )
    max_gpus: CountOrZero = setting(0, "GPUs that it may grow to.", Changes.NOTHING)
    node_wait_s: WholeSeconds = setting(
        1800,
        "How long a growing cluster may take to start a node, and so how much longer a step waits "
        "without progress.",
        Changes.NOTHING,
    )
    grow_warning_s: Seconds = setting(
        300.0,
        "A warning is logged of a pool that stays smaller than it should be for so long although "
        "work waits.",
        Changes.NOTHING,
    )
    allow_missing_gpu: bool = setting(
        False,
        "An actor that holds a GPU which torch does not see goes on with the CPU, instead of "
        "ending the run.",
        Changes.NOTHING,
    )
    placement: Literal["separate", "together"] = setting(
        "separate",
        "separate has a stage of decoders that feeds the describers, also from nodes without a "
        "GPU; together has each describer decode its own frames, as always on a growing cluster "
        "without GPUs.",
        Changes.NOTHING,
    )
    no_progress_timeout_s: WholeSeconds = setting(
        600, "A step without progress ends after so long.", Changes.NOTHING
    )
    price_per_cpu_hour: Annotated[NotNegative, Unit("currency/h")] = setting(
        0.0, "What the report counts the steps' cost with; 0 gives none.", Changes.NOTHING
    )
    price_per_gpu_hour: Annotated[NotNegative, Unit("currency/h")] = setting(
        0.0, "The same, of a GPU.", Changes.NOTHING
    )
    currency: str = setting("USD", "Of the two prices.", Changes.NOTHING)

    @property
    def grows(self) -> bool:
        """Return whether nodes come and go while the run works."""
        return self.max_cpus > 0

    def __post_init__(self) -> None:
        require(
            self.max_cpus > 0 or self.max_gpus == 0,
            "max_gpus",
            "0 where cluster.max_cpus is not given",
            self.max_gpus,
        )


@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """The cluster that `--plan` plans for; a run reads none of it."""

    num_cpus: CountOrZero = setting(
        0,
        "CPUs of the cluster, all nodes together; 0: this machine with its GPUs.",
        Changes.NOTHING,
    )
    num_gpus: CountOrZero = setting(0, "GPUs of the cluster.", Changes.NOTHING)
    gpu: str = setting("l4", "The kind of those GPUs, as in the price table.", Changes.NOTHING)
    prices: str = setting(
        "", "Another price table, laid out as pipelines/plan/prices.toml.", Changes.NOTHING
    )
    probe_s: Seconds = setting(
        20.0, "About how long videos and encoders are tried for.", Changes.NOTHING
    )
    sample: Annotated[Count, Unit("videos")] = setting(
        256, "Most videos whose header is read.", Changes.NOTHING
    )

    def __post_init__(self) -> None:
        require(
            self.num_cpus > 0 or self.num_gpus == 0,
            "num_gpus",
            "0 where plan.num_cpus is not given",
            self.num_gpus,
        )
