"""A worker's device, and what it says of a GPU that is not there."""

import socket
from types import SimpleNamespace

import pytest

from pipelines.cluster.device import device
from pipelines.cluster.meter import Meter
from pipelines.errors import RunError


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return []


def meter(told: list[str]) -> Meter:
    return Meter(SimpleNamespace(tell=lambda what, reason: told.append(f"{what}: {reason}")))


def test_a_given_gpu_that_torch_does_not_see_ends_the_step(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(RunError, match="has the GPU 3 by Ray's account, but torch"):
        device(meter(told), allow_missing_gpu=False)
    (reason,) = told
    for part in ("fail: ", socket.gethostname(), "nvidia-smi", "cluster.allow_missing_gpu=true"):
        assert part in reason


@pytest.mark.parametrize(("given", "allowed"), [("3", True), ("", False), ("-1", False)])
def test_without_a_gpu_it_is_the_cpu(
    monkeypatch: pytest.MonkeyPatch, told: list[str], given: str, allowed: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert device(meter(told), allowed) == "cpu"
    assert told == []


def test_outside_a_step_nobody_pays(monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert device(Meter(), allow_missing_gpu=False) == "cpu"


def test_with_a_gpu_it_is_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device(Meter(), allow_missing_gpu=False) == "cuda"
