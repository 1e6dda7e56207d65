"""Random bytes, truncations, flipped bits and splices of real clips, decoded: a result or a failure
each.

    python -m tests.fuzz --count 300 --seed 7        tries 300 cases
    python -m tests.fuzz --repeat fuzz_failures/...  tries a saved one again

A case fails where the outcome is none that the tables know: an error_type `unexpected` (nobody
thought of it), a call beyond its limit, a result that does not hold together, or a child that
cannot be replaced. `crashed` and `timeout` are outcomes like others: that is what the child is for.
They are counted.
"""

import argparse
import contextlib
import hashlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import strategies as st

from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video.decode import SegmentFrames, decode_segment
from pipelines.video.header import ERROR_TYPES, VideoError, probe
from pipelines.video.isolation import IsolatedDecoder
from pipelines.video.sampling import num_segments

MAX_CLIP_BYTES = 600_000
FRAME_S, CALL_S, GRACE_S = 10.0, 20.0, 30.0
SAMPLING = Sampling(policy="uniform", num_frames=6)
PICTURE = Picture(resize_px=32, crop_px=32)


def contents(clips: dict[str, bytes]) -> st.SearchStrategy[bytes]:
    """Files made of the clips, and of nothing."""
    names = st.sampled_from(sorted(clips))
    # Places are fractions, so that they fall inside any clip; cubed, half of them in its first
    # eighth, where headers are.
    place = st.floats(0, 1, exclude_max=True).map(lambda x: x**3) | st.floats(
        0, 1, exclude_max=True
    )

    def truncated(name: str, end: float) -> bytes:
        return clips[name][: int(len(clips[name]) * end)]

    def flipped(name: str, flips: list[tuple[float, int]]) -> bytes:
        content = bytearray(clips[name])
        for where, bit in flips:
            content[int(len(content) * where)] ^= 1 << bit
        return bytes(content)

    def overwritten(name: str, where: float, junk: bytes) -> bytes:
        content = bytearray(clips[name])
        start = int(len(content) * where)
        content[start : start + len(junk)] = junk
        return bytes(content)

    def spliced(first: str, end: float, second: str, start: float) -> bytes:
        return truncated(first, end) + clips[second][int(len(clips[second]) * start) :]

    def without(name: str, start: float, length: float) -> bytes:
        content = clips[name]
        first = int(len(content) * start)
        return content[:first] + content[first + int(len(content) * length) :]

    flips = st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=40)
    return st.one_of(
        st.binary(max_size=4096),
        st.builds(truncated, names, place),
        st.builds(flipped, names, flips),
        st.builds(overwritten, names, place, st.binary(min_size=1, max_size=512)),
        st.builds(spliced, names, place, names, place),
        st.builds(without, names, place, place),
    )


def load_clips(data: Path) -> dict[str, bytes]:
    """The small real clips, the corrupt ones among them."""
    paths = [*(data / "clips").iterdir(), *(data / "corrupt").iterdir()]
    return {p.name: p.read_bytes() for p in paths if 0 < p.stat().st_size <= MAX_CLIP_BYTES}


