"""Files that say themselves whether they are as they were written."""

import random

import pytest
import safetensors.torch
import torch

from encoders.encodings.pooling import Average
from encoders.registry import encoder_from_bytes
from encoders.seal import BLANK, ENTRY, DamagedError, is_whole, seal
from encoders.svm.classifiers import LinearClassifier
from encoders.tensor_files import load_tensors, metadata_of, save_tensors, sealed

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(5, dtype=torch.float16)}
FILE = save_tensors(TENSORS, "encoder", {"name": "x"})


def flipped(data: bytes, place: int, count: int = 3) -> bytes:
    return (
        data[:place]
        + bytes(byte ^ 0xFF for byte in data[place : place + count])
        + data[place + count :]
    )


def test_a_file_holds_what_was_saved_and_any_reader_of_safetensors_takes_it() -> None:
    for loaded in (load_tensors(FILE), safetensors.torch.load(FILE)):
        assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
            name: t.tolist() for name, t in TENSORS.items()
        }
    assert metadata_of(FILE)["encoder"] == '{"name": "x"}'
    assert save_tensors(dict(TENSORS), "encoder", {"name": "x"}) == FILE
    assert (len(FILE) - sum(t.nbytes for t in TENSORS.values())) % 8 == 0


@pytest.mark.parametrize("place", range(0, len(FILE) - 2))
def test_three_flipped_bytes_are_seen_wherever_they_are(place: int) -> None:
    """In the header, in the digest, in its name, and in the values."""
    assert is_whole(flipped(FILE, place)) is False
    with pytest.raises(DamagedError, match="expected the bytes that were written"):
        load_tensors(flipped(FILE, place))


def test_a_file_of_before_has_no_seal_and_is_read() -> None:
    old = safetensors.torch.save(TENSORS, metadata={"encoder": "{}"})
    assert is_whole(old) is None
    assert load_tensors(old)["b"].tolist() == TENSORS["b"].tolist()
    assert is_whole(sealed(old)) is True
    assert metadata_of(sealed(old, more="1"))["encoder"] == "{}"


def test_codebooks_and_classifiers_are_not_built_of_other_bytes() -> None:
    codebook = Average(3, "l2").to_bytes()
    classifier = LinearClassifier(
        TENSORS["b"].numpy(), torch.zeros(2).numpy(), ("x", "y")
    ).to_bytes()
    draw = random.Random(0)
    for data, load in ((codebook, encoder_from_bytes), (classifier, LinearClassifier.from_bytes)):
        load(data)
        for _ in range(20):
            with pytest.raises(DamagedError):
                load(flipped(data, draw.randrange(len(data) - 3)))


def test_only_a_blank_place_is_sealed() -> None:
    text = f'{{"{ENTRY}": "{BLANK}"}}'.encode()
    assert is_whole(seal(text)) is True
    for data in (b"{}", seal(text)):
        with pytest.raises(ValueError, match="zeros, found none"):
            seal(data)
