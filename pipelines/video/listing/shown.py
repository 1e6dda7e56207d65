"""The list of the frames that are shown, from the numbers of their packets."""

from dataclasses import dataclass, replace

import numpy as np
from av.format import ContainerFormat, Flags

from pipelines.video.packets import NO_TICK, Packets

_JUMP_BACK_S, _JUMP_FORWARD_S = 0.1, 10.0
"""Steps of decoding time, as FFmpeg's own, from which on the times of a recording start again: back
in any file, forward only where the format is known to jump (MPEG-TS, MPEG-PS, Ogg)."""


@dataclass(frozen=True)
class Listing:
    """The frames that are shown, in order of display.

    Attributes:
        ticks: int64 [n], ascending: when a frame is first shown, in units of time_base.
        is_key: bool [n].
        first, last: int64 [n], the packets to decode for a frame, counted in order of the file;
            `last` is the frame's own.
        ordinal: int64, for each packet the frame that it begins; -1: none that is shown.
        num_parts: recordings that the file holds one after the other, each with times of its own.
    """

    ticks: np.ndarray
    is_key: np.ndarray
    first: np.ndarray
    last: np.ndarray
    ordinal: np.ndarray
    num_parts: int = 1

    def begin_at(self, start: int) -> "Listing":
        """Return the listing without the frames before `start`."""
        ordinal = np.where(self.ordinal < start, -1, self.ordinal - start)
        rest = (self.ticks[start:], self.is_key[start:], self.first[start:], self.last[start:])
        return Listing(*rest, ordinal, self.num_parts)


def list_shown(packets: Packets, tick_s: float, jumps_forward: bool) -> Listing:
    """Return the listing by the packets' numbers.

    Parts whose times start again follow one another: each begins one frame after the last one of
    the part before it.
    """
    part = _parts(packets, tick_s, jumps_forward)
    num_parts = int(part[-1]) + 1 if len(part) else 1
    if num_parts > 1:
        packets = replace(packets, tick=_continued(packets, part, num_parts))
    shown = np.flatnonzero(packets.is_shown)
    # Of equal times, which muxers make of missing or negative ones, the key frame's is its own: the
    # others are of frames that are read after it and shown before it.
    own = shown[np.lexsort((packets.is_key[shown], packets.tick[shown]))]
    ticks, is_key = packets.tick[own], packets.is_key
    first = _key_packets(packets.tick, is_key, own)
    ordinal = np.full(len(packets.tick), -1)
    ordinal[own] = np.arange(len(own))
    return Listing(ticks, is_key[own], first, own + _with_second(packets)[own], ordinal, num_parts)


def may_jump(container: ContainerFormat) -> bool:
    """Return True if the times of such a file may start again within it."""
    return bool(container.flags & Flags.ts_discont.value)


def is_open_at_start(packets: Packets) -> bool:
    """Return whether frames are shown before the first one that can be decoded by itself."""
    keys, later = np.flatnonzero(packets.is_key), packets.is_shown.copy()
    later[:1] = False
    if not len(keys) or not later.any():
        return False
    return bool(keys[0] > 0 or packets.tick[later].min() <= packets.tick[keys[0]])


def _parts(packets: Packets, tick_s: float, jumps_forward: bool) -> np.ndarray:
    """Return for each packet the number of the part that it belongs to."""
    _, decoded, _, _ = packets.mark.T
    known = np.flatnonzero(decoded != NO_TICK)
    is_start = np.zeros(len(decoded), np.int64)
    steps_s = np.diff(decoded[known]) * tick_s
    is_jump = steps_s < -_JUMP_BACK_S
    if jumps_forward:
        is_jump |= steps_s > _JUMP_FORWARD_S
    is_start[known[1:][is_jump]] = 1
    return np.cumsum(is_start)


def _continued(packets: Packets, part: np.ndarray, num_parts: int) -> np.ndarray:
    """Return the ticks with each part moved to the end of the one before it."""
    tick = packets.tick.copy()
    is_known = tick != NO_TICK
    end = None
    for number in range(num_parts):
        inside = is_known & (part == number)
        shown = np.unique(tick[inside & packets.is_shown])
        if not len(shown):
            continue
        offset = 0 if end is None else end - shown[0]
        tick[inside] += offset
        step = int(np.median(np.diff(shown))) if len(shown) > 1 else 1
        end = shown[-1] + offset + step
    return tick


def _with_second(packets: Packets) -> np.ndarray:
    """Return for each packet 1 where the next one holds the second field of its frame, else 0."""
    return np.append(packets.is_second[1:], False).astype(np.int64)


def _key_packets(tick: np.ndarray, is_key: np.ndarray, packets: np.ndarray) -> np.ndarray:
    """Return for each packet the last key packet that is neither read nor shown after it; else
    packet 0.

    A frame that is read after a key frame but shown before it may need what comes before that.
    """
    keys = np.flatnonzero(is_key)
    keys = np.concatenate([[0], keys[keys > 0]])
    index = np.searchsorted(keys, packets, side="right") - 1
    while len(late := np.flatnonzero((index > 0) & (tick[keys[index]] > tick[packets]))):
        index[late] -= 1
    return keys[index]
