"""Places and levels, against plain loops over frames and cells."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from torch import Tensor

from encoders.codebooks.sample import FitSample
from encoders.descriptors.pyramid import pyramid_pool
from encoders.encodings.spatial import Spatial, cell_levels, cell_positions
from encoders.registry import encoder_from_bytes, fit_encoder
from encoders.settings import (
    CODEBOOK,
    AveSettings,
    BilinearSettings,
    FvVaeSettings,
    GmmFvSettings,
    SpatialSettings,
    VladSettings,
)
from tests.encoders import oracles

LEVELS, T, C = (2, 1), 5, 4
VIDEO = torch.arange(6).repeat_interleave(3)
SETTINGS: dict[str, AveSettings | SpatialSettings] = {
    "ave": AveSettings(),
    "bilinear": BilinearSettings(),
    "fv_vae": FvVaeSettings(
        num_latents=3, hidden=(), num_steps=8, optimiser="adam", learning_rate=0.01
    ),
    "gmm_fv": GmmFvSettings(num_components=2, max_iterations=4),
    "vlad": VladSettings(num_centroids=3),
}


def frames(num_frames: int = 18, cells: int = T, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 + torch.rand(num_frames, cells, C, generator=generator)


def sample(cells: int = T, **changed: object) -> FitSample:
    given = {"frames": frames(cells=cells), "video": VIDEO, "levels": LEVELS, "seed": 2}
    return FitSample(**given | changed)


def fit(name: str, of: FitSample | None = None, **changed: object) -> Spatial:
    return fit_encoder(name, of or sample(), replace(SETTINGS[name], **changed), "signed_sqrt_l2")


@trials(deadline=None, max_examples=30)
@given(
    levels=st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True), views=st.integers(1, 3)
)
def test_places_are_where_the_pyramid_pools(levels: list[int], views: int) -> None:
    """Pooled coordinates of a fine map: their largest in a cell is its end, so its centre is half a
    cell before."""
    size = 60
    ends = torch.arange(1, size + 1) / size
    maps = torch.stack([ends.expand(size, size), ends.expand(size, size).T])[None]
    pooled = pyramid_pool(maps, tuple(levels))[0].double()
    sides = torch.tensor([side for side in levels for _ in range(side**2)])
    places = cell_positions(tuple(levels), views * len(sides))
    assert places.shape == (views * len(sides), 3)
    expected = pooled - 0.5 / sides[:, None] - 0.5
    torch.testing.assert_close(places[:, :2], expected.repeat(views, 1), atol=1e-6, rtol=0)
    assert (places.abs() <= 0.5).all()
    order = cell_levels(tuple(levels), views * len(sides))
    assert torch.equal(torch.tensor(levels)[order], sides.repeat(views))


def test_scale_grows_with_the_cell() -> None:
    scale = cell_positions((6, 3, 1), 46)[:, 2]
    assert scale[0] == -0.5
    assert scale[45] == 0.5
    assert scale[36] == pytest.approx(math.log(2) / math.log(6) - 0.5)
    assert not cell_positions((3,), 9)[:, 2].any()


@pytest.mark.parametrize("weight", [0.5, 2.0])
@pytest.mark.parametrize("unit", [1.0, 158.0])
def test_vlad_with_places_is_that_of_longer_descriptors(weight: float, unit: float) -> None:
    """The weight is relative to the descriptors' length, whatever their scaling."""
    whole = sample(frames=frames() * unit)
    encoder = fit("vlad", whole, position_weight=weight)
    x = whole.frames.double().numpy()
    length = math.sqrt(sum((row**2).sum() for frame in x for row in frame) / (18 * T))
    places = cell_positions(LEVELS, T).numpy() * weight * length
    np.testing.assert_allclose(encoder.positions.numpy(), places, rtol=1e-6)
    video = frames(7, seed=1).double().numpy() * unit
    rows = np.array([[*frame[k], *places[k]] for frame in video for k in range(T)])
    expected = oracles.vlad(encoder.parts[0].centroids.double().numpy(), rows, intra=False)
    found = encoder.encode(torch.from_numpy(video).reshape(7, -1)).double().numpy()
    assert encoder.output_dim == 3 * (C + 3)
    # Squared: the root turns an error of e in a value near 0 into one of sqrt(e).
    np.testing.assert_allclose(found * np.abs(found), expected * np.abs(expected), atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("views", [1, 2])
def test_levels_have_codebooks_of_their_own_cells(name: str, views: int) -> None:
    """Each level as the plain encoder fitted on its cells alone; then L2 of all."""
    whole = sample(cells=views * T)
    encoder = fit(name, whole, per_level=True)
    video = frames(7, cells=views * T, seed=1)
    vectors = []
    for level in range(2):
        own = [k for k in range(views * T) if (k % T < 4) == (level == 0)]
        part = fit(name, sample(frames=whole.frames[:, own].contiguous()))
        vectors.append(part.encode(video[:, own].reshape(-1, C)).double().numpy())
    expected = np.concatenate(vectors) / math.sqrt(2)
    np.testing.assert_allclose(encoder.encode(video.flatten(1)), expected, atol=1e-6)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("used", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("name", SETTINGS)
def test_cells_of_other_levels_do_not_count(name: str, used: tuple[int, ...], views: int) -> None:
    """As the plain encoder with the same settings, of the cells of these levels alone."""
    whole = sample(cells=views * T)
    own = [k for k in range(views * T) if (2 if k % T < 4 else 1) in used]
    changed = {} if name == "ave" else {"pca_components": 3}
    encoder = fit(name, whole, levels=used, **changed)
    part = fit(name, sample(frames=whole.frames[:, own].contiguous()), **changed)
    video = frames(7, cells=views * T, seed=1)
    expected = part.encode(video[:, own].reshape(-1, C))
    assert encoder.output_dim == len(expected)
    again = encoder_from_bytes(encoder.to_bytes()).with_files(
        encoder.files(), replace(SETTINGS[name], levels=used, **changed)
    )
    for found in (encoder, again):
        torch.testing.assert_close(found.encode(video.flatten(1)), expected, atol=1e-6, rtol=1e-5)


def test_levels_that_count_may_have_codebooks_of_their_own() -> None:
    """In the order in which they are given, which need not be the pyramid's."""
    encoder = fit("ave", levels=(1, 2), per_level=True)
    video = frames(7, seed=1)
    means = [video[:, 4].double().mean(0), video[:, :4].double().mean((0, 1))]
    roots = [(mean / mean.sum()).sqrt() for mean in means]
    expected = torch.cat(roots) / math.sqrt(2)
    torch.testing.assert_close(encoder.encode(video.flatten(1)), expected.float())


def test_places_are_as_long_as_the_descriptors_that_count() -> None:
    whole = frames()
    whole[:, :4] *= 100
    encoder = fit("vlad", sample(frames=whole), levels=(1,), position_weight=2.0)
    length = whole[:, 4].square().sum(1).mean().sqrt()
    torch.testing.assert_close(encoder.positions, (cell_positions(LEVELS, T) * 2 * length).float())


def test_cells_that_do_not_count_get_no_attention() -> None:
    attention = fit("fv_vae", levels=(1,)).attention(frames(3, seed=1))
    assert not attention[:, :4].any()
    assert (attention[:, 4] > 0).all()


def test_levels_that_the_pyramid_does_not_have_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected some of the pyramid's levels \[2, 1\], got \[3\]"
    ):
        fit("ave", levels=(3,))


def test_unscaled_levels_stay_unscaled() -> None:
    settings = replace(SETTINGS["gmm_fv"], per_level=True)
    encoder = fit_encoder("gmm_fv", sample(), settings, "none")
    video = frames(7, seed=1)
    parts = [
        part.encode(video[:, cells].reshape(-1, C))
        for part, cells in zip(encoder.parts, (slice(0, 4), slice(4, 5)), strict=True)
    ]
    torch.testing.assert_close(encoder.encode(video.flatten(1)), torch.cat(parts))


def test_places_come_after_the_pca() -> None:
    encoder = fit("gmm_fv", position_weight=0.5, pca_components=2, pca_whiten=True)
    projected = encoder.pca.transform(sample().frames)
    length = projected.double().square().sum(-1).mean().sqrt()
    places = (cell_positions(LEVELS, T) * 0.5 * length).float()
    torch.testing.assert_close(encoder.positions, places)
    video = frames(7, seed=1)
    rows = torch.cat([encoder.pca.transform(video), places.expand(7, -1, -1)], -1)
    assert encoder.descriptor_dim == T * C
    assert encoder.parts[0].pca is None
    torch.testing.assert_close(
        encoder.encode(video.flatten(1)), encoder.parts[0].encode(rows.flatten(0, 1))
    )


def test_an_fv_vae_is_given_places_that_it_can_reconstruct() -> None:
    assert fit("fv_vae", position_weight=1.0).positions.min() >= 0
    assert fit("vlad", position_weight=1.0).positions.min() < 0


@pytest.mark.parametrize(
    "changed",
    [{"position_weight": 0.5}, {"per_level": True}, {"position_weight": 1.0, "per_level": True}],
)
def test_attention_is_of_the_cells_in_the_order_of_the_pyramid(changed: dict) -> None:
    encoder = fit("fv_vae", **changed)
    video = frames(7, seed=1)
    found = encoder.attention(video)
    assert found.shape == (7, T)
    for f in range(7):
        for k in range(T):
            part = encoder.parts[int(k == 4) if encoder.parts[1:] else 0]
            row = video[f, k]
            row = row if encoder.positions is None else torch.cat([row, encoder.positions[k]])
            # The gradient of one descriptor, without its information.
            gradient = part.with_information(None).accumulate(row[None].double()).sums
            assert found[f, k] == pytest.approx(gradient.abs().sum().item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["diagonal", "kronecker", "none"])
def test_the_information_lies_beside_all_levels(kind: str) -> None:
    """One safetensors file of each sort, and the choice is made when it is loaded."""
    files = fit("fv_vae", per_level=True, position_weight=0.5).files()
    assert files.keys() == {CODEBOOK, "information.safetensors"}
    changed = {"per_level": True, "position_weight": 0.5, "information": kind, "damping": 0.2}
    wanted = fit("fv_vae", **changed)
    bare = encoder_from_bytes(files[CODEBOOK])
    assert [part.information for part in bare.parts] == [None, None]
    loaded = bare.with_files(files, replace(SETTINGS["fv_vae"], **changed))
    assert loaded.to_bytes() == wanted.to_bytes()
    assert loaded.files() == files


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "ave"])
def test_a_stored_codebook_gives_the_same_bits(name: str) -> None:
    encoder = fit(name, per_level=True, position_weight=0.5, pca_components=3)
    loaded = encoder_from_bytes(encoder.to_bytes())
    video = frames(7, seed=1).flatten(1)
    assert torch.equal(loaded.encode(video), encoder.encode(video))
    assert loaded.to_bytes() == encoder.to_bytes()


