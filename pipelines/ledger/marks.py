"""Marks: a file `_done*.json`, written last, says that folders are complete, and lists their files.

A mark is called by the folder that it is for, as in `videos/<digest>/_done.json`, and lies below
`marks/`: a folder of a table holds nothing but that table. Marks of before lie in the folder
itself, and count as well.

The one check of it is here: a run makes it before each step, the doctor for all of a run. What a
listing shows (a file is gone, has another size, or is listed nowhere) costs a request for a
thousand files. What is inside a file its own seal shows (`encoders.seal`), once it is read.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from encoders.seal import BLANK, ENTRY, DamagedError, is_whole, seal
from pipelines.storage.store import Store, is_visible

NOTE = "damaged.json"
"""A note of the doctor: files that the next run reads, however large, and makes again where they
are damaged.
"""

FOLDER = "marks"

Sizes = Callable[[str], dict[str, int]]
"""Gives {name: bytes} of the visible files of a folder."""


@dataclass(frozen=True)
class Fault:
    """A file that is not as its mark says.

    Attributes:
        mark: the mark that does not hold any more.
        is_there: there is a file that has to go.
    """

    mark: str
    file: str
    found: str
    is_there: bool = False


@dataclass(frozen=True)
class Contents:
    """The folders that a mark is for, and single files beside them."""

    folders: Sequence[str] = ()
    files: Sequence[str] = ()


def place(name: str) -> str:
    """Return the file of a mark, or of another note on a folder."""
    return f"{FOLDER}/{name}"


def find(store: Store, name: str) -> str:
    """Return the file of a mark or note, as it lies today or lay before; "" where there is none."""
    return next((file for file in (place(name), name) if store.exists(file)), "")


def holds(store: Store, mark: str) -> bool:
    """Return whether a mark is there, and all that it is for: whoever removes a folder by hand
    may leave its mark.
    """
    expected = Contents((_parent(mark),))
    return bool(find(store, mark)) and not check(store, mark, expected, store.sizes).faults


def _read(store: Store, mark: str) -> bytes:
    try:
        return store.read(place(mark))
    except FileNotFoundError:
        return store.read(mark)


def remove(store: Store, name: str) -> None:
    """Remove a mark or note, wherever it lies; or another file."""
    store.delete(name)
    if _is_mark(name):
        store.delete(place(name))


def remove_all(store: Store, folder: str) -> None:
    """Remove the marks of a folder."""
    for where in (place(folder), folder):
        for name in filter(_is_mark, store.sizes(where)):
            store.delete(name)


def remove_folder(store: Store, folder: str) -> None:
    """Remove a folder, and its marks before it."""
    for name in (place(folder), folder):
        store.delete_folder(name)


def publish_mark(store: Store, mark: str, facts: dict, contents: Contents) -> None:
    """Publish a mark of folders as they are, with facts for whoever reads it.

    Other marks and the page have no size in it: they are written again for themselves.
    """
    files: dict[str, int | None] = {
        name: None if name.endswith((".json", ".html")) else store.sizes(_parent(name)).get(name)
        for name in contents.files
    }
    for folder in contents.folders:
        files |= _visible(store.sizes(folder))
    value = facts | {"folders": list(contents.folders), "files": files, ENTRY: BLANK}
    store.publish(place(mark), seal(json.dumps(value, indent=1, sort_keys=True).encode()))


@dataclass
class Checked:
    """What a listing shows, and the files whose content is left to see: {name: (mark, bytes)}."""

    faults: list[Fault] = field(default_factory=list)
    left: dict[str, tuple[str, int]] = field(default_factory=dict)

    def blame(self, mark: str, name: str, found: str, *, is_there: bool = False) -> None:
        self.faults.append(Fault(mark, name, found, is_there))


def check(store: Store, mark: str, expected: Contents, sizes: Sizes) -> Checked:
    """Compare the files of a mark with a listing.

    Args:
        expected: what the mark is for. That counts where it is missing, or has no list because it
            is of before: then no folder may be empty.
    """
    checked = Checked()
    try:
        value = json.loads(_intact(mark, _read(store, mark)))
    except FileNotFoundError:
        value = None
    except DamagedError as error:
        checked.blame(mark, find(store, mark), str(error), is_there=True)
        value = None
    if value and "files" in value:
        _check_listed(checked, store, mark, value, sizes)
        return checked
    for folder in expected.folders:
        there = _visible(sizes(folder))
        checked.left |= {name: (mark, size) for name, size in there.items()}
        if value is not None and not there:
            checked.blame(mark, folder, GONE)
    for name in expected.files:
        if value is not None and _size_of(sizes, name) is None:
            checked.blame(mark, name, GONE)
    return checked


def _check_listed(checked: Checked, store: Store, mark: str, value: dict, sizes: Sizes) -> None:
    files = value["files"]
    for folder in value["folders"]:
        for name in _visible(sizes(folder)).keys() - files.keys():
            checked.blame(mark, name, "no step has written it", is_there=True)
    for name, size in files.items():
        there = _size_of(sizes, name)
        is_mark = name.endswith(".json")
        if there is None:
            checked.blame(name if is_mark else mark, place(name) if is_mark else name, GONE)
        elif size not in (None, there):
            found = f"it has {there:,} bytes, and was written with {size:,}"
            checked.blame(mark, name, found, is_there=True)
        elif is_mark:
            inside = check(store, name, Contents(), sizes)
            checked.faults += inside.faults
            checked.left |= inside.left
        else:
            checked.left[name] = (mark, there)


GONE = "it is gone"


def noted(store: Store) -> list[str]:
    """Return the files of the doctor's note; none where there is no note, or no list in it."""
    with contextlib.suppress(ValueError):
        names = (store.read_json(NOTE) or {}).get("files", [])
        return [name for name in names if isinstance(name, str)]
    return []


