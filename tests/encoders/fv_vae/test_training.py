import io
import math

import pytest
import torch
from torch import Tensor

from encoders.fv_vae.network import FvVaeNet
from encoders.fv_vae.training import fit_fv_vae
from encoders.settings import FvVaeSettings
from tests.encoders import oracles

C, T, K = 10, 4, 2


def video_frames(num_frames: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit descriptors [f, T, C] of two latent causes, and the class of each frame, which is hidden
    in a direction with little variance."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(2, C, generator=torch.Generator().manual_seed(99))
    causes = torch.randn(num_frames, T, 2, generator=generator)
    labels = torch.randint(K, (num_frames,), generator=generator)
    x = causes @ mixing + 1.5 + 0.1 * torch.randn(num_frames, T, C, generator=generator)
    x[..., 0] += 0.6 * labels[:, None]
    x = x.relu()
    return x / x.norm(dim=-1, keepdim=True), torch.eye(K)[labels]


FRAMES, TARGETS = video_frames(200)


def batch(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(len(FRAMES), (16,), generator=generator)
    return FRAMES[chosen], TARGETS[chosen]


def settings(**changed: object) -> FvVaeSettings:
    small = {"num_latents": 3, "optimiser": "adam", "learning_rate": 0.01, "num_steps": 12}
    return FvVaeSettings(**(small | changed))


def fit(record: FvVaeSettings, **arguments: object) -> FvVaeNet:
    return fit_fv_vae(
        **({"batch": batch, "seed": 5} | arguments),
        descriptor_dim=C,
        num_classes=K,
        settings=record,
    )


def assert_same_weights(net: FvVaeNet, other: FvVaeNet) -> None:
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def held_out_loss(net: FvVaeNet) -> dict[str, float]:
    frames, targets = video_frames(100, seed=1)
    with torch.no_grad():
        total, parts = net.eval().loss(frames, targets, torch.Generator().manual_seed(0))
    return {"total": total.item()} | {name: part.item() for name, part in parts.items()}


@pytest.mark.parametrize(
    "changed", [{}, {"optimiser": "adadelta", "learning_rate": 1, "lambda3": 3}]
)
def test_stopped_and_resumed_is_undisturbed(changed: dict) -> None:
    files = {}

    def on_step(step, losses, state):
        data = io.BytesIO()
        torch.save(state(), data)
        files[step] = data.getvalue()

    undisturbed = fit(settings(**changed), on_step=on_step)
    assert sorted(files) == list(range(1, 13))
    for step in (1, 5, 12):
        state = torch.load(io.BytesIO(files[step]), weights_only=True)
        resumed_at = []
        resumed = fit(
            settings(**changed),
            state=state,
            on_step=lambda step, *_, at=resumed_at: at.append(step),
        )
        assert resumed_at == list(range(step + 1, 13))
        assert_same_weights(resumed, undisturbed)


def test_a_kept_state_does_not_change_with_the_run() -> None:
    states = []
    fit(settings(), on_step=lambda step, losses, state: states.append(state()))
    for _ in range(2):
        assert_same_weights(fit(settings(), state=states[3]), fit(settings()))


def test_more_steps_may_follow_but_not_another_run() -> None:
    states = []
    fit(settings(num_steps=4), on_step=lambda step, losses, state: states.append(state()))
    assert_same_weights(fit(settings(num_steps=7), state=states[-1]), fit(settings(num_steps=7)))
    assert_same_weights(
        fit(settings(num_steps=4, information="none", damping=0.5), state=states[-1]),
        fit(settings(num_steps=4)),
    )
    with pytest.raises(ValueError, match=r"a state with dropout = 0.1, got one with 0.5"):
        fit(settings(dropout=0.1), state=states[-1])
    with pytest.raises(ValueError, match=r"a state with seed = 6, got one with 5"):
        fit(settings(), state=states[-1], seed=6)


def test_uneven_shares_give_the_weights_of_one_worker() -> None:
    frames, targets = FRAMES.double(), TARGETS
    record = settings(dropout=0, lambda3=3, class_pooling="max")
    states = []
    fit(
        record, batch=lambda *_: (frames[:9], targets[:9]), on_step=lambda *a: states.append(a[2]())
    )
    # Without noise on z nothing depends on which worker has a frame.
    states[0]["model"]["log_var_z"].fill_(-90)
    states[0]["optimiser"]["param_groups"][1]["lr"] = 1e-9

    def work(rank, all_reduce):
        share = {None: slice(0, 16), 0: slice(0, 11), 1: slice(11, 16)}[rank]
        return fit(
            record,
            batch=lambda step, _: (
                frames[step : step + 16][share],
                targets[step : step + 16][share],
            ),
            state=states[0],
            rank=rank or 0,
            all_reduce=all_reduce,
        )

    alone = work(None, lambda tensor: tensor)
    assert not torch.equal(alone.decoder.weight, states[0]["model"]["decoder.weight"])
    for worker in oracles.run_workers(2, work):
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(worker.state_dict()[name], value, rtol=1e-9, atol=1e-9)


def test_workers_draw_different_noise_and_stay_alike() -> None:
    losses = {0: [], 1: []}

    def work(rank, all_reduce):
        return fit(
            settings(),
            batch=lambda step, generator: batch(0, generator),
            rank=rank,
            all_reduce=all_reduce,
            on_step=lambda step, values, _: losses[rank].append(values),
        )

    first, second = oracles.run_workers(2, work)
    assert_same_weights(first, second)
    assert losses[0] == losses[1]
    same_batch = {"batch": lambda *_: (FRAMES[:16], TARGETS[:16])}
    alone = [fit(settings(num_steps=2), rank=rank, **same_batch) for rank in (0, 1)]
    assert not torch.equal(alone[0].encoder[0].bias, alone[1].encoder[0].bias)


@pytest.mark.parametrize("optimiser", ["adam", "adadelta"])
def test_training_learns_what_a_gaussian_cannot_say(optimiser: str) -> None:
    rate = {"adam": 0.01, "adadelta": 1.0}[optimiser]
    record = settings(optimiser=optimiser, learning_rate=rate, num_steps=300, dropout=0.1)
    start, end = held_out_loss(fit(settings(num_steps=1))), held_out_loss(fit(record))
    gaussian = torch.distributions.Normal(FRAMES.mean((0, 1)), FRAMES.std((0, 1)))
    held_out = -gaussian.log_prob(video_frames(100, seed=1)[0]).sum(-1).mean().item()
    assert end["total"] < start["total"]
    assert end["total"] < held_out - 1  # nats a descriptor


def separation(net: FvVaeNet) -> float:
    """How far apart the classes' mean latents are, in standard deviations along that direction."""
    frames, targets = video_frames(100, seed=1)
    with torch.no_grad():
        z = net.encode(frames)
    one, two = (z[targets[:, k] == 1].flatten(0, 1) for k in range(K))
    direction = one.mean(0) - two.mean(0)
    spread = ((one - one.mean(0)) @ direction).var() + ((two - two.mean(0)) @ direction).var()
    return (direction @ direction / (spread / 2).sqrt()).item()


@pytest.mark.parametrize("pooling", ["descriptor", "max"])
def test_lambda3_separates_the_classes(pooling: str) -> None:
    record = {"num_steps": 300, "dropout": 0.1, "class_pooling": pooling}
    without, with_labels = fit(settings(**record)), fit(settings(**record, lambda3=300))
    assert separation(with_labels) > 5 * separation(without)
    assert held_out_loss(with_labels)["classification"] < 0.75 * math.log(K)


def test_a_channel_that_never_fires_keeps_a_variance() -> None:
    dead = FRAMES.clone()
    dead[..., 3] = 0
    record = settings(
        num_steps=200, optimiser="adadelta", learning_rate=1, sigma_learning_rate_factor=10
    )
    net = fit(
        record,
        batch=lambda step, generator: (batch(step, generator)[0] * (dead[:1, :1] != 0), None),
    )
    assert net.log_var_x[3] == net.min_log_var_x
    assert (net.log_var_x.detach() >= net.min_log_var_x).all()


def test_losses_that_are_not_finite_stop_all_workers_with_advice() -> None:
    def work(rank, all_reduce):
        def poisoned(step, generator):
            frames, targets = batch(step, generator)
            return (frames * math.nan if (step, rank) == (3, 1) else frames), targets

        with pytest.raises(
            ValueError, match=r"step 3: expected finite.*lower fv_vae.learning_rate"
        ):
            fit(settings(), batch=poisoned, rank=rank, all_reduce=all_reduce)
        return True

    assert oracles.run_workers(2, work) == [True, True]


@pytest.mark.parametrize("shape", [(4, T, C + 1), (0, T, C), (4, C)])
def test_frames_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"frames of shape \[b, T, 10\], none of them 0, got"):
        fit(settings(), batch=lambda *_: (torch.ones(shape), None))


HELD_OUT = video_frames(20, seed=1)[0]


def few_frames(step: int, generator: torch.Generator) -> tuple[Tensor, None]:
    """A training set that is soon learnt by heart."""
    return FRAMES[torch.randint(4, (16,), generator=generator)], None


def stopping(**changed: object) -> FvVaeSettings:
    return settings(
        num_steps=600, learning_rate=0.05, dropout=0, early_stopping_steps=50, **changed
    )


def test_training_stops_and_keeps_the_best_on_held_out_frames() -> None:
    bounds, states, steps = {}, {}, []

    def on_step(step, losses, state):
        steps.append(step)
        if "held_out_bound" in losses:
            bounds[step] = losses["held_out_bound"]
            states[step] = state()["model"]

    net = fit(stopping(), batch=few_frames, held_out=HELD_OUT, on_step=on_step)
    best = max(bounds, key=bounds.get)
    assert list(bounds) == list(range(25, steps[-1] + 1, 25))
    assert steps[-1] == best + 50 < 600
    for name, value in net.state_dict().items():
        assert torch.equal(value, states[best][name]), name
    with torch.no_grad():
        parts, _ = net.eval().evidence(HELD_OUT, torch.Generator().manual_seed(0))
    # Another draw of z.
    assert -sum(parts.values()).item() == pytest.approx(bounds[best], abs=1)


def test_early_stopping_goes_on_where_it_was() -> None:
    files, last = {}, []

    def on_step(step, losses, state):
        last[:] = [step]
        if step % 35 == 0:
            data = io.BytesIO()
            torch.save(state(), data)
            files[step] = data.getvalue()

    arguments = {"batch": few_frames, "held_out": HELD_OUT}
    undisturbed = fit(stopping(), on_step=on_step, **arguments)
    for step in {min(files), max(files)}:
        state = torch.load(io.BytesIO(files[step]), weights_only=True)
        more = [step]
        resumed = fit(
            stopping(), state=state, on_step=lambda at, *_, more=more: more.append(at), **arguments
        )
        assert_same_weights(resumed, undisturbed)
        assert more == list(range(step, last[0] + 1))


def test_a_run_that_had_stopped_stays_so() -> None:
    arguments = {"batch": few_frames, "held_out": HELD_OUT}
    states = {}
    undisturbed = fit(
        stopping(), on_step=lambda step, _, state: states.update({"last": state}), **arguments
    )
    assert_same_weights(fit(stopping(), state=states["last"](), **arguments), undisturbed)


def test_workers_stop_together_even_where_one_holds_nothing_out() -> None:
    last = {}

    def work(rank, all_reduce):
        return fit(
            stopping(),
            batch=few_frames,
            held_out=HELD_OUT if rank else HELD_OUT[:0],
            rank=rank,
            all_reduce=all_reduce,
            on_step=lambda step, *_: last.update({rank: step}),
        )

    first, second = oracles.run_workers(2, work)
    assert_same_weights(first, second)
    assert last[0] == last[1] < 600


def test_the_number_of_steps_follows_the_sample() -> None:
    record = settings(num_steps=0, batch_frames=32)
    assert [record.steps_for(frames) for frames in (1, 1600, 1601, 20_000)] == [100, 100, 101, 1250]
    assert settings(num_steps=7).steps_for(20_000) == 7


def test_numbers_are_those_of_before_the_trainer_was_shared() -> None:
    """Recorded at commit 6559bbc, when the FV-VAE had a training loop of its own."""
    losses = []
    net = fit(
        settings(optimiser="adadelta", learning_rate=1, lambda3=3),
        on_step=lambda step, values, _: losses.append(values),
    )
    assert losses[-1] == pytest.approx(
        {
            "total": -0.47403502464294434,
            "reconstruction": -3.894895553588867,
            "regularisation": 1.179704189300537,
            "classification": 0.7470521330833435,
        },
        rel=1e-5,
    )
    sums = {name: value.double().sum().item() for name, value in net.state_dict().items()}
    assert sums["log_var_x"] == pytest.approx(-15.22387632727623, rel=1e-5)
    assert sums["encoder.0.weight"] == pytest.approx(1.4268446513451636, rel=1e-5)
    assert sums["decoder.bias"] == pytest.approx(8.407765209674835, rel=1e-5)
    assert sums["classifier.weight"] == pytest.approx(2.5530100613832474, rel=1e-5)
