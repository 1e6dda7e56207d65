"""Messages between the decoder's child and its parent: JSON, then the bytes of arrays.

Nothing in a message can run code.

    8 bytes of magic, 8 bytes length of the header | header | array, array, ...
    header: {"value": VALUE, "arrays": [[dtype, shape], ...]}

Lists, tuples and sets are lists, a mapping is a list of pairs, a record an object of its fields,
an array {"array": its index}. The reader says which type it expects, down to the fields of records,
and makes nothing else: so a message may come from a process that has parsed a hostile file.
"""

import dataclasses
import functools
import json
import math
import struct
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MAGIC = b"vf-plain"
HEAD = struct.Struct("!8sQ")

MAX_HEADER_BYTES = 16 * 2**20
_MAX_DIMENSIONS = 8
_DTYPES = {
    name: np.dtype(name) for name in ("bool", "uint8", "int32", "int64", "float32", "float64")
}
_INT_BITS = 64


class MessageError(ValueError):
    """An error of a message that is not of the expected form."""


def pack(value: object) -> list[bytes | memoryview]:
    """Return the parts of a message: head and header, then the arrays, which are not copied.

    Raises:
        TypeError: the value is, or holds, what no message can carry.
    """
    arrays: list[np.ndarray] = []
    plain = _plain(value, arrays)
    header = {"value": plain, "arrays": [[a.dtype.name, a.shape] for a in arrays]}
    content = json.dumps(header).encode()
    return [HEAD.pack(MAGIC, len(content)) + content, *(array.data for array in arrays)]


def _plain(value: Any, arrays: list[np.ndarray]) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, arrays) for item in value]
    if isinstance(value, Mapping):
        return [[_plain(key, arrays), _plain(item, arrays)] for key, item in value.items()]
    if isinstance(value, np.ndarray) and value.dtype.name in _DTYPES:
        arrays.append(np.asarray(value, order="C"))
        return {"array": len(arrays) - 1}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: _plain(getattr(value, f.name), arrays) for f in fields}
    raise TypeError(f"no plain message can carry a {type(value).__name__}")


def receive(read: Callable[[int], memoryview], max_bytes: int) -> tuple[object, list[np.ndarray]]:
    """Return the plain value of a message, for `typed`, and its arrays, which can be written to.

    Args:
        read: gives the next bytes of the message, exactly as many as asked for.
        max_bytes: most that all arrays may take.

    Raises:
        MessageError: it is no message, or a larger one.
    """
    magic, size = HEAD.unpack(read(HEAD.size))
    if magic != MAGIC or size > MAX_HEADER_BYTES:
        raise MessageError(f"starts with {magic!r} and a header of {size} bytes")
    try:
        header = json.loads(bytes(read(size)))
    except (ValueError, RecursionError) as error:
        raise MessageError(f"its header is no JSON: {error}") from None
    match header:
        case {"value": value, "arrays": [*described]}:
            forms = [_form(form) for form in described]
        case _:
            raise MessageError("its header names no value and arrays")
    total_bytes = sum(dtype.itemsize * math.prod(shape) for dtype, shape in forms)
    if total_bytes > max_bytes:
        raise MessageError(f"promises {total_bytes} bytes of arrays, at most {max_bytes} are taken")
    return value, [_array(read, dtype, shape) for dtype, shape in forms]


def _form(described: object) -> tuple[np.dtype, tuple[int, ...]]:
    match described:
        case [str(name), [*shape]] if name in _DTYPES and len(shape) <= _MAX_DIMENSIONS:
            if all(type(size) is int and 0 <= size < 2**_INT_BITS for size in shape):
                return _DTYPES[name], tuple(shape)
    raise MessageError(f"describes an array by {str(described)[:100]}")


