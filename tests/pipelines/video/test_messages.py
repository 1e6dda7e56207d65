"""Messages carry values of declared types, and make nothing of anything else."""

import json
import pickle
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from encoders.stream_specs import FRAME, FlowWindow, Window
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video import messages
from pipelines.video.header import VideoFacts
from pipelines.video.messages import MessageError

FLOW = FlowWindow(num_frames=2, gap=1, method="dis", bound_px=20.0)
FACTS = VideoFacts("mov", "h264", 640, 360, 90, 10.0, None, 250)


@dataclass(frozen=True)
class Arrays:
    by_window: dict[Window, np.ndarray]
    kind: Literal["a", "b"] | None = None


def through(value: object, expected: object, max_bytes: int = 2**20) -> object:
    return read(b"".join(map(bytes, messages.pack(value))), expected, max_bytes)


def read(content: bytes, expected: object = object, max_bytes: int = 2**20) -> object:
    rest = memoryview(bytearray(content))

    def take(size: int) -> memoryview:
        nonlocal rest
        if size > len(rest):
            raise EOFError
        taken, rest = rest[:size], rest[size:]
        return taken

    value, arrays = messages.receive(take, max_bytes)
    return messages.typed(value, expected, arrays)


def message(header: object, rest: bytes = b"") -> bytes:
    content = json.dumps(header).encode()
    return messages.HEAD.pack(messages.MAGIC, len(content)) + content + rest


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, str | None),
        (3, int),
        (2.5, float | None),
        ("\u00e9\n\x00", str),
        (FACTS, VideoFacts),
        (Sampling(policy="fps", fps=2.0), Sampling),
        (Decode(), Decode),
        (Picture(views="ten"), Picture),
        ((FRAME, FLOW), tuple[Window, ...]),
        ((1, "x"), tuple[int, str]),
    ],
)
def test_a_value_comes_out_as_it_went_in(value: object, expected: object) -> None:
    found = through(value, expected)
    assert found == value
    assert type(found) is type(value)


def test_arrays_come_out_as_they_went_in_and_can_be_written_to() -> None:
    turned = np.arange(12, dtype=np.uint8).reshape(3, 4).T
    sent = Arrays({FRAME: turned, FLOW: np.empty((0, 2**20, 3))}, "b")
    found = through(sent, Arrays)
    assert list(found.by_window) == [FRAME, FLOW]
    assert np.array_equal(found.by_window[FRAME], turned)
    found.by_window[FRAME][:] = 0
    assert found.by_window[FLOW].shape == (0, 2**20, 3)
    assert found.by_window[FLOW].dtype == np.float64


def test_what_is_sent_is_not_copied() -> None:
    array = np.zeros(1000)
    assert messages.pack(array)[1].obj is array


@pytest.mark.parametrize(
    "value", [len, object(), {1: print}, b"bytes", np.array([object()]), np.array(["text"])]
)
def test_what_no_message_can_carry_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="no plain message can carry"):
        messages.pack(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, str),
        ("3", int),
        (True, int),
        (1, bool),
        (2**63, int),
        (None, VideoFacts),
        ({"container": "mov"}, VideoFacts),
        ([1, 2, 3], tuple[int, str]),
        (3, tuple[int, ...]),
        ([[1, 2, 3]], dict[int, int]),
        ("c", Literal["a", "b"]),
        ({"array": 1}, np.ndarray),
        ({"array": -1}, np.ndarray),
        ("array", np.ndarray),
        ({"array": 7}, object),
        ({"a": 1}, object),
        ("\ud800", str),
        (["\ud800"], object),
    ],
)
def test_a_value_of_another_type_is_an_error(value: object, expected: object) -> None:
    content = message({"value": value, "arrays": [["uint8", [2]]]}, b"xx")
    with pytest.raises(ValueError, match=r"expected|declared|surrogates"):
        read(content, expected)


@pytest.mark.parametrize(
    "change",
    [{"fps": float("nan")}, {"duration_s": float("inf")}, {"width_px": 2**40}, {"height_px": -1}],
)
def test_facts_that_no_table_holds_are_an_error(change: dict) -> None:
    plain = {f: getattr(FACTS, f) for f in FACTS.__dataclass_fields__} | change
    with pytest.raises(ValueError, match="no facts of a video"):
        read(message({"value": plain, "arrays": []}), VideoFacts)


class Bomb:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Bomb()) + bytes(100),
        messages.HEAD.pack(messages.MAGIC, len(pickle.dumps(Bomb()))) + pickle.dumps(Bomb()),
        messages.HEAD.pack(messages.MAGIC, 2**63),
        message("no object"),
        message({"value": 1}),
        message({"value": 1, "arrays": [["object", [1]]]}),
        message({"value": 1, "arrays": [["V8", [1]]]}),
        message({"value": 1, "arrays": [["uint8", [-1]]]}),
        message({"value": 1, "arrays": [["uint8", [True]]]}),
        message({"value": 1, "arrays": [["uint8", [1.0]]]}),
        message({"value": 1, "arrays": [["uint8", [2**20 + 1]]]}),
        message({"value": 1, "arrays": [["float64", [2**32, 2**32]]]}),
        message({"value": 1, "arrays": [["uint8", [0] * 9]]}),
        message({"value": 1, "arrays": [["uint8", [2**20]], ["uint8", [1]]]}),
        messages.HEAD.pack(messages.MAGIC, 10**5) + b"[" * 10**5,
    ],
)
def test_what_is_no_message_is_an_error(content: bytes) -> None:
    with pytest.raises(MessageError):
        read(content)


def test_a_cut_message_asks_for_more() -> None:
    whole = b"".join(map(bytes, messages.pack(np.arange(10))))
    assert np.array_equal(read(whole), np.arange(10))
    for size in range(len(whole)):
        with pytest.raises(EOFError):
            read(whole[:size])
