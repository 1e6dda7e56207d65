"""Weights that a run keeps: trusted by what is in the file."""

from pathlib import Path

import pytest
import safetensors.torch

from encoders.backbones import load
from encoders.seal import is_whole
from encoders.tensor_files import load_tensors
from pipelines.describe.weights import resolve
from pipelines.settings.sections import Describe
from pipelines.storage.store import Store

FIRST, SECOND = (
    resolve(Describe(backbone="squeezenet1_0", nodes=("features.5",), weights=f"random:{seed}"))
    for seed in (0, 1)
)


def first_filters(store: Store) -> list:
    return load_tensors(store.read(FIRST.file))["features.0.weight"].tolist()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    FIRST.keep(store)
    return store


def test_weights_that_are_there_are_kept(store: Store) -> None:
    before = Path(store.path(FIRST.file)).stat().st_mtime_ns
    FIRST.keep(store)
    assert Path(store.path(FIRST.file)).stat().st_mtime_ns == before
    assert is_whole(store.read(FIRST.file)) is True


def test_other_weights_under_their_name_and_damaged_ones_are_replaced(store: Store) -> None:
    right = first_filters(store)
    SECOND.keep(store)
    store.publish(FIRST.file, store.read(SECOND.file))
    assert first_filters(store) != right
    FIRST.keep(store)
    assert first_filters(store) == right
    data = bytearray(store.read(FIRST.file))
    data[-1000] ^= 1
    for broken in (bytes(data), bytes(data)[:-5000], b""):
        store.publish(FIRST.file, broken)
        FIRST.keep(store)
        assert first_filters(store) == right


def test_weights_of_a_run_of_before_have_no_seal_and_count(store: Store) -> None:
    SECOND.keep(store)
    state = load_tensors(store.read(SECOND.file))
    store.publish(FIRST.file, safetensors.torch.save(state))
    FIRST.keep(store)
    assert load.load_model("squeezenet1_0", store.read(FIRST.file))
    assert is_whole(store.read(FIRST.file)) is None
