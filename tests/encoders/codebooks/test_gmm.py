import io

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from encoders.codebooks.gmm import (
    Gmm,
    assignment_statistics,
    fit_gmm,
    fit_gmm_stepwise,
    initial_gmm,
    mean_log_likelihood,
    statistics,
    update,
)
from encoders.codebooks.pca import fit_pca
from encoders.codebooks.sample import FitSample
from tests.encoders import oracles

NO_FLOOR = 1e-12


def mixture(num_components: int = 3, width: int = 4, seed: int = 0) -> Gmm:
    """Unequal weights, variances from 0.3 to 3."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(num_components, generator=generator, dtype=torch.float64) + 0.2
    means = 2 * torch.randn(num_components, width, generator=generator, dtype=torch.float64)
    variances = torch.rand(num_components, width, generator=generator, dtype=torch.float64)
    return Gmm(weights / weights.sum(), means, 0.3 + 2.7 * variances)


def draw(gmm: Gmm, num: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(gmm.weights, num, replacement=True, generator=generator)
    noise = torch.randn(num, gmm.means.shape[1], generator=generator, dtype=torch.float64)
    return gmm.means[which] + noise * gmm.variances[which].sqrt()


def arrays(gmm: Gmm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return gmm.weights.numpy(), gmm.means.numpy(), gmm.variances.numpy()


def assert_close(gmm: Gmm, other: Gmm, atol: float) -> None:
    for name in ("weights", "means", "variances"):
        torch.testing.assert_close(getattr(gmm, name), getattr(other, name), rtol=0, atol=atol)


def test_one_step_equals_the_loops() -> None:
    gmm, x = mixture(), draw(mixture(seed=5), 60)
    _, log_likelihood = oracles.posteriors(*arrays(gmm), x.numpy())
    weights, means, variances = map(torch.from_numpy, oracles.em_step(*arrays(gmm), x.numpy()))
    packed = statistics(gmm, x)
    assert mean_log_likelihood(packed) == pytest.approx(log_likelihood.mean(), rel=1e-12)
    assert_close(update(gmm, packed, NO_FLOOR), Gmm(weights, means, variances), atol=1e-12)


def test_statistics_add_over_any_split_and_no_descriptor_is_zero() -> None:
    gmm, x = mixture(), draw(mixture(), 3000)
    parts = x[:0], x[:1], x[1:1700], x[1700:]
    torch.testing.assert_close(
        sum(statistics(gmm, part) for part in parts), statistics(gmm, x), rtol=1e-11, atol=1e-9
    )
    assert not statistics(gmm, x[:0]).any()


def test_starts_from_the_cells_of_k_means() -> None:
    centroids = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    x = torch.tensor([[-1.0, 0.0], [1.0, 4.0], [9.0, 1.0], [11.0, 3.0], [11.5, 5.0]])
    gmm = initial_gmm(centroids, assignment_statistics(centroids, x), NO_FLOOR)
    expected = Gmm(
        torch.tensor([0.4, 0.6], dtype=torch.float64),
        torch.stack([x[:2].double().mean(0), x[2:].double().mean(0)]),
        torch.stack([x[:2].double().var(0, correction=0), x[2:].double().var(0, correction=0)]),
    )
    assert_close(gmm, expected, atol=1e-13)


def test_equals_scikit_learn_from_the_same_start() -> None:
    x = draw(mixture(num_components=4, width=5, seed=2), 800)
    centroids = x[:4]
    start = initial_gmm(centroids, assignment_statistics(centroids, x), NO_FLOOR)
    theirs = GaussianMixture(
        4,
        covariance_type="diag",
        tol=0,
        reg_covar=0,
        max_iter=40,
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=1 / start.variances.numpy(),
    )
    with pytest.warns(UserWarning, match="did not converge"):
        theirs.fit(x.numpy())
    logged: list[float] = []
    ours = fit_gmm(
        x,
        centroids,
        max_iterations=40,
        tolerance=-1,
        variance_floor=NO_FLOOR,
        on_iteration=lambda _, value: logged.append(value),
    )
    np.testing.assert_allclose(ours.weights, theirs.weights_, atol=1e-6)
    np.testing.assert_allclose(ours.means, theirs.means_, atol=1e-6)
    np.testing.assert_allclose(ours.variances, theirs.covariances_, atol=1e-6)
    assert logged[-1] == pytest.approx(theirs.lower_bound_, abs=1e-6)
    # The start must be far enough away for the agreement to mean something.
    assert (ours.means - start.means).abs().max() > 0.1


@pytest.mark.parametrize("variance_floor", [NO_FLOOR, 0.2], ids=["no floor", "floor in force"])
def test_likelihood_never_falls_and_em_stops(variance_floor: float) -> None:
    x = draw(mixture(num_components=5, seed=4), 500).float()
    logged: list[float] = []
    gmm = fit_gmm(
        x,
        x[:6],
        max_iterations=200,
        tolerance=1e-6,
        variance_floor=variance_floor,
        on_iteration=lambda iteration, value: logged.append(value) or iteration,
    )
    rises = np.diff(logged)
    assert 5 < len(logged) < 200
    assert rises.min() > -1e-12
    assert (rises[:-1] >= 1e-6).all()
    assert rises[-1] < 1e-6
    floored = gmm.variances <= variance_floor * x.double().var(0).max() * 1.5
    assert floored.any() == (variance_floor == 0.2)


@pytest.mark.parametrize("sizes", [(700,), (300, 400), (100, 0, 599, 1)])
def test_any_number_of_workers_gives_the_same_mixture_each_round(sizes: tuple[int, ...]) -> None:
    x = draw(mixture(num_components=5, width=6, seed=7), 700).float()
    centroids = x[:5]
    shares = x[torch.randperm(700, generator=torch.Generator().manual_seed(9))].split(sizes)
    alone = [
        fit_gmm(x, centroids, max_iterations=n, tolerance=-1, variance_floor=1e-3)
        for n in range(0, 31, 10)
    ]
    for rounds, expected in zip(range(0, 31, 10), alone, strict=True):
        fits = oracles.run_workers(
            len(sizes),
            lambda rank, all_reduce, rounds=rounds: fit_gmm(
                shares[rank],
                centroids,
                max_iterations=rounds,
                tolerance=-1,
                variance_floor=1e-3,
                all_reduce=all_reduce,
            ),
        )
        for fit in fits:
            assert_close(fit, expected, atol=1e-9)
            assert_close(fit, fits[0], atol=0)


def test_a_starved_component_becomes_half_of_the_heaviest() -> None:
    # 40 descriptors of standard deviation 3 and 1 about the origin; the second component is far.
    x = torch.tensor([[3.0, 1.0], [-3.0, -1.0], [3.0, -1.0], [-3.0, 1.0]]).repeat(10, 1)
    centroids = torch.tensor([[0.0, 0.0], [1e6, 0.0]])
    packed = assignment_statistics(centroids, x)
    gmm = initial_gmm(centroids, packed, NO_FLOOR)
    expected = Gmm(
        torch.tensor([0.5, 0.5], dtype=torch.float64),
        torch.tensor([[-1.5, 0.0], [1.5, 0.0]], dtype=torch.float64),
        torch.tensor([[6.75, 1.0], [6.75, 1.0]], dtype=torch.float64),
    )
    assert_close(gmm, expected, atol=1e-4)  # the centre is 5e5 away
    pair_mean = gmm.weights @ gmm.means
    pair_variance = gmm.weights @ (gmm.variances + gmm.means.square()) - pair_mean.square()
    torch.testing.assert_close(pair_variance, x.double().var(0, correction=0), rtol=1e-4, atol=0)


def test_em_goes_on_after_a_split_and_fills_every_component() -> None:
    x = draw(mixture(num_components=4, seed=11), 600)
    centroids = torch.cat([x[:3], torch.full((2, 4), 1e3, dtype=torch.float64)])
    gmm = fit_gmm(x, centroids, max_iterations=100, tolerance=1e-4, variance_floor=1e-3)
    three = fit_gmm(x, x[:3], max_iterations=100, tolerance=1e-4, variance_floor=1e-3)
    assert gmm.weights.min() > 0.01
    assert mean_log_likelihood(statistics(gmm, x)) > mean_log_likelihood(statistics(three, x))


def test_floor_is_relative_to_the_channel_or_the_mean_channel() -> None:
    # Two tight groups; channel variances over all are 100 and 4, their mean is 52.
    x = torch.tensor([[10.0, 2.0], [-10.0, -2.0]]).repeat(5, 1).double()
    centroids = x[:2]
    gmm = fit_gmm(x, centroids, max_iterations=3, tolerance=0, variance_floor=1e-2)
    expected = torch.tensor([[1.0, 0.52], [1.0, 0.52]], dtype=torch.float64)
    torch.testing.assert_close(gmm.variances, expected)


def test_a_channel_that_never_fires_is_safe() -> None:
    x = draw(mixture(), 200)
    x[:, 2] = 0
    gmm = fit_gmm(x, x[:3], max_iterations=20, tolerance=1e-6, variance_floor=1e-3)
    assert (gmm.variances[:, 2] > 1e-4).all()
    assert mean_log_likelihood(statistics(gmm, x)) < 10


def test_a_common_offset_changes_nothing_but_the_means() -> None:
    x = draw(mixture(num_components=4, seed=3), 400)
    options = {"max_iterations": 25, "tolerance": -1, "variance_floor": 1e-3}
    near, far = fit_gmm(x, x[:4], **options), fit_gmm(x + 1e5, x[:4] + 1e5, **options)
    assert_close(Gmm(far.weights, far.means - 1e5, far.variances), near, atol=1e-7)


def test_em_makes_nothing_of_size_n_k_c() -> None:
    num, num_components, width = 5000, 24, 32
    x = draw(mixture(num_components, width), num)
    gmm = mixture(num_components, width)
    with LargestTensor() as largest:
        packed = statistics(gmm, x)
        update(gmm, packed, 1e-3)
    assert largest.numel <= 1024 * 2 * width


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation made or returned a new view of."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "split" not in str(func) and "view" not in str(func):  # views of the whole input
            sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            self.numel = max([self.numel, *sizes])
        return out


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stop_all_workers(bad: float) -> None:
    x = draw(mixture(), 60)
    x[7, 1] = bad

    def work(rank, all_reduce):
        with pytest.raises(ValueError, match="expected finite descriptors for the GMM"):
            fit_gmm(
                x.split(30)[rank],
                x[:3],
                max_iterations=3,
                tolerance=0,
                variance_floor=1e-3,
                all_reduce=all_reduce,
            )
        return True

    assert oracles.run_workers(2, work) == [True, True]


def test_equal_descriptors_are_refused() -> None:
    x = torch.ones(20, 3)
    with pytest.raises(ValueError, match="expected descriptors that vary, got 20 equal ones"):
        fit_gmm(x, x[:2], max_iterations=3, tolerance=0, variance_floor=1e-3)


def test_another_width_than_the_centroids_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected descriptors of shape \[n, 4\].* got \[20, 3\]"):
        fit_gmm(
            torch.zeros(20, 3), torch.zeros(2, 4), max_iterations=3, tolerance=0, variance_floor=1
        )


@pytest.mark.parametrize(
    ("weights", "means", "variances", "message"),
    [
        (torch.ones(2), torch.zeros(3, 4), torch.ones(3, 4), "got .*2.*3, 4"),
        (torch.ones(3), torch.zeros(3, 4), torch.ones(3, 5), "got .*3, 4.*3, 5"),
        (torch.tensor([1.0, 0.0]), torch.zeros(2, 1), torch.ones(2, 1), "above 0, got 0 and 1"),
        (torch.ones(2), torch.zeros(2, 1), -torch.ones(2, 1), "above 0, got 1 and -1"),
    ],
)
def test_a_mixture_that_is_none_is_refused(
    weights: Tensor, means: Tensor, variances: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Gmm(weights, means, variances)


def test_em_that_was_stopped_goes_on_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 5, generator=generator) * torch.rand(5, generator=generator)
    settings = {"max_iterations": 9, "tolerance": 0.0, "variance_floor": 1e-3}
    states = []
    whole = fit_gmm(x, x[:4], **settings, on_update=lambda state: states.append(state()))
    buffer = io.BytesIO()
    torch.save(states[3], buffer)
    buffer.seek(0)
    later = []
    resumed = fit_gmm(
        x,
        x[:4],
        **settings,
        state=torch.load(buffer, weights_only=True),
        on_iteration=lambda iteration, _: later.append(iteration),
    )
    assert later[0] == states[3]["iteration"] == 4
    for name in ("weights", "means", "variances"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))


def stepwise(x: Tensor, centroids: Tensor, batch_size: int = 200, **changed: object) -> Gmm:
    sample = FitSample(frames=x[:, None], video=torch.zeros(len(x), dtype=torch.int64))
    steps_per_pass, batch = sample.batches(batch_size)
    options = {
        "batch": batch,
        "steps_per_pass": steps_per_pass,
        "step_exponent": 0.7,
        "max_passes": 30,
        "tolerance": 1e-4,
        "variance_floor": 1e-3,
    }
    return fit_gmm_stepwise(x, centroids, **(options | changed))


def test_a_step_blends_the_mixtures_moments_with_the_batchs() -> None:
    x, batches = draw(mixture(seed=5), 60), draw(mixture(seed=6), 40).split(20)
    gmm = initial_gmm(x[:3], assignment_statistics(x[:3], x), NO_FLOOR)
    for step, batch in enumerate(batches):
        eta, (weights, means, variances) = (step + 2) ** -0.6, arrays(gmm)
        posterior, _ = oracles.posteriors(weights, means, variances, batch.numpy())
        mass = (1 - eta) * weights + eta * posterior.mean(0)
        first, second = (
            (1 - eta) * weights[:, None] * old + eta * posterior.T @ new / len(batch)
            for old, new in ((means, batch.numpy()), (variances + means**2, batch.numpy() ** 2))
        )
        means = first / mass[:, None]
        variances = second / mass[:, None] - means**2
        gmm = Gmm(*map(torch.from_numpy, (mass, means, variances)))
    found = stepwise(
        x,
        x[:3],
        batch=lambda step: batches[step],
        steps_per_pass=2,
        max_passes=1,
        step_exponent=0.6,
        variance_floor=NO_FLOOR,
    )
    assert_close(found, gmm, atol=1e-12)


@pytest.mark.parametrize("step_exponent", [0.6, 0.7])
def test_stepwise_em_comes_near_the_likelihood_of_em(step_exponent: float) -> None:
    x = draw(mixture(num_components=5, width=6, seed=7), 3000).float()
    passes: list[float] = []
    found = stepwise(
        x,
        x[:5],
        step_exponent=step_exponent,
        tolerance=1e-3,
        on_pass=lambda number, value: passes.append(value) or number,
    )
    full = fit_gmm(x, x[:5], max_iterations=200, tolerance=1e-5, variance_floor=1e-3)
    start = initial_gmm(x[:5], assignment_statistics(x[:5], x), 1e-3)
    reached, best, first = (mean_log_likelihood(statistics(gmm, x)) for gmm in (found, full, start))
    assert best - first > 0.5
    assert reached > best - 0.05
    assert 1 < len(passes) < 30
    assert passes[-1] - passes[-2] < 1e-3
    assert passes[-1] == pytest.approx(reached, abs=0.2)


def test_stepwise_em_fills_starved_components_and_keeps_the_floor() -> None:
    x = draw(mixture(num_components=4, seed=11), 1500)
    x[:, 2] = 0
    centroids = torch.cat([x[:3], torch.full((2, 4), 1e3, dtype=torch.float64)])
    gmm = stepwise(x, centroids)
    assert gmm.weights.min() > 0.01
    floor = 1e-3 * x.var(0, correction=0).clamp_min(x.var(0, correction=0).mean())
    assert (gmm.variances >= floor * (1 - 1e-9)).all()
    torch.testing.assert_close(gmm.variances[:, 2], floor[2].expand(5))
    three = stepwise(x, x[:3])
    assert mean_log_likelihood(statistics(gmm, x)) > mean_log_likelihood(statistics(three, x))


def test_stepwise_em_that_was_stopped_goes_on_bit_for_bit() -> None:
    x = draw(mixture(seed=2), 700).float()
    states, passes = [], []
    whole = stepwise(
        x,
        x[:3],
        max_passes=4,
        tolerance=-10,
        variance_floor=0.3,
        on_update=lambda state: states.append(state()),
        on_pass=lambda *row: passes.append(row),
    )
    assert [state["step"] for state in states] == list(range(1, 17))
    assert (whole.variances == states[0]["floor"]).any()
    for stopped in (0, 5, 7, 15):  # in a pass and at the end of one
        buffer = io.BytesIO()
        torch.save(states[stopped], buffer)
        buffer.seek(0)
        later: list[tuple[int, float]] = []
        resumed = stepwise(
            x,
            x[:3],
            max_passes=4,
            tolerance=-10,
            variance_floor=0.3,
            state=torch.load(buffer, weights_only=True),
            on_pass=lambda *row, later=later: later.append(row),
        )
        assert_close(resumed, whole, atol=0)
        assert later == passes[(stopped + 1) // 4 :]


def test_stepwise_em_stops_at_values_that_are_not_finite() -> None:
    x = draw(mixture(), 60)
    x[7, 1] = float("nan")
    with pytest.raises(ValueError, match="expected finite descriptors for the GMM"):
        stepwise(x, x[:3])


def test_stepwise_em_refuses_another_width() -> None:
    with pytest.raises(ValueError, match=r"expected descriptors of shape \[n, 4\].* got \[20, 3\]"):
        stepwise(torch.zeros(20, 3), torch.zeros(2, 4))


def test_a_pca_on_the_way_is_a_pca_before() -> None:
    x = draw(mixture(num_components=3, width=6), 900).float()
    pca = fit_pca(x, 2)
    options = {"max_iterations": 5, "tolerance": -1, "variance_floor": 1e-3}
    before = pca.transform(x)
    found = fit_gmm(x, before[:3], pca=pca, **options)
    assert_close(found, fit_gmm(before, before[:3], **options), atol=1e-5)
    with pytest.raises(
        ValueError, match=r"expected descriptors of shape \[n, 6\].* got \[900, 2\]"
    ):
        fit_gmm(before, before[:3], pca=pca, **options)