def _array(
    read: Callable[[int], memoryview], dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    content = read(dtype.itemsize * math.prod(shape))
    return np.frombuffer(content, dtype).reshape(shape)


def typed(value: Any, expected: Any, arrays: list[np.ndarray]) -> Any:
    """Return the value that a plain one stands for, where it is of the expected type.

    Args:
        expected: as in annotations; `object` for plain values of any form.

    Raises:
        MessageError: it is of another type.
        ValueError: a record does not take the values of its fields.
    """
    if expected in (object, Any):
        return _untyped(value, arrays)
    if isinstance(expected, type) and dataclasses.is_dataclass(expected):
        return _record(value, expected, arrays)
    if (read := _READERS.get(typing.get_origin(expected) or expected)) is None:
        raise TypeError(f"no plain message can carry a {expected}")
    return read(value, expected, arrays)


def _wrong(value: object, expected: object) -> MessageError:
    name = expected.__name__ if isinstance(expected, type) else str(expected)
    return MessageError(f"expected {name}, got {type(value).__name__} {str(value)[:100]!r}")


def _untyped(value: Any, arrays: list[np.ndarray]) -> Any:
    match value:
        case {"array": _}:
            return _numbers(value, np.ndarray, arrays)
        case [*items]:
            return [_untyped(item, arrays) for item in items]
        case dict():
            raise MessageError(f"holds a record of {', '.join(value)}, where none is declared")
    return _scalar(value, type(value), arrays)


def _scalar(value: Any, expected: Any, arrays: list[np.ndarray]) -> Any:
    is_int = type(value) is int
    if is_int and not -(2 ** (_INT_BITS - 1)) <= value < 2 ** (_INT_BITS - 1):
        raise MessageError(
            f"expected a number of {_INT_BITS} bits, got one of {value.bit_length()}"
        )
    if is_int and expected is float:
        return float(value)
    if type(value) is not expected:
        raise _wrong(value, expected)
    if isinstance(value, str):
        value.encode()  # a half of a surrogate pair is in no table
    return value


def _literal(value: Any, expected: Any, arrays: list[np.ndarray]) -> Any:
    for one in typing.get_args(expected):
        if type(value) is type(one) and value == one:
            return one
    raise _wrong(value, expected)


def _union(value: Any, expected: Any, arrays: list[np.ndarray]) -> Any:
    for one in typing.get_args(expected):
        try:
            return typed(value, one, arrays)
        except MessageError:
            continue
    raise _wrong(value, expected)


def _tuple(value: Any, expected: Any, arrays: list[np.ndarray]) -> tuple:
    kinds = typing.get_args(expected)
    if not isinstance(value, list):
        raise _wrong(value, expected)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise _wrong(value, expected)
    return tuple(typed(item, kind, arrays) for item, kind in zip(value, kinds, strict=True))


def _mapping(value: Any, expected: Any, arrays: list[np.ndarray]) -> dict:
    if not isinstance(value, list):
        raise _wrong(value, expected)
    pair = tuple[typing.get_args(expected)]
    return dict(_tuple(item, pair, arrays) for item in value)


def _numbers(value: Any, expected: Any, arrays: list[np.ndarray]) -> np.ndarray:
    match value:
        case {"array": int(index)} if 0 <= index < len(arrays):
            return arrays[index]
    raise _wrong(value, expected)


def _record(value: Any, expected: type, arrays: list[np.ndarray]) -> Any:
    """Return a record of the class, or of that subclass of it, whose fields the value has."""
    if isinstance(value, dict):
        for kind in (expected, *expected.__subclasses__()):
            hints = fields_of(kind)
            if hints.keys() == value.keys():
                return kind(**{n: typed(value[n], hint, arrays) for n, hint in hints.items()})
    raise _wrong(value, expected)


@functools.cache
def fields_of(kind: type) -> dict[str, Any]:
    """Return {field: type} of a record class."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


_READERS: dict[Any, Callable[[Any, Any, list[np.ndarray]], Any]] = {
    **dict.fromkeys((bool, int, float, str, types.NoneType), _scalar),
    **dict.fromkeys((typing.Union, types.UnionType), _union),
    typing.Literal: _literal,
    tuple: _tuple,
    dict: _mapping,
    np.ndarray: _numbers,
}
