"""Who fits which codebook, and what is kept of one under way."""

import contextlib
import os
import signal
import threading
import time
from math import inf
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.cluster import training
from pipelines.cluster.checkpoints import Checkpoints
from pipelines.cluster.meter import SILENT
from pipelines.cluster.teams import Dealer, Team, teams_at_once
from pipelines.errors import ConfigError, RunError
from pipelines.fit import codebooks
from pipelines.run.codebook import Codebook
from pipelines.settings.config import Config
from pipelines.settings.sections import Fit
from pipelines.storage.retries import StorageError
from pipelines.storage.store import Store

SAMPLES = ["a", "a", "a", "b", "b", "c"]


def dealer(samples: list[str] = SAMPLES):
    return Dealer.__ray_metadata__.modified_class(samples)


def test_a_team_stays_with_its_sample_while_there_are_others() -> None:
    deals = dealer()
    deals.begin(0)
    deals.begin(1)
    assert [deals.take(0), deals.take(1)] == [0, 3]
    assert [deals.take(0), deals.take(1)] == [1, 4]
    assert deals.take(1) == 5
    # Nothing else is left: the last one of team 0's sample is better than nothing.
    assert deals.take(1) == 2
    assert [deals.take(0), deals.take(1)] == [None, None]


@pytest.mark.parametrize("teams", [1, 2, 3, 6, 9])
def test_each_codebook_is_dealt_out_once(teams: int) -> None:
    deals, dealt, going = dealer(), [], list(range(teams))
    while going:
        team = going.pop(0)
        place = deals.take(team)
        if place is not None:
            dealt.append(place)
            going.append(team)
    assert sorted(dealt) == list(range(len(SAMPLES)))


def test_what_lost_teams_had_is_dealt_out_again() -> None:
    """All teams begin again when a worker is lost, in any order."""
    deals = dealer()
    first = {deals.take(0), deals.take(1)}
    deals.begin(1)
    again = [deals.take(1)]
    deals.begin(0)
    again += [deals.take(0) for _ in range(5)]
    assert first == {0, 3}
    assert sorted(again) == list(range(len(SAMPLES)))


def test_a_run_that_has_failed_deals_nothing_out() -> None:
    deals = dealer()
    deals.take(0)
    deals.stop()
    assert deals.take(1) is None


MB, GB = 10**6, 10**9


@pytest.mark.parametrize(
    ("settings", "sizes", "places", "memory", "teams"),
    [
        ({}, [100 * MB] * 15, 2.0, inf, 2),
        ({}, [100 * MB] * 3, 16, inf, 3),
        ({}, [100 * MB] * 15, 0, inf, 1),
        # Small ones do not pay for processes.
        ({}, [4 * MB] * 15, 16, inf, 1),
        ({}, [10 * MB] * 15, 16, inf, 2),
        ({"num_workers": 4}, [100 * MB] * 15, 16, inf, 4),
        ({"num_workers": 4}, [100 * MB] * 15, 3, inf, 1),
        # Two large samples and their processes have room, three have not.
        ({}, [GB, 10 * GB, 10 * GB], 16, 50 * GB, 2),
        ({"codebooks_at_once": 1}, [100 * MB] * 15, 16, inf, 1),
        ({"codebooks_at_once": 5, "num_workers": 2}, [MB] * 15, 4, inf, 5),
        ({"codebooks_at_once": 5}, [MB] * 3, 4, inf, 3),
    ],
)
def test_as_many_codebooks_at_once_as_pay_and_have_room(
    settings: dict[str, int], sizes: list[int], places: float, memory: float, teams: int
) -> None:
    assert teams_at_once(Fit(**settings), sizes, places, memory) == teams


def test_a_negative_number_at_once_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fit.codebooks_at_once: expected at least 0, got -1"):
        Config().with_settings(["fit.codebooks_at_once=-1"])


BOOK, OTHER = (Codebook.of(Config().variant("fv_vae"), "a", 0, name) for name in ("1f", "2f"))


