"""The price table: what is shipped can be read, and each mistake is one message that says where."""

from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.plan.prices import Gpu, Range, read_prices

GOOD = """
currency = "EUR"
[gpus]
g1 = { float32_tflops = 10.0, share = [0.25, 1.0] }
[machines]
small = { cpus = 4, gpus = 0, on_demand = 0.2 }
large = { cpus = 8, gpus = 2, gpu = "g1", on_demand = 3, spot = 1.0 }
"""


def test_the_shipped_table_can_be_read() -> None:
    prices = read_prices("")
    assert prices.gpu("l4").float32_tflops == pytest.approx(30.3)
    assert any(not machine.gpus for machine in prices.machines)
    assert {machine.gpu for machine in prices.machines if machine.gpus} == {
        gpu.name for gpu in prices.gpus
    }
    assert all(0 < machine.lowest <= machine.on_demand for machine in prices.machines)


def test_an_own_table(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(GOOD)
    prices = read_prices(str(path))
    assert prices.currency == "EUR"
    small, large = prices.machines
    assert (small.gpus, small.gpu, small.lowest) == (0, "", 0.2), "no spot price: that on demand"
    assert (large.cpus, large.gpus, large.gpu, large.on_demand, large.spot) == (8, 2, "g1", 3, 1)


def test_seconds_of_a_gpu_are_operations_over_its_share_of_the_peak() -> None:
    # 10 TFLOP/s; a quarter to all of it, the geometric middle is a half.
    gpu = Gpu(float32_tflops=10.0, share=(0.25, 1.0))
    assert gpu.seconds(20e12) == Range(4.0, 2.0, 8.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[gpus]",
            "[gpus",
            "expected a TOML file as pipelines/plan/prices.toml, got TOMLDecodeError",
        ),
        (
            "10.0",
            '"fast"',
            (
                "gpus.g1.float32_tflops: expected a valid number, unable to parse string as a"
                " number, got 'fast'"
            ),
        ),
        ("10.0", "0", "gpus.g1.float32_tflops: expected greater than 0, got 0"),
        (
            "[0.25, 1.0]",
            "[0.5, 0.4]",
            "gpus.g1.share: expected the lowest share before the highest",
        ),
        ("[0.25, 1.0]", "0.5", "gpus.g1.share: expected a valid tuple, got 0.5"),
        ('gpu = "g1", ', "", "machines.large.gpu: expected one of g1 for 2 GPUs, got ''"),
        ('"g1"', '"g2"', "machines.large.gpu: expected one of g1 for 2 GPUs, got 'g2'"),
        ("on_demand = 3,", "", "machines.large.on_demand: Field required"),
        ("cpus = 4", "cpus = 0", "machines.small.cpus: expected greater than or equal to 1, got 0"),
        ("[machines]", "machines = 3\n[m]", "machines: expected a valid dictionary, got 3"),
        ("spot = 1.0", "spott = 1.0", "machines.large.spott: Extra inputs are not permitted"),
        ('"EUR"', "3", "currency: expected a valid string, got 3"),
    ],
)
def test_a_mistake_says_where(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "own.toml"
    text = GOOD.replace(old, new, 1)
    if new.startswith("machines = "):
        text = new.split("\n")[0] + "\n" + GOOD.split("[machines]")[0]
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_prices(str(path))
    assert message in str(caught.value)
    assert f"plan.prices={path}" in str(caught.value)


def test_a_table_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"plan.prices=/no.toml: expected a TOML file"):
        read_prices("/no.toml")
