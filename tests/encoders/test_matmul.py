"""The way of float32 products: chosen by time and error, once for a machine."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from encoders import matmul
from encoders.matmul import Trial, choose


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, of a user who set nothing."""
    monkeypatch.delenv(matmul.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    matmul._chosen.cache_clear()
    yield tmp_path / "video-fisher"
    matmul._chosen.cache_clear()


def trials(plain: tuple[float, float], onednn: tuple[float, float]) -> list[Trial]:
    return [Trial("plain", *plain), Trial("onednn", *onednn)]


@pytest.mark.parametrize(
    ("onednn", "expected"),
    [
        ((0.005, 4e-7), "onednn"),  # an AMD processor: twice as fast, float32's own error
        ((0.003, 2e-3), "plain"),  # AMX: rounds to bfloat16
        ((0.0095, 3e-7), "plain"),  # not worth it
        ((0.020, 3e-7), "plain"),
        ((0.005, float("nan")), "plain"),
    ],
)
def test_the_fastest_way_that_is_exact_is_chosen(onednn, expected: str) -> None:
    assert choose(trials((0.010, 3e-7), onednn)) == expected


def test_bfloat16_is_seen_in_the_error_wherever_a_product_rounds() -> None:
    """Also where it is one of five: a product of rounded factors stands for it."""
    draw = torch.Generator().manual_seed(0)
    factors = matmul._factors((300, 64, 128), draw)
    exact = matmul._products(*(factor.double() for factor in factors))
    plain = matmul._error("plain", [factors], exact)
    rounded = matmul._products(*(factor.bfloat16().float() for factor in factors))
    for name, one, two in zip(("layer", "x", "back", "sums", "parts"), rounded, exact, strict=True):
        assert float((one - two).norm() / two.norm()) > 100 * plain, name


def test_a_way_that_is_taken_is_exact_here_and_is_left_again(cache: Path) -> None:
    measured = matmul.measured()
    assert [trial.way for trial in measured] == ["plain", "onednn"]
    assert measured[0].error < 1e-6
    assert min(trial.seconds for trial in measured) > 0
    by_way = {trial.way: trial.error for trial in measured}
    assert by_way[choose(measured)] <= matmul.MOST_ERROR * measured[0].error
    mode = torch.backends.mkldnn.matmul
    before = mode.fp32_precision
    with matmul.way("onednn"), matmul.way("onednn"):
        assert mode.fp32_precision == "bf16"
    assert mode.fp32_precision == before
    with pytest.raises(KeyError), matmul.way("onednn"):
        raise KeyError
    assert mode.fp32_precision == before


def test_the_choice_is_made_once_and_read_by_all(cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(matmul, "measured", lambda: trials((0.010, 3e-7), (0.005, 3e-7)))
    assert matmul.chosen() == "onednn"
    (file,) = cache.iterdir()
    record = json.loads(file.read_text())
    assert record["way"] == "onednn"
    assert record["torch"] == torch.__version__
    assert [trial["way"] for trial in record["trials"]] == ["plain", "onednn"]
    matmul._chosen.cache_clear()  # another process, which measures otherwise
    monkeypatch.setattr(matmul, "measured", lambda: trials((0.010, 3e-7), (0.020, 3e-7)))
    assert matmul.chosen() == "onednn"


def test_of_two_that_measure_at_once_the_first_to_write_decides(cache: Path, monkeypatch) -> None:
    def overtaken() -> list[Trial]:
        matmul._publish(matmul._cache_file(), '{"way": "onednn"}')
        return trials((0.010, 3e-7), (0.020, 3e-7))

    monkeypatch.setattr(matmul, "measured", overtaken)
    assert matmul.chosen() == "onednn"


def test_a_damaged_file_is_made_again(cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(matmul, "measured", lambda: trials((0.010, 3e-7), (0.005, 3e-7)))
    for text in ("", '{"way": "gpu"}', "[]"):
        file = matmul._cache_file()
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        matmul._chosen.cache_clear()
        assert matmul.chosen() == "onednn"
        assert json.loads(file.read_text())["way"] == "onednn"


def test_where_nothing_can_be_written_it_is_plain(tmp_path: Path, cache, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(matmul, "measured", lambda: trials((0.010, 3e-7), (0.005, 3e-7)))
    assert matmul.chosen() == "plain"


def test_the_environment_forces_a_way(cache: Path, monkeypatch) -> None:
    for name in matmul.WAYS:
        monkeypatch.setenv(matmul.VARIABLE, name)
        assert matmul.chosen() == name
    assert not cache.exists()
    monkeypatch.setenv(matmul.VARIABLE, "mkl")
    with pytest.raises(ValueError, match=r"VIDEO_FISHER_MATMUL: expected auto or one of plain, on"):
        matmul.chosen()


ENCODE = """
import torch
from benchmarks.encoders import _descriptors, _fv_vae, _gmm_fv
from encoders import matmul

x = _descriptors(2500, 512)
for encoder in (_fv_vae("none"), _gmm_fv(128)):
    exact = encoder.accumulate(x.double()).sums
    errors = []
    for name in ("plain", "onednn"):
        with matmul.way(name):
            errors.append(float((encoder.accumulate(x).sums - exact).norm() / exact.norm()))
    print(*errors)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's precision on x86-64")
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE_BF16"])
def test_without_amx_the_encoders_keep_their_error(isa: str) -> None:
    """Processors without AMX never round to bfloat16: here one that has it does without."""
    forced = {"ONEDNN_MAX_CPU_ISA": isa, matmul.VARIABLE: "plain", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ENCODE],
        env=os.environ | forced | {"PYTHONPATH": str(Path(matmul.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        plain, onednn = map(float, line.split())
        assert 0 < onednn < matmul.MOST_ERROR * plain
