"""Which columns of descriptors a node's maps give, and what is in them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders.descriptors.differences import rank_pooled, signed_parts
from encoders.descriptors.streams import Stream, appearance, scale, streams_of
from encoders.stream_specs import (
    FRAME,
    SPECS,
    DifferenceSpec,
    FlowSpec,
    RankSpec,
    StreamSpec,
    Window,
    kind_of,
)

ALL = tuple((kind, SPECS[kind]) for kind in ("appearance", "difference", "positions"))
PAIRS = Window(num_frames=2)


def made(
    shapes: dict[str, tuple[int, int, int]], entries: tuple = ALL, levels: tuple[int, ...] = (2, 1)
) -> dict[str, Stream]:
    named = [(kind, spec, spec.nodes or tuple(shapes)) for kind, spec in entries]
    return streams_of(shapes, named, "per_position", levels)


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_map_gives_each_kind_and_a_vector_only_itself() -> None:
    streams = made({"features.12": (8, 7, 5), "fc7": (16, 1, 1)})
    assert [(s.name, s.node, s.kind, s.cells, s.width, s.window) for s in streams.values()] == [
        ("features_12_appearance", "features.12", "appearance", 5, 8, FRAME),
        ("features_12_difference", "features.12", "difference", 5, 16, PAIRS),
        ("features_12_positions", "features.12", "positions", 35, 8, FRAME),
        ("fc7_global", "fc7", "global", 1, 16, FRAME),
    ]
    assert list(streams) == [stream.name for stream in streams.values()]


def test_names_say_what_was_given() -> None:
    entries = (
        *ALL,
        ("difference", DifferenceSpec(gap=3)),
        ("difference", DifferenceSpec(gap_s=0.2)),
        ("difference", DifferenceSpec(gap_s=2)),
        ("difference", DifferenceSpec(gap=3, scaling="whole_map")),
        ("rank", RankSpec()),
        ("rank", RankSpec(frames=2)),
        ("rank", RankSpec(gap=1, frames=5)),
        ("rank", RankSpec(gap_s=0.04, frames=25, scaling="per_position")),
    )
    streams = made({"a.b": (4, 3, 3)}, entries)
    assert list(streams)[3:] == [
        "a_b_difference_gap3",
        "a_b_difference_gap0_2s",
        "a_b_difference_gap2s",
        "a_b_difference_gap3_whole_map",
        "a_b_rank_x5",
        "a_b_rank_x2",
        "a_b_rank_gap1x5",
        "a_b_rank_gap0_04sx25_per_position",
    ]
    kinds = [kind for kind, _ in entries]
    assert [kind_of(name) for name in streams] == kinds
    assert kind_of("fc7_global") == "global"
    assert kind_of("nonsense") == ""


gaps = st.builds(lambda kind, gap, ms, frames, scaling: (kind, gap, ms, frames, scaling),
    st.sampled_from(["difference", "rank"]), st.integers(0, 30), st.integers(0, 4000),
    st.integers(2, 30), st.sampled_from([None, "per_position", "whole_map"]))  # fmt: skip


@given(st.lists(gaps, min_size=2, max_size=2, unique=True))
def test_different_entries_have_different_names(entries: list[tuple]) -> None:
    found = set()
    for kind, gap, milliseconds, frames, scaling in entries:
        gap_s = 0 if gap else milliseconds / 1000
        more = {"frames": frames} if kind == "rank" else {}
        spec = {"difference": DifferenceSpec, "rank": RankSpec}[kind](
            gap=gap, gap_s=gap_s, scaling=scaling, **more
        )
        found.add((kind, spec))
    (node,) = ({"n": (2, 3, 3)},)
    assert len(made(node, tuple(found))) == len(found)


def test_entries_take_nodes_and_scaling_of_their_own() -> None:
    entries = (
        ("appearance", StreamSpec(nodes=("b",))),
        ("positions", StreamSpec(nodes=("a", "b"), scaling="whole_map")),
    )
    streams = made({"a": (2, 3, 3), "b": (4, 3, 3)}, entries)
    assert list(streams) == ["a_positions_whole_map", "b_appearance", "b_positions_whole_map"]
    assert [s.scaling for s in streams.values()] == ["whole_map", "per_position", "whole_map"]
    maps, places = random_maps(2, 4, 3, 3), torch.tensor([[1]])
    rows = streams["b_positions_whole_map"].describe(maps, places)
    assert torch.equal(rows[0], scale(maps[1:], "whole_map").flatten(2)[0].T)


@pytest.mark.parametrize("kind", ["appearance", "positions"])
def test_descriptors_are_those_of_the_selected_frames(kind: str) -> None:
    stream = made({"n": (3, 4, 6)}, ALL, (3, 1))[f"n_{kind}"]
    maps, places = random_maps(5, 3, 4, 6), torch.tensor([[0], [3]])
    rows = stream.describe(maps, places)
    assert rows.shape == (2, stream.cells, stream.width)
    own = maps[[0, 3]]
    expected = {
        "appearance": lambda: appearance(own, "per_position", (3, 1)),
        "positions": lambda: scale(own, "per_position").permute(0, 2, 3, 1).reshape(2, 24, 3),
    }[kind]()
    assert torch.equal(rows, expected)


def rank_loop(maps: np.ndarray, window: list[int]) -> np.ndarray:
    """sum over t = 1..n of (2t - n - 1) v_t, value by value; positive parts before negative
    ones."""
    channels, height, width = maps.shape[1:]
    parts = np.zeros((2 * channels, height, width))
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                total = 0.0
                for t, place in enumerate(window, start=1):
                    total += (2 * t - len(window) - 1) * float(maps[place, c, y, x])
                parts[c if total > 0 else channels + c, y, x] = abs(total)
    return parts


@pytest.mark.parametrize("entry", [("difference", DifferenceSpec(scaling="relative")),
    ("rank", RankSpec(frames=3, scaling="relative"))])  # fmt: skip
def test_a_relative_change_is_over_the_mean_length_of_its_frames(entry: tuple) -> None:
    (stream,) = made({"n": (3, 5, 4)}, (entry,), (1,)).values()
    maps = random_maps(4, 3, 5, 4)
    window = [0, 1, 3][: entry[1].window.num_frames]
    found = stream.describe(maps, torch.tensor([window]))
    lengths = [np.sqrt(sum(float(v) ** 2 for v in maps[t].flatten())) for t in window]
    expected = rank_loop(maps.numpy(), window).reshape(6, -1).max(1) * 158 / np.mean(lengths)
    np.testing.assert_allclose(found.numpy()[0, 0], expected, rtol=1e-5)
    # Twice the contrast is the same change; a change half as large is half as long.
    torch.testing.assert_close(stream.describe(2 * maps, torch.tensor([window])), found)
    assert stream.name.endswith("_relative")
    assert kind_of(stream.name) == entry[0]


def described_loop(parts: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    """L2 norm of each position, then the largest value of each cell of the pyramid."""
    channels, height, width = parts.shape
    for y in range(height):
        for x in range(width):
            length = np.sqrt((parts[:, y, x] ** 2).sum())
            parts[:, y, x] /= length if length > 0 else 1
    rows = []
    for side in levels:
        for i in range(side):
            for j in range(side):
                top, bottom = i * height // side, -(-(i + 1) * height // side)
                left, right = j * width // side, -(-(j + 1) * width // side)
                rows.append(parts[:, top:bottom, left:right].reshape(channels, -1).max(1))
    return np.array(rows)


@pytest.mark.parametrize(
    ("entry", "places"),
    [
        (("difference", DifferenceSpec()), [[0, 1], [1, 2], [2, 3]]),
        (("difference", DifferenceSpec(gap=2)), [[0, 2], [0, 2], [3, 5]]),
        (("difference", DifferenceSpec(gap_s=0.5)), [[1, 5]]),
        (("rank", RankSpec(frames=3)), [[0, 1, 2], [1, 2, 3]]),
        (("rank", RankSpec(gap=1, frames=4)), [[2, 3, 4, 5], [0, 0, 1, 5]]),
        (("rank", RankSpec(gap=1, frames=5)), [[1, 2, 3, 4, 5]]),
    ],
)
def test_changes_are_the_weighted_sums_of_their_windows(
    entry: tuple, places: list[list[int]]
) -> None:
    (stream,) = made({"n": (3, 5, 4)}, (entry,), (3, 1)).values()
    maps = random_maps(6, 3, 5, 4)
    rows = stream.describe(maps, torch.tensor(places))
    assert rows.shape == (len(places), 10, 6) == (len(places), stream.cells, stream.width)
    for row, window in zip(rows, places, strict=True):
        expected = described_loop(rank_loop(maps.numpy(), window), (3, 1))
        np.testing.assert_allclose(row.numpy(), expected, atol=1e-6)


def test_rank_pooling_of_two_frames_is_the_difference_bit_by_bit() -> None:
    maps, places = random_maps(4, 3, 5, 5), torch.tensor([[0, 1], [1, 2], [2, 3]])
    assert torch.equal(rank_pooled(maps, places), maps[1:] - maps[:-1])
    streams = made({"n": (3, 5, 5)}, (ALL[1], ("rank", RankSpec(frames=2))))
    first, second = (stream.describe(maps, places) for stream in streams.values())
    assert torch.equal(first, second)


def test_both_signs_are_kept_apart() -> None:
    signed = random_maps(3, 4, 5, 5)
    parts = signed_parts(signed)
    assert (parts >= 0).all()
    assert torch.equal(parts[:, :4] - parts[:, 4:], signed)
    assert (parts[:, :4] * parts[:, 4:] == 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 6))
def test_frames_in_reverse_order_swap_the_signs(seed: int, channels: int, num_frames: int) -> None:
    """Of a difference bit by bit, and of rank pooling where sums are exact, as those of whole
    numbers are."""
    maps = random_maps(num_frames, channels, 5, 4, seed=seed)
    pairs = torch.stack([torch.arange(num_frames - 1), torch.arange(1, num_frames)], 1)
    whole = (8 * maps).round(), torch.arange(num_frames)[None]
    for own, places in ((maps, pairs), whole):
        parts = signed_parts(rank_pooled(own, places))
        # The same windows from their last frames to their first; they follow each other in reverse
        # order too.
        mirrored = signed_parts(rank_pooled(own.flip(0), (num_frames - 1 - places).flip(0, 1)))
        positive, negative = parts.flip(0).chunk(2, dim=1)
        assert torch.equal(mirrored, torch.cat([negative, positive], dim=1))


@pytest.mark.parametrize("frames", [2, 5])
def test_no_window_gives_no_descriptor_and_is_no_error(frames: int) -> None:
    (stream,) = made({"n": (3, 5, 5)}, (("rank", RankSpec(frames=frames)),)).values()
    nothing = torch.zeros(0, frames, dtype=torch.int64)
    for num_images in (0, 1):
        rows = stream.describe(random_maps(num_images, 3, 5, 5), nothing)
        assert rows.shape == (0, stream.cells, 6)


def test_a_still_video_has_zero_changes() -> None:
    maps = random_maps(1, 3, 7, 7).expand(5, -1, -1, -1)
    for frames in (2, 4, 5):
        assert not rank_pooled(maps, torch.arange(frames)[None]).abs().max() > 1e-5


def test_global_values_stay_as_they_are() -> None:
    stream = made({"fc": (3, 1, 1)})["fc_global"]
    maps = random_maps(3, 3, 1, 1)
    assert torch.equal(stream.describe(maps, torch.tensor([[2]])), maps[2:].view(1, 1, 3))


def test_names_that_would_be_one_column_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got a_1_appearance of 'a\.1' and 'a_1'"):
        made({"a.1": (3, 4, 4), "a_1": (3, 2, 2)})
    with pytest.raises(ValueError, match="got n_difference of 'n' and 'n'"):
        made({"n": (3, 4, 4)}, (ALL[1], ("difference", DifferenceSpec(nodes=("n",)))))


def test_flow_has_streams_of_its_own_and_as_many_channels_as_the_network_takes() -> None:
    entries = (("flow", FlowSpec(stack=5)), ALL[0], ("flow", FlowSpec()), ("rank", RankSpec()))
    streams = made({"input": (3, 4, 4), "n": (8, 3, 3), "fc": (6, 1, 1)}, entries)
    assert {name: (s.kind, s.width, s.cells) for name, s in streams.items()} == {
        "input_flow_x5": ("appearance", 10, 5),
        "input_appearance": ("appearance", 3, 5),
        "input_flow": ("appearance", 3, 5),
        "input_rank_x5": ("difference", 6, 5),
        "n_flow_x5": ("appearance", 8, 5),
        "n_appearance": ("appearance", 8, 5),
        "n_flow": ("appearance", 8, 5),
        "n_rank_x5": ("difference", 16, 5),
        "fc_global": ("global", 6, 1),
        "fc_flow_x5_global": ("global", 6, 1),
        "fc_flow_global": ("global", 6, 1),
    }
    assert streams["n_flow_x5"].flow == FlowSpec(stack=5).window
    assert streams["n_rank_x5"].flow is None


flow_fields = st.fixed_dictionaries({
    "method": st.sampled_from(["dis", "tvl1"]), "gap": st.integers(1, 30),
    "stack": st.integers(1, 20),
    "bound_px": st.integers(1, 999).map(lambda tenths: tenths / 10),
    "scaling": st.sampled_from(["", "per_position", "none"])})  # fmt: skip


@given(st.lists(flow_fields, min_size=2, max_size=2, unique_by=str))
def test_different_flows_have_different_names_that_say_they_are_flow(entries: list[dict]) -> None:
    specs = {FlowSpec(**fields) for fields in entries}
    names = list(made({"n": (2, 3, 3)}, tuple(("flow", spec) for spec in specs)))
    assert len(names) == len(specs)
    assert {kind_of(name) for name in names} == {"flow"}
