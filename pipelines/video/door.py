"""The one door for media: every file that FFmpeg parses here is opened by `open_container`.

FFmpeg is given an open file and the file's name, never a path or an address, and no protocol: so
nothing that a file says (playlists, lists of files, numbered pictures, session descriptions) can
make it open another file or a socket. It takes the containers of CONTAINERS and no other one.
"""

import os
import re
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import av
from av.container import InputContainer
from av.error import FFmpegError

from pipelines.storage.ranges import RangeFile

Source = str | BinaryIO | RangeFile
"""A media file: the path of a local one, or an open one."""

CONTAINERS = {
    "files of cameras, telephones, players and broadcasters": (
        *("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "rm", "gif", "apng"),
        *("dv", "mxf", "gxf", "nut", "nsv", "nuv", "wtv", "ty", "pva", "swf", "ivf", "mjpeg"),
        *("smjpeg", "yuv4mpegpipe", "dhav", "ifv", "iv8", "lmlm4", "kux", "live_flv", "vivo"),
    ),
    "coded video without a container": (
        *("h261", "h263", "h264", "hevc", "vvc", "evc", "av1", "obu", "m4v", "mpegvideo", "vc1"),
        *(
            "vc1test",
            "cavsvideo",
            "avs2",
            "avs3",
            "dirac",
            "dnxhd",
            "mjpeg_2000",
            "apv",
            "jpeg_pipe",
        ),
    ),
    "cameras of laboratories and of film": ("cine", "ser", "mlv", "r3d"),
    "films of early computers and of games": (
        *("4xm", "bink", "cdxl", "ea", "film_cpk", "flic", "idcin", "mvi", "psxstr", "roq", "rpl"),
        *("siff", "smk", "thp", "vmd", "wc3movie", "wsvqa"),
    ),
    "sound, whose rows then say that there is no video": (
        *("mp3", "wav", "w64", "flac", "aac", "ac3", "eac3", "aiff", "amr", "caf", "au", "dts"),
        *("ape", "wv"),
    ),
}
"""FFmpeg's names of the demuxers that are allowed, by what they are for. Not among them: whatever
opens further files or sockets (hls, dash, concat, sdp, image2), texts, subtitles and pictures."""

_PLAYLIST = re.compile(rb"\s*(?:#EXTM3U|ffconcat|(?:<\?xml[^>]*>\s*)?<MPD\b)")
"""Starts of playlists, which FFmpeg does not know by other names, or not at all in some builds."""

_ALLOWED = ",".join(name for names in CONTAINERS.values() for name in names)
_START_BYTES = 1024
_REFUSED = "Format not on whitelist"


class RefusedContainerError(Exception):
    """FFmpeg takes the file for something that is not in CONTAINERS."""


@contextmanager
def opened(source: Source) -> Iterator[BinaryIO | RangeFile]:
    """Yield the open file; one that is named by its path is closed at the end."""
    if isinstance(source, str):
        with open(source, "rb", buffering=0) as file:
            yield cast(BinaryIO, file)
    else:
        yield source


@contextmanager
def open_container(source: Source, name: str, options: dict[str, str]) -> Iterator[InputContainer]:
    """Open the media file, which is a local path or an open file.

    Args:
        name: of an open file, its address: by the suffix FFmpeg tells some containers apart, so
            that it takes a file for the same wherever it is stored.
        options: FFmpeg's, of the container and its decoders.

    Raises:
        RefusedContainerError: it is not one of CONTAINERS.
        FFmpegError, ValueError: FFmpeg cannot read it.
        OSError: it is not there, or its storage fails.
    """
    with opened(source) as file:
        file.seek(0)
        # What PyAV needs of a file; its name stands for that of the copy of a remote file.
        named = types.SimpleNamespace(
            read=file.read,
            seek=file.seek,
            tell=file.tell,
            name=os.path.basename(source if isinstance(source, str) else name),
        )
        try:
            container = av.open(
                named,
                "r",
                metadata_errors="replace",
                options=options,
                container_options={"format_whitelist": _ALLOWED, "protocol_whitelist": ""},
            )
        except FFmpegError as error:
            if kind := _refused(error, file):
                raise RefusedContainerError(kind) from error
            raise
        with container:
            yield container


def _refused(error: FFmpegError, file: BinaryIO | RangeFile) -> str:
    """Return what FFmpeg takes a file for that it may not open; "" where something else failed."""
    # (level, demuxer, text), which PyAV's types do not say.
    log: Any = error.log
    if log and log[2].startswith(_REFUSED):
        return log[1]
    if isinstance(error, OSError):
        return ""
    file.seek(0)
    return "a playlist" if _PLAYLIST.match(file.read(_START_BYTES)) else ""
