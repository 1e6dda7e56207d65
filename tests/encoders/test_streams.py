"""Which columns of descriptors a node's maps give."""

import pytest
import torch

from encoders.descriptors import Stream, appearance, difference, scale, streams_of

ALL = ("appearance", "difference", "positions")


def test_a_map_gives_each_kind_and_a_vector_only_itself() -> None:
    streams = streams_of({"features.12": (8, 7, 5), "fc7": (16, 1, 1)}, ALL, (2, 1))
    assert streams == {
        "features_12_appearance": Stream(
            "features_12_appearance", "features.12", "appearance", 5, 8
        ),
        "features_12_difference": Stream(
            "features_12_difference", "features.12", "difference", 5, 16
        ),
        "features_12_positions": Stream("features_12_positions", "features.12", "positions", 35, 8),
        "fc7_global": Stream("fc7_global", "fc7", "global", 1, 16),
    }


@pytest.mark.parametrize("name", ["n_appearance", "n_difference", "n_positions"])
def test_descriptors_have_the_declared_shape(name: str) -> None:
    stream = streams_of({"n": (3, 4, 6)}, ALL, (3, 1))[name]
    maps = torch.rand(5, 3, 4, 6)
    rows = stream.describe(maps, "per_position", (3, 1))
    assert rows.shape == (4 if stream.kind == "difference" else 5, stream.cells, stream.width)
    expected = {
        "appearance": lambda: appearance(maps, "per_position", (3, 1)),
        "difference": lambda: difference(maps, "per_position", (3, 1)),
        "positions": lambda: scale(maps, "per_position").permute(0, 2, 3, 1).reshape(5, 24, 3),
    }[stream.kind]()
    assert torch.equal(rows, expected)


def test_global_values_stay_as_they_are() -> None:
    stream = streams_of({"fc": (3, 1, 1)}, ("appearance",), (1,))["fc_global"]
    maps = torch.rand(2, 3, 1, 1) * 9
    assert torch.equal(stream.describe(maps, "per_position", (1,)), maps.view(2, 1, 3))


def test_names_that_would_be_one_column_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got 'a\.1' and 'a_1'"):
        streams_of({"a.1": (3, 4, 4), "a_1": (3, 2, 2)}, ("appearance",), (1,))
