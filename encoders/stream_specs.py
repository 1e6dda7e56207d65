"""Entries of describe.streams: a kind, the frames it reads, its nodes and its scaling.

No torch here: settings are checked before anything heavy is loaded.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from encoders.fields import EACH_ONCE, Record, Rule, Unit, between, require, setting

Scaling = Literal["per_position", "whole_map", "relative", "none"]
"""Divisor of maps before the spatial pyramid, see `encoders.descriptors.streams.scale`."""

MOST_FRAMES = 64
"""Most frames of a window: as many as a segment has sampled ones."""

MOST_FLOWS = 20
"""Most flows of a stack: twice as many as the papers take."""

LEAST_FLOW_PX = 12
"""Shortest side of the pictures that dense inverse search takes."""

FLOW_BOUND_PX = 40.0
"""Largest displacement in either direction, unless a stream sets another (VU 3.3.4)."""


INPUT = "input"
"""The node of the normalised picture itself."""

STAGES = "stages"
"""Placeholder of the last nodes before each loss of resolution (`encoders.backbones.stages`)."""


VIEWS = {"centre": 1, "mirror": 2, "ten": 10, "fifty": 50}
"""Views of a frame by picture.views, see `encoders.descriptors.views`."""


@dataclass(frozen=True)
class Scale:
    """The rows of a frame's descriptors that are of one size of the picture (picture.scales).

    Attributes:
        side_px: of the picture that the network saw.
        rows: number of them.
        height, width: of the map whose positions they are, row by row; 0 where they are cells of a
            pyramid.
    """

    side_px: int
    rows: int
    height: int = 0
    width: int = 0


@dataclass(frozen=True, kw_only=True)
class Window:
    """The frames that a stream reads for one sampled frame, in order of time.

    Attributes:
        num_frames: 1 is the sampled frame alone.
        gap, gap_s: distance between neighbours of the window, in source frames or in seconds. If
            both are 0, the neighbours are consecutive sampled frames.
    """

    num_frames: int = 1
    gap: int = 0
    gap_s: float = 0.0

    @property
    def num_read(self) -> int:
        """Number of maps that a stream reads for one sampled frame: one for each frame."""
        return self.num_frames

    @property
    def is_sampled(self) -> bool:
        """True if the window has sampled frames only."""
        return not (self.gap or self.gap_s)

    @property
    def gap_name(self) -> str:
        """The gap in a stream's name, such as gap3 or gap0_2s."""
        seconds = f"{self.gap_s:.3f}".rstrip("0").rstrip(".").replace(".", "_")
        return f"gap{self.gap}" if self.gap else f"gap{seconds}s" if self.gap_s else ""


FRAME = Window()
"""A sampled frame alone."""


@dataclass(frozen=True, kw_only=True)
class FlowWindow(Window):
    """The frames of a stack of optical flow: `num_frames` - 1 flows, from each frame to the next.

    Attributes:
        method: dis or tvl1 (`pipelines.video.flow`).
        bound_px: larger displacements in x or y are cut off to it.
    """

    method: str
    bound_px: float

    @property
    def num_read(self) -> int:
        """Number of maps that a stream reads for one sampled frame: that of the stack."""
        return 1

    @property
    def num_channels(self) -> int:
        """Channels of the stacked flows: u and v of each."""
        return 2 * (self.num_frames - 1)


@dataclass(frozen=True, kw_only=True)
class ClipWindow(Window):
    """The frames of a clip, which a network reads at once.

    Attributes:
        side_px: pictures are resized to it; 0: to the side that the network was made for.
        pools: descriptors are cells of a pyramid over space and time, and not each place and time.
    """

    side_px: int = 0
    pools: bool = True


def _is_whole(value: float) -> bool:
    """Return True if a number is whole up to rounding."""
    return abs(value - round(value)) < 1e-6


@dataclass(frozen=True, kw_only=True)
class StreamSpec(Record):
    """An entry of describe.streams without its kind."""

    nodes: Annotated[tuple[str, ...], EACH_ONCE] = setting(
        (), "Nodes of the network; none given: describe.nodes."
    )
    scaling: Scaling | Literal[""] = setting(
        "", "What maps are divided by; none given: describe.scaling."
    )

    @property
    def window(self) -> Window:
        """The frames that the stream reads."""
        return FRAME

    @property
    def frames_name(self) -> str:
        """The frames that it reads, in the stream's name."""
        return self.window.gap_name

    @property
    def suffix(self) -> str:
        """The end of a stream's name, behind its kind: all given fields, so that names differ."""
        return "".join(f"_{part}" for part in (self.frames_name, self.scaling) if part)


@dataclass(frozen=True, kw_only=True)
class DifferenceSpec(StreamSpec):
    """The change between two frames (VU 5.3.1): neighbouring sampled ones, or `gap` source frames
    or `gap_s` seconds apart."""

    gap: Annotated[int, Rule("1 to 10000 source frames", lambda gap: 0 <= gap <= 10_000)] = setting(
        0, "Source frames between the two; 0: gap_s, or neighbouring sampled frames."
    )
    gap_s: Annotated[
        float,
        Rule(
            "0.001 to 3600 seconds, in whole milliseconds",
            lambda gap_s: 0 <= gap_s <= 3600 and _is_whole(gap_s * 1000),
        ),
        Unit("s"),
    ] = setting(0.0, "Seconds between the two; 0: gap, or neighbouring sampled frames.")

    @property
    def window(self) -> Window:
        return Window(num_frames=2, gap=self.gap, gap_s=self.gap_s)

    def __post_init__(self) -> None:
        require(
            not (self.gap and self.gap_s), "gap_s", "no gap in source frames beside it", self.gap
        )


