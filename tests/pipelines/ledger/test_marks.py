"""Marks against a listing and against what is in the files; nothing here starts Ray."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from encoders.tensor_files import save_tensors
from pipelines.errors import RunError
from pipelines.ledger import marks
from pipelines.ledger.marks import Contents, check, damage, note, noted, publish_mark
from pipelines.storage.store import Store
from tests.pipelines.damage import DAMAGE

ROWS = pa.table({"video_id": [f"v{n}" for n in range(500)], "x": [float(n) for n in range(500)]})
MARK = "b/1/_done.json"
CONTENTS = Contents(("b/1", "c/1"), ("w/w.safetensors", "a/1/_done.json"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Folders b and c with a mark, a file w beside them, and a folder a with a mark of its own that
    the other one needs."""
    store = Store(str(tmp_path))
    store.publish("w/w.safetensors", save_tensors({"x": torch.ones(300)}, "x", {}))
    for name in ("a/1/x", "b/1/x", "b/1/y", "c/1/x"):
        store.publish_table(f"{name}.parquet", ROWS, {})
    publish_mark(store, "a/1/_done.json", {}, Contents(("a/1",)))
    publish_mark(store, MARK, {"seconds": 1.5}, CONTENTS)
    return store


def faults(store: Store, expected: Contents = CONTENTS) -> dict[str, str]:
    """{file that is not as it should be: the mark that does not hold}, by listing and by
    content."""
    checked = check(store, MARK, expected, store.sizes)
    found = {fault.file: fault.mark for fault in checked.faults}
    for name, (mark, _) in checked.left.items():
        if damage(name, store.read(name)):
            found[name] = mark
    return found


def test_a_mark_says_what_is_there_and_whatever_its_step_said(store: Store) -> None:
    value = json.loads(store.read(marks.place(MARK)))
    assert value["seconds"] == 1.5
    assert value["folders"] == ["b/1", "c/1"]
    assert value["files"] == {
        "a/1/_done.json": None,
        **{
            name: store.size_bytes(name)
            for name in ("b/1/x.parquet", "b/1/y.parquet", "c/1/x.parquet", "w/w.safetensors")
        },
    }
    assert faults(store) == {}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(
    "name", ["b/1/y.parquet", "c/1/x.parquet", "a/1/x.parquet", "w/w.safetensors"]
)
def test_what_befell_a_file_is_seen_and_its_mark_named(store: Store, name: str, how: str) -> None:
    odd = DAMAGE[how](Path(store.path(name))).relative_to(store.root)
    # A second file of weights is another run's.
    expected = (
        {}
        if (how, name[0]) == ("duplicated", "w")
        else {str(odd): "a/1/_done.json" if name[0] == "a" else MARK}
    )
    assert faults(store) == expected


@pytest.mark.parametrize("how", ["truncated", "flipped"])
@pytest.mark.parametrize("name", [MARK, "a/1/_done.json"])
def test_a_damaged_mark_does_not_hold(store: Store, name: str, how: str) -> None:
    DAMAGE[how](Path(store.path(marks.place(name))))
    assert faults(store) == {marks.place(name): name}


def test_a_mark_that_another_needs_is_missed(store: Store) -> None:
    marks.remove(store, "a/1/_done.json")
    assert faults(store) == {marks.place("a/1/_done.json"): "a/1/_done.json"}


def test_an_empty_file_is_damaged_whatever_it_was(store: Store) -> None:
    for name in ("b/1/x.parquet", "w/w.safetensors"):
        store.publish(name, b"")
    assert faults(store) == {"b/1/x.parquet": MARK, "w/w.safetensors": MARK}


@pytest.mark.parametrize("old", ["{}", '{"video_fisher.step": "index"}'])
def test_a_mark_of_before_holds_while_no_folder_is_empty(store: Store, old: str) -> None:
    for name in ("b/1/x", "b/1/y", "c/1/x"):
        pq.write_table(ROWS, store.path(f"{name}.parquet"), write_page_checksum=True)
    store.publish("w/w.safetensors", safetensors.torch.save({"x": torch.ones(300)}))
    marks.remove(store, MARK)
    store.publish(MARK, old.encode())
    assert faults(store) == {}
    store.delete("b/1/x.parquet")
    assert faults(store) == {}
    Path(store.path("b/1/y.parquet")).write_bytes(
        Path(store.path("b/1/y.parquet")).read_bytes()[:-9]
    )
    assert faults(store) == {"b/1/y.parquet": MARK}
    shutil.rmtree(store.path("c/1"))
    store.delete("w/w.safetensors")
    assert faults(store) == {"b/1/y.parquet": MARK, "c/1": MARK, "w/w.safetensors": MARK}


def test_pages_of_files_of_before_are_compared_with_their_checksums(store: Store) -> None:
    name = "b/1/x.parquet"
    pq.write_table(
        ROWS, store.path(name), write_page_checksum=True, compression="none", use_dictionary=False
    )
    assert damage(name, store.read(name)) == ""
    data = bytearray(store.read(name))
    data[pq.read_metadata(store.path(name)).row_group(0).column(1).data_page_offset + 200] ^= 1
    assert "checksum" in damage(name, bytes(data))


def test_a_folder_without_a_mark_is_looked_into(store: Store) -> None:
    """A run that was killed goes on from what is there."""
    marks.remove(store, MARK)
    store.delete("c/1/x.parquet")
    assert faults(store) == {}
    DAMAGE["flipped"](Path(store.path("b/1/x.parquet")))
    assert faults(store) == {"b/1/x.parquet": MARK}


READS: dict[str, Callable[[Store, str], object]] = {
    "folder": lambda store, name: store.read_table("b/1"),
    "batches": lambda store, name: list(store.batches(name, ["x"])),
    "rows": lambda store, name: store.read_rows("b/1", None, "video_id", ["v7"]),
    "footer": lambda store, name: store.footer(name),
}


@pytest.mark.parametrize(
    ("read", "how"),
    [
        (read, how)
        for read in READS
        for how in ("truncated", "flipped")
        if (read, how) != ("footer", "flipped")
    ],
)
def test_a_reader_of_a_damaged_file_is_told_which_and_what_to_do(
    store: Store, read: str, how: str
) -> None:
    """Large tables are not looked into before they are read. The flipped bytes are not in the
    footer."""
    name = "b/1/x.parquet"
    DAMAGE[how](Path(store.path(name)))
    message = r"b/1/x.parquet: expected the bytes that were written.*jobs.doctor"
    with pytest.raises(RunError, match=message):
        READS[read](store, name)


def test_the_note_names_files_until_they_are_mended(store: Store) -> None:
    assert noted(store) == []
    note(store, ["b", "a", "b"])
    assert noted(store) == ["a", "b"]
    note(store, [])
    assert not store.exists(marks.NOTE)
    for odd in (b"{", b"[]", b'{"files": [1]}'):
        store.publish(marks.NOTE, odd)
        assert noted(store) == []
