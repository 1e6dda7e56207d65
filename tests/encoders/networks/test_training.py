"""The training loop on a linear model, whose steps torch takes by itself for comparison."""

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from encoders.networks import training
from encoders.networks.training import Group, Part, Phase, Trainee
from tests.encoders import oracles

STEPS = 7
X = torch.randn(STEPS, 6, 4, generator=torch.Generator().manual_seed(1))
Y = torch.randn(STEPS, 6, generator=torch.Generator().manual_seed(2))


class Line(Trainee):
    """A line through X, Y; a worker has the rows `share` of each batch, in parts of `size`."""

    name, advice = "line", "turn back"

    def __init__(
        self, phases: Callable[[nn.Linear], list[Phase]], share: slice = slice(None), size: int = 6
    ) -> None:
        self.model = nn.Linear(4, 1)
        with torch.no_grad():
            self.model.weight.copy_(torch.tensor([[1.0, -2, 3, -4]]))
            self.model.bias.zero_()
        self.seen = torch.zeros(3)
        self.all_phases, self.share, self.size = phases(self.model), share, size
        self.run = {"size": 1}

    def phases(self) -> list[Phase]:
        return self.all_phases

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def buffers(self) -> list[Tensor]:
        return [self.seen]

    def parts(self, step: int) -> Iterator[Part]:
        x, y = X[step][self.share], Y[step][self.share]
        self.seen[:] = x.sum()
        for own_x, own_y in zip(x.split(self.size), y.split(self.size), strict=True):
            loss = (self.model(own_x)[:, 0] - own_y).square().mean()
            yield Part({"total": loss, "twice": 2 * loss}, len(own_x))

    def state(self) -> dict:
        return {"model": self.model.state_dict()}

    def load(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])


def sgd(groups: list[dict]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=1, momentum=0.9)


def one_phase(model: nn.Linear, **changed: object) -> list[Phase]:
    groups = (
        Group(parameters=(model.weight,), learning_rate=0.01, decay=0.1),
        Group(parameters=(model.bias,), learning_rate=0.05),
    )
    values = {"num_steps": STEPS, "groups": groups, "optimiser": sgd}
    return [Phase(**(values | changed))]


def values(line: Line) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in line.parameters()])


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_steps_are_torchs_with_groups_schedule_and_clipping(clip_norm: float) -> None:
    rate = training.falls_at((2, 5), 0.1)
    line = Line(lambda model: one_phase(model, clip_norm=clip_norm, rate=rate))
    other = copy.deepcopy(line.model)
    told = []
    training.train(line, on_step=lambda step, losses, _: told.append(losses["total"]))
    optimiser = torch.optim.SGD(
        [
            {"params": [other.weight], "lr": 0.01, "weight_decay": 0.1},
            {"params": [other.bias], "lr": 0.05},
        ],
        momentum=0.9,
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [2, 5], 0.1)
    losses = []
    for x, y in zip(X, Y, strict=True):
        optimiser.zero_grad()
        loss = (other(x)[:, 0] - y).square().mean()
        loss.backward()
        if clip_norm:
            nn.utils.clip_grad_norm_(other.parameters(), clip_norm)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    torch.testing.assert_close(told, losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values(line)[:4], other.weight.detach().flatten())
    torch.testing.assert_close(values(line)[4:], other.bias.detach())


def test_an_exponential_schedule() -> None:
    rate = training.decays(10, 0.95)
    assert [rate(step) for step in (0, 10, 20)] == pytest.approx([1, 0.95, 0.95**2])
    assert 0.95 < rate(5) < 1


def test_workers_with_uneven_shares_clip_and_average_as_one() -> None:
    def phases(model: nn.Linear) -> list[Phase]:
        return one_phase(model, clip_norm=0.5)

    alone = Line(phases)
    training.train(alone)

    def work(rank, all_reduce):
        line = Line(phases, slice(0, 4) if rank else slice(4, 6))
        training.train(line, all_reduce=all_reduce)
        return line

    first, second = oracles.run_workers(2, work)
    assert torch.equal(values(first), values(second))
    torch.testing.assert_close(values(first), values(alone), rtol=1e-5, atol=1e-6)
    # What steps change without a gradient is the mean over examples.
    expected = (4 * X[-1][:4].sum() + 2 * X[-1][4:].sum()) / 6
    for line in (first, second):
        torch.testing.assert_close(line.seen, expected.expand(3))


def test_parts_add_up_to_the_batch() -> None:
    whole, parts = Line(one_phase), Line(one_phase, size=4)
    for line in (whole, parts):
        training.train(line)
    torch.testing.assert_close(values(whole), values(parts))


def two_phases(model: nn.Linear, begun: list[str] | None = None) -> list[Phase]:
    def begin(name: str) -> Callable[[], None]:
        return lambda: (begun if begun is not None else []).append(name)

    bias = Group(parameters=(model.bias,), learning_rate=0.05)
    return [
        *one_phase(model, num_steps=3, groups=(bias,), begin=begin("first")),
        *one_phase(model, num_steps=4, begin=begin("both")),
    ]


def test_a_phase_trains_its_own_parameters_alone() -> None:
    begun, kept = [], {}
    line = Line(lambda model: two_phases(model, begun))
    before = values(line)
    training.train(line, on_step=lambda step, *_: kept.update({step: values(line)}))
    assert begun == ["first", "both"]
    assert torch.equal(kept[3][:4], before[:4])
    assert kept[3][4] != before[4]
    assert (kept[7][:4] != before[:4]).all()


@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_a_run_goes_on_in_the_phase_where_it_was(stop: int) -> None:
    states = {}
    undisturbed = Line(two_phases)
    training.train(undisturbed, on_step=lambda step, _, state: states.update({step: state()}))
    resumed = Line(two_phases)
    training.train(resumed, state=states[stop])
    assert torch.equal(values(resumed), values(undisturbed))


def test_a_state_of_another_run_is_refused() -> None:
    states = []
    training.train(Line(one_phase), on_step=lambda step, _, state: states.append(state()))
    other = Line(one_phase)
    other.run = {"size": 2}
    with pytest.raises(ValueError, match="a state with size = 2, got one with 1; start this run"):
        training.train(other, state=states[0])


def test_a_loss_that_is_not_finite_stops_before_it_does_harm() -> None:
    line = Line(one_phase)
    with torch.no_grad():
        line.model.bias.fill_(math.inf)
    with pytest.raises(ValueError, match=r"line training, step 0: expected finite .*; turn back"):
        training.train(line)
    assert values(line)[:4].isfinite().all()