@dataclass
class Fuzzer:
    """Tries contents, with one child for each decoder; counts what came out."""

    failures: Path
    outcomes: Counter = field(default_factory=Counter)
    slowest_s: float = 0.0

    def __post_init__(self) -> None:
        limits = {"frame_timeout_s": FRAME_S, "timeout_s": CALL_S, "memory_bytes": 2**30}
        self._settings = {name: Decode(decoder=name, **limits) for name in ("pyav", "decord")}
        self._decoders = {name: IsolatedDecoder(s) for name, s in self._settings.items()}

    def close(self) -> None:
        for decoder in self._decoders.values():
            decoder.close()

    def check(self, content: bytes) -> None:
        """Raises AssertionError, and saves the content, where the outcome is not one of those
        allowed."""
        with tempfile.NamedTemporaryFile(suffix=".bin") as file:
            file.write(content)
            file.flush()
            try:
                for name in self._decoders:
                    self._check(name, file.name)
            except Exception as error:
                name = hashlib.sha256(content).hexdigest()[:12]
                self.failures.mkdir(parents=True, exist_ok=True)
                saved = self.failures / f"{name}.bin"
                saved.write_bytes(content)
                again = f"python -m tests.fuzz --repeat {saved}"
                raise AssertionError(f"{error}; repeat with: {again}") from error

    def _check(self, name: str, uri: str) -> None:
        decoder, decode = self._decoders[name], self._settings[name]
        facts = self._call(name, decoder, probe, uri, decode.max_frame_px)
        # Also without a header that can be read: segments are planned once, files change later.
        segments = num_segments(facts, SAMPLING) if facts else 1
        arguments = (uri, 0, segments, SAMPLING, PICTURE, decode)
        frames = self._call(name, decoder, decode_segment, *arguments)
        if frames is not None:
            _hold_together(frames)

    def _call(
        self, name: str, decoder: IsolatedDecoder, function: Callable, *arguments: object
    ) -> object:
        started = time.monotonic()
        result, outcome, message = None, "ok", ""
        try:
            result = decoder.call(function, *arguments)
        except VideoError as error:
            outcome, message = error.error_type, error.message
        seconds = time.monotonic() - started
        assert outcome == "ok" or outcome in ERROR_TYPES, f"error type {outcome!r}"
        assert outcome != "unexpected", f"{name}, {function.__name__}: {message}"
        self.slowest_s = max(self.slowest_s, seconds)
        assert seconds < CALL_S + GRACE_S, f"{name}, {function.__name__}: {seconds:.0f} s"
        self.outcomes[f"{name} {function.__name__} {outcome}"] += 1
        return result


def _hold_together(frames: SegmentFrames) -> None:
    indices, times_s = frames.frame_indices, frames.timestamps_s
    assert frames.images.shape == (len(indices), 32, 32, 3), "images"
    assert len(times_s) == len(indices) <= SAMPLING.num_frames, "number of frames"
    assert (np.diff(indices) > 0).all(), "order of frames"
    assert np.isfinite(times_s).all(), "times"
    assert (np.diff(times_s) > 0).all(), "order of times"
    assert len(indices) == 0 or (indices[0] >= 0 and times_s[0] >= 0), "first frame"
    assert (frames.num_missing > 0) == (frames.error_type is not None), "error type"


def fuzz(data: Path, count: int, seed: int, failures: Path) -> Fuzzer:
    """Tries `count` cases.

    Raises:
        AssertionError: one failed; its smallest form is in `failures`, and the message says how to
        repeat.
    """
    fuzzer = Fuzzer(failures)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(contents(load_clips(data)))
    def run(content: bytes) -> None:
        fuzzer.check(content)

    with contextlib.closing(fuzzer):
        run()
    return fuzzer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--failures", type=Path, default=Path("fuzz_failures"))
    parser.add_argument("--repeat", type=Path, help="a saved case")
    arguments = parser.parse_args()
    if arguments.repeat:
        fuzzer = Fuzzer(arguments.failures)
        with contextlib.closing(fuzzer):
            fuzzer.check(arguments.repeat.read_bytes())
    else:
        default = Path(__file__).parents[1] / ".." / "shared" / "data"
        data = Path(os.environ.get("VIDEO_FISHER_DATA", default)).resolve()
        seed = int.from_bytes(os.urandom(4), "big") if arguments.seed is None else arguments.seed
        print(f"--count {arguments.count} --seed {seed}", flush=True)
        fuzzer = fuzz(data, arguments.count, seed, arguments.failures)
    for outcome, number in sorted(fuzzer.outcomes.items()):
        print(f"{number:6d}  {outcome}")
    print(f"slowest call {fuzzer.slowest_s:.1f} s; none failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