@dataclass(frozen=True, kw_only=True)
class RankSpec(DifferenceSpec):
    """Approximate rank pooling: the difference of two frames generalised to `frames` of them
    (VU 5.3.1)."""

    frames: Annotated[int, between(2, MOST_FRAMES), Unit("frames")] = setting(
        5, "Frames of the window."
    )

    @property
    def window(self) -> Window:
        return Window(num_frames=self.frames, gap=self.gap, gap_s=self.gap_s)

    @property
    def frames_name(self) -> str:
        return f"{self.window.gap_name}x{self.frames}"


@dataclass(frozen=True, kw_only=True)
class FlowSpec(DifferenceSpec):
    """Optical flow as a picture for the network (VU 3.3.4), or `stack` consecutive flows
    (VU 5.4.2).

    Without a gap it is between neighbouring source frames.
    """

    method: Literal["dis", "tvl1"] = setting("dis", "Dense inverse search, or TV-L1.")
    stack: Annotated[int, Rule(f"1 to {MOST_FLOWS} flows", lambda n: 1 <= n <= MOST_FLOWS)] = (
        setting(1, "Flows that follow each other in one picture.")
    )
    bound_px: Annotated[
        float,
        Rule(
            "0.1 to 1000 px, in whole tenths",
            lambda bound_px: 1 <= bound_px * 10 <= 10_000 and _is_whole(bound_px * 10),
        ),
        Unit("px"),
    ] = setting(FLOW_BOUND_PX, "Larger displacements in x or y are cut off to it.")

    @property
    def window(self) -> FlowWindow:
        return FlowWindow(
            num_frames=self.stack + 1,
            gap=self.gap or (0 if self.gap_s else 1),
            gap_s=self.gap_s,
            method=self.method,
            bound_px=self.bound_px,
        )

    @property
    def frames_name(self) -> str:
        parts = (
            self.method if self.method != "dis" else "",
            self.window.gap_name if self.window.gap != 1 else "",
            f"x{self.stack}" if self.stack != 1 else "",
            f"bound{self.bound_px:g}".replace(".", "_") if self.bound_px != FLOW_BOUND_PX else "",
        )
        return "_".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class ClipSpec(StreamSpec):
    """A run of frames that ends with the sampled one, described by a network of clips
    (describe.clip_backbone)."""

    frames: Annotated[int, between(2, MOST_FRAMES), Unit("frames")] = setting(
        16, "Frames of a clip."
    )
    step: Annotated[int, between(1, 10_000), Unit("source frames")] = setting(
        2, "From one frame of a clip to the next."
    )
    side_px: Annotated[int, between(0, 10_000), Unit("px")] = setting(
        0,
        "Side to which the pictures are resized for the network; 0: the one it was made for, 112 "
        "of r3d_18, 224 of s3d.",
    )
    rows: Literal["pyramid", "all"] = setting(
        "pyramid",
        "Cells of the spatial pyramid over all times and over both halves of them; or each place "
        "and time.",
    )

    @property
    def window(self) -> ClipWindow:
        return ClipWindow(
            num_frames=self.frames,
            gap=self.step,
            side_px=self.side_px,
            pools=self.rows == "pyramid",
        )

    @property
    def frames_name(self) -> str:
        side = f"_side{self.side_px}" if self.side_px else ""
        return f"{self.window.gap_name}x{self.frames}{side}{'_all' if self.rows == 'all' else ''}"


SPECS: dict[str, StreamSpec] = {
    "appearance": StreamSpec(),
    "difference": DifferenceSpec(),
    "positions": StreamSpec(),
    "dense": StreamSpec(),
    "rank": RankSpec(),
    "flow": FlowSpec(),
    "clip": ClipSpec(),
}
"""The kinds of describe.streams, with the values of what is not given."""

MOTION = ("difference", "rank", "flow")
"""The kinds that show motion: in fusions they count as VU 5.3.3's stream of flow."""

NETWORK_STREAMS = {"rgb": "appearance", "flow": "flow"}
"""{stream of the networks that write SCORES: its kind}: pictures, and stacks of optical flow."""

_KIND = re.compile(
    rf"_({'|'.join(SPECS)}|global)(_tvl1)?(_gap[0-9_]+s?)?(_?x[0-9]+)?(_bound[0-9_]+)?"
    r"(_side[0-9]+)?(_all)?$"
)


def kind_of(stream: str) -> str:
    """Return the kind in a stream's name, as rank in features_12_rank_gap1x5; "" if it has none."""
    if stream in NETWORK_STREAMS:
        return NETWORK_STREAMS[stream]
    name = re.sub(f"_({'|'.join(get_args(Scaling))})$", "", stream)
    match = _KIND.search(name)
    return match[1] if match else ""


def is_difference(stream: str) -> bool:
    """Return True if a stream shows motion, as optical flow does."""
    return kind_of(stream) in MOTION


def is_local(stream: str) -> bool:
    """Return True if a stream is of local descriptors.

    Only such streams are fused, unless a group of results names others.
    """
    return kind_of(stream) in ("appearance", "dense", "clip") or is_difference(stream)