class TwoWorkers(Team):
    """A team's second worker, whose first one has `first`."""

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.full_like(tensor, FIRST.pop(0))


FIRST: list[float] = []


def test_a_state_comes_back_for_its_codebook_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    kept = Checkpoints(store, 0.0, Team())
    assert kept.of(BOOK) == (None, [])
    rows = [{"step": 1, "value": 0.5}]
    kept.offer(BOOK, lambda: {"step": 1, "weights": torch.arange(3.0)}, rows)
    state, curves = Checkpoints(store, 0.0, Team()).of(BOOK)
    assert state["step"] == 1
    assert state["weights"].tolist() == [0.0, 1.0, 2.0]
    assert curves == rows
    assert kept.of(OTHER) == (None, [])
    kept.offer(BOOK, lambda: {"step": 2}, [])
    assert kept.of(BOOK) == ({"step": 2}, [])


def test_a_state_is_kept_when_the_last_one_is_old(tmp_path: Path) -> None:
    kept = Checkpoints(Store(str(tmp_path)), 3600.0, Team())
    kept.offer(BOOK, lambda: pytest.fail("too soon"), [])
    kept.last -= 3601.0
    kept.offer(BOOK, lambda: {"step": 1}, [])
    kept.offer(BOOK, lambda: pytest.fail("too soon"), [])
    assert kept.of(BOOK) == ({"step": 1}, [])


def test_workers_that_read_different_states_do_not_go_on(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    Checkpoints(store, 0.0, Team()).offer(BOOK, lambda: {"step": 1}, [])
    second = Checkpoints(store, 0.0, TwoWorkers(rank=1, size=2))
    FIRST[:] = [1.0, 12345.0]
    with pytest.raises(RuntimeError, match=r"train/1f.pt: it was written while worker 1 read it"):
        second.of(BOOK)


def test_the_first_worker_alone_asks_whether_there_is_a_state() -> None:
    FIRST[:] = [0.0, 0.0]
    assert Checkpoints(None, 0.0, TwoWorkers(rank=1, size=2)).of(BOOK) == (None, [])


@pytest.mark.parametrize(
    ("setting", "error", "is_final"),
    [
        ({}, ValueError("wrong"), True),
        ({}, StorageError("gone"), False),
        ({"final": (ValueError, RunError)}, RunError("wrong"), True),
        ({"final": (ValueError, RunError)}, RuntimeError("lost"), False),
        ({"final": (ValueError, RunError)}, StorageError("gone"), False),
    ],
)
def test_only_an_error_that_would_come_again_ends_a_training_run(
    monkeypatch: pytest.MonkeyPatch, setting: dict, error: Exception, is_final: bool
) -> None:
    """Ray Train starts the workers again after any other, which the train loop must let through."""

    def loop(_: dict) -> None:
        raise error

    told = []
    monkeypatch.setattr(codebooks.ray, "get", told.append)
    counter = SimpleNamespace(tell=lambda *what: what)
    setting = setting | {"loop": loop, "step": "fit", "meter": SILENT, "counter": counter}
    with contextlib.nullcontext() if is_final else pytest.raises(type(error)):
        training._guarded(setting)
    assert told == ([("fail", "wrong")] if is_final else [])


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_ctrl_c_ends_the_wait_for_a_training_run_as_any_other(tmp_path: Path) -> None:
    """Ray Train would take SIGINT for itself, and end this process without a word."""
    begun, free, store = tmp_path / "begun", tmp_path / "free", Store(str(tmp_path))

    def loop(_: dict) -> None:
        begun.touch()
        while not free.exists():
            time.sleep(0.1)

    def interrupt() -> None:
        while not begun.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            training.run_training(
                loop,
                {"store": store, "config": Config()},
                name="interrupted",
                step="fit",
                total=1,
                workers=1,
            )
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        free.touch()
    for thread in threading.enumerate():
        if thread.name == "ray.train":
            thread.join(60)
            assert not thread.is_alive()
