"""Films that FFmpeg's command line makes of its test picture, and what it shows of any file."""

import functools
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HAS_FFMPEG = shutil.which("ffmpeg") is not None
PICTURE = "testsrc2=size=96x64:rate=25:duration=3"

CODECS = {
    "h264": "libx264 -bf 2 -threads 1",
    "h264_no_b": "libx264 -bf 0 -threads 1",
    "h264_open": "libx264 -bf 2 -threads 1 -x264-params open-gop=1",
    "h264_interlaced": "libx264 -bf 2 -threads 1 -flags +ildct+ilme",
    "hevc": "libx265 -x265-params log-level=none:pools=1:open-gop=1",
    "mpeg4": "mpeg4 -bf 2 -q:v 5",
    "mpeg4_no_b": "mpeg4 -bf 0 -q:v 5",
    "mpeg2": "mpeg2video -bf 2 -q:v 5",
    "mpeg1": "mpeg1video -bf 2 -q:v 5",
    "vp8": "libvpx -b:v 200k -auto-alt-ref 1 -lag-in-frames 10 -threads 1",
    "vp9": "libvpx-vp9 -b:v 200k -auto-alt-ref 1 -lag-in-frames 10 -threads 1",
    "theora": "libtheora -q:v 5",
    "wmv2": "wmv2 -q:v 5",
    "flv1": "flv -q:v 5",
    "mjpeg": "mjpeg -pix_fmt yuvj420p",
    "gif": "gif",
}
CONTAINERS = {
    **dict.fromkeys(("h264", "h264_no_b"), ("mp4", "mkv", "ts", "flv", "avi", "h264", "nut")),
    **dict.fromkeys(("h264_open", "h264_interlaced"), ("mkv", "ts", "h264")),
    "hevc": ("mp4", "mkv", "ts", "hevc"),
    **dict.fromkeys(("mpeg4", "mpeg4_no_b"), ("mp4", "mkv", "avi", "m4v", "ts")),
    "mpeg2": ("mpg", "vob", "ts", "mkv", "m2v", "mxf"),
    "mpeg1": ("mpg",),
    "vp8": ("webm", "mkv", "ivf"),
    "vp9": ("webm", "mkv", "ivf"),
    "theora": ("ogv",),
    "wmv2": ("wmv",),
    "flv1": ("flv",),
    "mjpeg": ("avi", "mkv", "mjpeg"),
    "gif": ("gif",),
}
"""File name suffixes by codec."""


@functools.cache
def film(
    folder: Path, codec: str, suffix: str, gop: int = 12, filters: str = "", sound: str = ""
) -> Path:
    """Make a film of 75 frames in three seconds; `sound` is the codec of a tone beside it."""
    path = folder / f"{codec}_{gop}_{len(filters)}{sound}.{suffix}"
    command = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", PICTURE]
    if sound:
        command += ["-f", "lavfi", "-i", "sine=duration=3", "-c:a", sound]
    if filters:
        command += ["-vf", filters]
    run([*command, "-c:v", *CODECS[codec].split(), "-g", str(gop), str(path)])
    return path


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown_by_ffmpeg(path: Path, stream: int = 0) -> np.ndarray:
    """Return the times in seconds of the frames that `ffmpeg -vsync passthrough` shows."""
    done = subprocess.run(
        [
            *("ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-map", f"0:{stream}"),
            *("-vsync", "passthrough", "-vf", "scale=8:8,format=gray", "-enc_time_base", "-1"),
            *("-f", "framecrc", "-"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = done.stdout.splitlines()
    bases = [Fraction(line.split(":")[1].strip()) for line in lines if line.startswith("#tb 0:")]
    ticks = [int(line.split(",")[2]) for line in lines if line and not line.startswith("#")]
    return np.array([float((tick - ticks[0]) * bases[0]) for tick in ticks])


class _Writer:
    """Bits of a NAL unit, written from the left."""

    def __init__(self) -> None:
        self.bits = ""

    def u(self, size: int, value: int) -> "_Writer":
        self.bits += f"{value:0{size}b}" if size else ""
        return self

    def ue(self, *values: int) -> "_Writer":
        for value in values:
            self.bits += "0" * ((value + 1).bit_length() - 1) + f"{value + 1:b}"
        return self

    def align(self, bit: str = "0") -> "_Writer":
        self.bits += bit * (-len(self.bits) % 8)
        return self

    def unit(self, head: int, payload: bytes = b"") -> bytes:
        """Return the unit with its start code; the bits end in rbsp_trailing_bits."""
        written = int(self.bits, 2).to_bytes(len(self.bits) // 8) if self.bits else b""
        content = written + payload
        if not payload:
            self.bits += "1"
            self.align()
            content = int(self.bits, 2).to_bytes(len(self.bits) // 8)
        else:
            content += b"\x80"
        return b"\0\0\0\1" + bytes([head]) + content


def field_packets(num_frames: int) -> list[bytes]:
    """Return H.264 of 16x32 pixels, each field in an access unit of its own, of PCM macroblocks."""
    sps = _Writer().u(8, 77).u(8, 0).u(8, 30).ue(0, 0, 2, 1).u(1, 0).ue(0, 0)
    sps.u(1, 0).u(1, 0).u(1, 1).u(1, 0).u(1, 0)
    pps = _Writer().ue(0, 0).u(1, 0).u(1, 0).ue(0, 0, 0).u(1, 0).u(2, 0).ue(0, 0, 0).u(3, 0)
    packets = []
    for number in range(num_frames):
        for parity in (0, 1):
            is_idr = number == 0 and parity == 0
            slice_ = _Writer().ue(0, 7, 0).u(4, number % 16).u(1, 1).u(1, parity)
            if is_idr:
                slice_.ue(0).u(2, 0)
            else:
                slice_.u(1, 0)
            # slice_qp_delta, no deblocking filter is signalled; mb_type I_PCM.
            slice_.ue(0).ue(25).align()
            grey = bytes([40 + 7 * number + parity]) * 256 + bytes([128]) * 128
            unit = slice_.unit(0x65 if is_idr else 0x61, grey)
            packets.append((sps.unit(0x67) + pps.unit(0x68) if is_idr else b"") + unit)
    return packets


def field_film(path: Path, num_frames: int = 13) -> Path:
    """Write a film at 25 frames a second, whose fields are packets of their own."""
    packets = field_packets(num_frames)
    raw = path.with_suffix(".h264")
    raw.write_bytes(b"".join(packets))
    if path == raw:
        return path
    with av.open(str(raw)) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for place, content in enumerate(packets):
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, 50)
            packet.pts = packet.dts = place
            packet.is_keyframe = place == 0
            out.mux(packet)
    return path
