"""The length of a video whose header does not tell it: of recordings that were joined to one file,
of raw streams, and of what was never finished.

Such a file is read once more when it is planned, without decoding; others are not.
"""

import dataclasses
from collections.abc import Callable
from typing import BinaryIO

from av.format import ContainerFormat

from pipelines.settings.sections import Decode
from pipelines.storage.ranges import RangeFile
from pipelines.video.door import Source, opened
from pipelines.video.header import VideoFacts, facts_of, open_source
from pipelines.video.listing.cut import avi_end, matroska_end
from pipelines.video.listing.shown import list_shown, may_jump
from pipelines.video.packets import PacketReader
from pipelines.video.sampling import end_of


def probe_length(uri: str, max_frame_px: int = Decode.max_frame_px) -> VideoFacts:
    """Read the header as `pipelines.video.header.probe`, with the length by the packets where the
    header does not tell it.

    Raises:
        VideoError: as `probe`.
    """
    with open_source(uri) as source:
        facts = facts_of(source, uri, max_frame_px)
        if facts.duration_s is not None and not _goes_on(source, facts.container):
            return facts
        reader = PacketReader(source, uri, Decode(max_frame_px=max_frame_px))
        try:
            duration_s = _listed_s(reader, facts.fps)
        finally:
            reader.close()
    return dataclasses.replace(facts, duration_s=duration_s or facts.duration_s)


def _goes_on(source: Source, container: str) -> bool:
    """Return True where another recording may follow the one that the header is of."""
    name = container.split(",")[0]
    if name not in _ENDS:
        return may_jump(ContainerFormat(name, "r"))
    with opened(source) as file:
        find, mark = _ENDS[name]
        end = find(file)
        file.seek(end)
        return end > 0 and file.read(len(mark)) == mark


_ENDS: dict[str, tuple[Callable[[BinaryIO | RangeFile], int], bytes]] = {
    "matroska": (matroska_end, b"\x1a\x45\xdf\xa3"),
    "avi": (avi_end, b"RIFF"),
}
"""{container: where its first recording ends, and what another one begins with}."""


def _listed_s(reader: PacketReader, fps: float | None) -> float:
    """Return the length in seconds by all packets."""
    packets = reader.scan()
    if not packets.has_times:
        return len(packets.tick) / fps if fps else 0.0
    tick_s = float(reader.stream.time_base or 0)
    ticks = list_shown(packets, tick_s, may_jump(reader.container.format)).ticks
    return end_of((ticks - ticks[0]) * tick_s, fps) if len(ticks) else 0.0
