import pytest
import torch
from torch import Tensor

from encoders.fv_vae.encoder import FvVae
from encoders.fv_vae.information import (
    DiagonalInformation,
    KroneckerInformation,
    choose,
    diagonal_statistics,
    estimate,
    kronecker_statistics,
)
from encoders.registry import encoder_from_bytes
from encoders.settings import FvVaeSettings

C, L = 4, 2
DAMPING = 0.05


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def model() -> FvVae:
    return FvVae(
        {
            "encoder.0.weight": random(L, C, seed=1),
            "encoder.0.bias": random(L, seed=2),
            "decoder.weight": random(C, L, seed=3),
            "decoder.bias": 1 + random(C, seed=4).abs(),
            "var_x": 0.2 + random(C, seed=5).square(),
        }
    )


def videos() -> list[Tensor]:
    """Sets of 3 to 8 descriptors, each about a centre of its own."""
    return [(random(3 + i % 6, C, seed=10 + i) + random(C, seed=100 + i)).abs() for i in range(9)]


def gradients(x: Tensor) -> Tensor:
    """[n, C (L + 1)]: each descriptor's gradient as a vector."""
    delta, code = model().gradient_factors(x)
    return torch.stack([torch.outer(d, z).flatten() for d, z in zip(delta, code, strict=True)])


def inverse_root(matrix: Tensor) -> Tensor:
    """By the damped matrix's Newton-Schulz square root, not by eigenvectors."""
    damped = matrix + DAMPING * matrix.trace() / len(matrix) * torch.eye(len(matrix))
    norm = damped.norm()
    y, z = damped / norm, torch.eye(len(matrix), dtype=torch.float64)
    for _ in range(60):
        half = (3 * torch.eye(len(matrix)) - z @ y) / 2
        y, z = y @ half, half @ z
    return z / norm.sqrt()


def test_diagonal_is_the_diagonal_of_the_information_over_sets() -> None:
    statistics = sum(diagonal_statistics(model(), x) for x in videos())
    information = DiagonalInformation.from_statistics(statistics, C, DAMPING)
    sets = torch.stack([gradients(x).mean(0) for x in videos()])
    full = sum(torch.outer(g, g) for g in sets) / len(sets)
    torch.testing.assert_close(information.mean_square, full.diagonal().view(C, L + 1))

    restricted = full.diagonal().diag()
    g = random(C, L + 1, seed=6)
    expected = inverse_root(restricted) @ g.flatten()
    torch.testing.assert_close(information.whiten(g).flatten(), expected)


def test_kronecker_is_the_information_of_independent_factors() -> None:
    statistics = sum(kronecker_statistics(model(), x) for x in videos())
    information = KroneckerInformation.from_statistics(statistics, C, DAMPING)
    delta, code = model().gradient_factors(torch.cat(videos()))
    # F over all pairs of a delta and a code of any descriptors: what independence would give.
    pairs = torch.einsum("ic,jl->ijcl", delta, code).flatten(0, 1).flatten(1)
    torch.testing.assert_close(
        torch.kron(information.a, information.b), pairs.T @ pairs / len(pairs)
    )

    g = random(C, L + 1, seed=6)
    root = torch.kron(inverse_root(information.a), inverse_root(information.b))
    torch.testing.assert_close(information.whiten(g).flatten(), root @ g.flatten())


def test_kronecker_whitens_gradients_of_independent_factors() -> None:
    delta = random(400, C, seed=20) @ random(C, C, seed=21)
    code = torch.cat([random(300, L, seed=22) @ random(L, L, seed=23), torch.ones(300, 1)], 1)
    a, b = delta.T @ delta / len(delta), code.T @ code / len(code)
    information = KroneckerInformation(a, b, damping=0)
    left, right = information._inverse_roots
    pairs = torch.einsum("ic,jl->ijcl", delta @ left, code @ right).flatten(0, 1).flatten(1)
    identity = torch.eye(C * (L + 1), dtype=torch.float64)
    torch.testing.assert_close(pairs.T @ pairs / len(pairs), identity)
    torch.testing.assert_close(
        information.whiten(torch.outer(delta[0], code[0])),
        torch.outer(delta[0] @ left, code[0] @ right),
    )


def test_damping_bounds_what_is_never_seen() -> None:
    square = torch.tensor([[4.0, 0, 0], [0, 0, 0], [8, 0, 0], [0, 0, 0]], dtype=torch.float64)
    white = DiagonalInformation(square, 0.5).whiten(torch.ones(4, 3))
    torch.testing.assert_close(white[0, 0], torch.tensor(4.5**-0.5, dtype=torch.float64))
    torch.testing.assert_close(white[1], torch.full((3,), 0.5**-0.5, dtype=torch.float64))
    singular = KroneckerInformation(
        torch.diag(square[[0, 1, 2, 3], [0, 0, 0, 0]]), torch.eye(3).double(), 0.5
    )
    expected = torch.tensor([5.5, 1.5, 9.5, 1.5], dtype=torch.float64).rsqrt() / 1.5**0.5
    torch.testing.assert_close(
        singular.whiten(torch.ones(4, 3).double()), expected[:, None].expand(4, 3)
    )


def test_a_set_without_descriptors_counts_for_nothing() -> None:
    for statistics in (diagonal_statistics, kronecker_statistics):
        one = statistics(model(), videos()[0])
        assert one.dtype == torch.float64
        assert one[0] == {diagonal_statistics: 1, kronecker_statistics: 3}[statistics]
        empty = statistics(model(), torch.zeros(0, C))
        assert empty.shape == one.shape
        assert not empty.any()


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_estimate_and_round_trip_through_bytes(kind: str) -> None:
    settings = FvVaeSettings(information=kind, damping=0.3)
    shares = [videos()[:4], videos()[4:]]
    statistics = {"diagonal": diagonal_statistics, "kronecker": kronecker_statistics}[kind]
    other = sum(statistics(model(), x) for x in shares[1])

    def all_reduce(tensor):
        return tensor + other if tensor.shape == other.shape else tensor

    information = choose(estimate(model(), shares[0], all_reduce), settings)
    alone = choose(estimate(model(), videos()), settings)
    assert (information.kind, information.damping) == (kind, 0.3)
    encoder = FvVae(model().tensors(), information)
    again = encoder_from_bytes(encoder.to_bytes()).information
    assert (type(again), again.damping) == (type(information), 0.3)
    for key, value in information.tensors().items():
        torch.testing.assert_close(alone.tensors()[key], value)
        assert torch.equal(again.tensors()[key], value)


def test_no_information() -> None:
    assert choose(estimate(model(), videos()), FvVaeSettings(information="none")) is None


def test_what_cannot_be_an_information() -> None:
    with pytest.raises(ValueError, match=r"got a count of 0; is the training sample empty"):
        DiagonalInformation.from_statistics(torch.zeros(1 + C * (L + 1)), C, DAMPING)
    with pytest.raises(ValueError, match=r"mean_square to be finite and not all zero.*of 0"):
        DiagonalInformation(torch.zeros(C, L + 1), DAMPING)
    with pytest.raises(ValueError, match=r"kronecker.*expected b to be finite.*of nan"):
        KroneckerInformation(torch.eye(C), torch.full((L + 1, L + 1), torch.nan), DAMPING)
    with pytest.raises(ValueError, match=r"expected damping >= 0, got -1"):
        KroneckerInformation(torch.eye(C), torch.eye(L + 1), -1)