@pytest.mark.parametrize("name", ["fv_vae", "gmm_fv"])
def test_stopped_and_resumed_in_any_level_is_undisturbed(name: str) -> None:
    states, logged = [], []

    def keep(state) -> None:
        data = io.BytesIO()
        torch.save(state(), data)
        states.append(data.getvalue())

    changed = {"per_level": True, "position_weight": 0.5}
    undisturbed = fit(name, sample(checkpoint=keep, log=lambda *row: logged.append(row)), **changed)
    assert {quantity.partition(" of ")[2] for quantity, _, _ in logged} == {"level 2", "level 1"}
    for place in (0, len(states) // 2, len(states) - 1):
        state = torch.load(io.BytesIO(states[place]), weights_only=True)
        assert fit(name, sample(state=state), **changed).files() == undisturbed.files()


@pytest.mark.parametrize("name", ["bilinear", "gmm_fv", "vlad"])
def test_two_workers_fit_what_one_does(name: str) -> None:
    changed = {"per_level": True, "position_weight": 0.5, "pca_components": 2}
    alone = fit(name, **changed)

    def run(rank: int, all_reduce) -> Spatial:
        own = VIDEO.remainder(2) == rank
        share = {"rank": rank, "world_size": 2, "all_reduce": all_reduce}
        return fit(name, sample(frames=frames()[own], video=VIDEO[own], **share), **changed)

    first, second = oracles.run_workers(2, run)
    assert first.to_bytes() == second.to_bytes()
    for key, tensor in alone.tensors().items():
        torch.testing.assert_close(first.tensors()[key], tensor, rtol=1e-4, atol=1e-5)


def test_half_precision_samples_stay_what_they_are() -> None:
    """As a sample that is mapped from a file: it is read and not changed."""
    stored = frames().half()
    before = stored.clone()
    encoder = fit("vlad", sample(frames=stored), per_level=True, position_weight=0.5)
    assert torch.equal(stored, before)
    assert encoder.encode(frames(3, seed=1).flatten(1).half()).norm() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("levels", [(), (3, 1)])
def test_other_descriptors_than_a_pyramids_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"expected the \d+ cells of the pyramid .*, got 5; places"
    ):
        fit("vlad", sample(levels=levels), position_weight=1.0)


def test_neither_switch_is_the_plain_encoder() -> None:
    assert not isinstance(fit("vlad"), Spatial)
