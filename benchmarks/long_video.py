"""What a long video on object storage costs to read: `python -m benchmarks.long_video`.

A file of two hours (MP4, H.264, a key frame each ten seconds) on an S3 server of this machine is
decoded in 120 segments by four processes, one for each node, a quarter of the segments each. Each
way of reading is counted in requests and bytes: ranges, as a run reads, and whole copies, as
decord needs them. --quick: ten minutes. --json FILE writes the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.harness import Row, at_most, machine
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.storage import ranges
from pipelines.storage.ranges import RangeFile, Traffic

RATE, SECONDS, NODES, SEGMENTS = 25, 7200, 4, 120
WIDTH, HEIGHT, GROUP = 160, 120, 250
BUCKET, KEY = "long", "two-hours.mp4"


def write_video(path: Path, seconds: int) -> None:
    """Write noise that moves, of a minute, again and again."""
    frames = 60 * RATE
    minute = path.with_suffix(".minute.mp4")
    draw = np.random.default_rng(0)
    ground = draw.integers(0, 255, (HEIGHT, 2 * WIDTH, 3), np.uint8)
    with av.open(str(minute), "w") as out:
        stream = out.add_stream("libx264", RATE, options={"preset": "ultrafast", "crf": "40"})
        stream.width, stream.height, stream.gop_size = WIDTH, HEIGHT, GROUP
        for number in range(frames):
            shift = number % WIDTH
            picture = np.ascontiguousarray(ground[:, shift : shift + WIDTH])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode(None))
    with av.open(str(minute)) as source, av.open(str(path), "w") as out:
        template = source.streams.video[0]
        stream = out.add_stream_from_template(template)
        span = round(Fraction(60) / template.time_base)
        for again in range(seconds // 60):
            source.seek(0, stream=template)
            for packet in source.demux(template):
                if packet.dts is not None:
                    packet.pts, packet.dts = packet.pts + again * span, packet.dts + again * span
                    packet.stream = stream
                    out.mux(packet)
    minute.unlink()


@contextmanager
def server() -> Iterator[None]:
    """Name an S3 server of this machine in the environment, with an empty bucket."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield
    finally:
        process.terminate()
        process.wait()


def node(first: int, last: int, segments: int, seconds: int) -> Traffic:
    """Decode segments first..last-1 in this process, one after the other, and return the
    traffic."""
    from pipelines.video.decode import decode_segment

    sampling = Sampling(policy="uniform", num_frames=segments * 64)
    for segment in range(first, last):
        frames = decode_segment(
            f"s3://{BUCKET}/{KEY}",
            segment,
            segments,
            sampling,
            Picture(resize_px=64, crop_px=64),
            Decode(timeout_s=600.0),
        )
        assert len(frames.images) == 64, (segment, len(frames.images), seconds)
    return ranges.taken()


def whole() -> Traffic:
    """Copy the file whole, and return the traffic."""
    with RangeFile(f"s3://{BUCKET}/{KEY}") as file:
        file.fetch_all()
        return ranges.taken()


def rows(seconds: int, segments: int) -> list[Row]:
    """Measure both ways."""
    with tempfile.TemporaryDirectory() as folder, server():
        import boto3

        path = Path(folder) / KEY
        write_video(path, seconds)
        size = path.stat().st_size
        boto3.client("s3").upload_file(str(path), BUCKET, KEY)
        path.unlink()
        share = segments // NODES
        parts, copies = Traffic(), Traffic()
        for number in range(NODES):
            first, last = number * share, (number + 1) * share
            command = f"{first} {last} {segments} {seconds}".split()
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.long_video", "--node", *command],
                check=True,
                capture_output=True,
                text=True,
            )
            parts += Traffic(**json.loads(done.stdout))
            copies += whole()
    detail = {
        "file_mb": round(size / 1e6, 1),
        "seconds": seconds,
        "segments": segments,
        "nodes": NODES,
        "ranges": asdict(parts),
        "copies": asdict(copies),
    }
    return [
        at_most("bytes, ranges", "whole copies", parts.num_bytes / copies.num_bytes, 0.5, **detail),
        at_most("requests, ranges", "whole copies", parts.requests / copies.requests, 20.0),
    ]


def main(argv: list[str] | None = None) -> int:
    """Print the comparison; 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="long_video", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--node", nargs=4, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.node:
        print(json.dumps(asdict(node(*arguments.node))))
        return 0
    seconds, segments = (600, 12) if arguments.quick else (SECONDS, SEGMENTS)
    found = rows(seconds, segments)
    for row in found:
        print(f"{row.measure} / {row.against}: {row.ratio:.3f} (at most {row.target:g})")
        for name, value in row.detail.items():
            print(f"    {name}: {value}")
    if arguments.json:
        content = {"machine": machine(), "rows": [asdict(row) for row in found]}
        Path(arguments.json).write_text(json.dumps(content, indent=1))
    return 0 if all(row.met for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