def note(store: Store, names: Iterable[str]) -> None:
    """Write the doctor's note anew, or remove it where no file is damaged."""
    if files := sorted(set(names)):
        store.publish_json(NOTE, {"files": files})
    elif store.exists(NOTE):
        store.delete(NOTE)


def _visible(sizes: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if is_visible(name, "")}


def _size_of(sizes: Sizes, name: str) -> int | None:
    """Return the bytes of a file, or of a mark wherever it lies; None where it is gone."""
    places = [name, place(name)] if _is_mark(name) else [name]
    return next(
        (found for file in places if (found := sizes(_parent(file)).get(file)) is not None), None
    )


def _is_mark(name: str) -> bool:
    return name.rpartition("/")[2].startswith("_done")


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _intact(name: str, data: bytes) -> bytes:
    """Return the bytes of a file.

    Raises:
        DamagedError: they are not those that were written.
    """
    if found := damage(name, data):
        raise DamagedError(found)
    return data


def damage(name: str, data: bytes) -> str:
    """Return what shows that the bytes of a file are not those that were written; "" for nothing.

    Files of before seals show it by their own means: Parquet by the checksums of its pages,
    safetensors by the sizes in its header.
    """
    whole = is_whole(data)
    if whole is not None:
        return "" if whole else "its bytes are not those that were written"
    try:
        _LOOKS[name.rpartition(".")[2]](data)
    except (ValueError, KeyError, TypeError, OSError, pa.ArrowException) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return ""


def _look_into_parquet(data: bytes) -> None:
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            file.read_row_group(group)


def _look_into_page(data: bytes) -> None:
    if not data.rstrip().endswith(b"</html>"):
        raise ValueError("expected </html> at its end, found none")


def tensor_entries(data: bytes) -> tuple[dict[str, dict], int]:
    """Return the entries of a safetensors file's tensors, and where their bytes begin.

    Raises:
        ValueError: the file does not hold what its header says.
    """
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= len(data) - 8:
        raise ValueError(f"expected a header of at most {len(data) - 8} bytes, got {size}")
    entries = json.loads(data[8 : 8 + size])
    entries.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if 8 + size + end != len(data):
        raise ValueError(f"expected {8 + size + end} bytes by its header, got {len(data)}")
    return entries, 8 + size


_LOOKS: dict[str, Callable[[bytes], object]] = {
    "parquet": _look_into_parquet,
    "safetensors": tensor_entries,
    "html": _look_into_page,
    "json": json.loads,
}
