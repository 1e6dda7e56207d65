"""Thirty cases of tests/fuzz.py, and that it finds what it is made to find."""

import os
from pathlib import Path

import pytest

from pipelines.video.header import VideoError
from tests import fuzz


@pytest.mark.slow
def test_thirty_cases(data: Path, tmp_path: Path) -> None:
    seed = 0 if os.environ.get("CI") else int.from_bytes(os.urandom(4), "big")
    print(f"python -m tests.fuzz --count 30 --seed {seed}")
    fuzzer = fuzz.fuzz(data, 30, seed, tmp_path)
    assert not list(tmp_path.iterdir())
    # Each case is tried with each decoder: headers, then frames.
    assert sum(fuzzer.outcomes.values()) >= 4 * 30
    assert fuzzer.slowest_s < fuzz.CALL_S + fuzz.GRACE_S


def test_what_nobody_thought_of_is_saved_and_can_be_repeated(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, function: object, *arguments: object) -> None:
        raise VideoError("unexpected", "ZeroDivisionError: by a file")

    monkeypatch.setattr("pipelines.video.isolation.IsolatedDecoder.call", broken)
    with pytest.raises(
        AssertionError, match="ZeroDivisionError: by a file; repeat with: "
    ) as caught:
        fuzz.fuzz(data, 5, 0, tmp_path)
    named = Path(str(caught.value).split("--repeat ")[1].split()[0])
    assert named.parent == tmp_path
    with pytest.raises(AssertionError, match=named.name):
        fuzz.Fuzzer(tmp_path).check(named.read_bytes())
