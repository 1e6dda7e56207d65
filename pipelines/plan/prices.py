"""The editable price table: kinds of GPUs with their speed, and kinds of machines with their prices; and what a
planned cluster costs by it."""

import math
import tomllib
from dataclasses import dataclass
from importlib import resources

from pipelines.errors import ConfigError
from pipelines.settings.text import near
from pipelines.storage.filesystems import filesystem


@dataclass(frozen=True)
class Range:
    """A number, and the lowest and highest that the assumptions allow."""

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> "Range":
        return cls(value, value, value)

    def __add__(self, other: "Range") -> "Range":
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> "Range":
        return Range(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: peak in operations a second, and the share of it that is reached, lowest and highest."""

    name: str
    peak_flops: float
    low_share: float
    high_share: float

    def seconds(self, flops: float) -> Range:
        """Seconds for so many operations, at the (geometric) middle, highest and lowest share."""
        middle = (self.low_share * self.high_share) ** 0.5
        at_peak = flops / self.peak_flops
        return Range(at_peak / middle, at_peak / self.high_share, at_peak / self.low_share)


@dataclass(frozen=True)
class Machine:
    """A kind of machine; `gpu` is empty where it has none. Prices an hour; spot = on demand where there is none."""

    name: str
    cpus: int
    gpus: int
    gpu: str
    on_demand: float
    spot: float


@dataclass(frozen=True)
class Prices:
    currency: str
    gpus: tuple[Gpu, ...]
    machines: tuple[Machine, ...]

    def gpu(self, name: str) -> Gpu:
        """The kind of that name.

        Raises:
            ConfigError: the table has none.
        """
        for gpu in self.gpus:
            if gpu.name == name:
                return gpu
        known = [gpu.name for gpu in self.gpus]
        raise ConfigError(
            f"plan.gpu: expected one of {', '.join(known)}, or another that a price table of yours has "
            f"(plan.prices), got {name!r}{near(name, known, '')}"
        )


@dataclass(frozen=True)
class Shape:
    """A cluster: CPUs and GPUs of all nodes; `gpu` None where it is this machine's own, or there is none."""

    cpus: int
    gpus: int = 0
    gpu: Gpu | None = None

    @property
    def text(self) -> str:
        named = f" {self.gpu.name}" if self.gpu else ""
        return f"{self.cpus} CPUs" + (f", {self.gpus}{named} GPUs" if self.gpus else "")


@dataclass(frozen=True)
class Offer:
    """The planned cluster made of machines of one kind: how many, and what the run costs on them."""

    machine: Machine
    number: int
    price: Range


def offers(shape: Shape, wall_s: Range, prices: Prices) -> list[Offer]:
    """Machines of the price table that make up the shape, the cheapest first; none where the shape names no
    kind of GPU that they have.

    The price of a run: lowest at the spot price and the shortest time, highest on demand and at the longest.
    """
    found = []
    for machine in prices.machines:
        kind = shape.gpu.name if shape.gpu else ""
        # GPUs of this machine may be of a kind that the table does not know.
        if machine.gpu != kind or bool(machine.gpus) != bool(shape.gpus):
            continue
        number = math.ceil(shape.cpus / machine.cpus)
        if shape.gpus:
            number = max(number, math.ceil(shape.gpus / machine.gpus))
        hours = wall_s * (number / 3600)
        price = Range(
            hours.value * machine.on_demand,
            hours.low * machine.spot,
            hours.high * machine.on_demand,
        )
        found.append(Offer(machine, number, price))
    return sorted(found, key=lambda offer: (offer.price.value, offer.machine.name))


def gpu_hours(flops: float, prices: Prices) -> dict[str, Range]:
    """Hours of one GPU of each kind in the table for so many operations."""
    return {gpu.name: gpu.seconds(flops) * (1 / 3600) for gpu in prices.gpus}


def read_prices(source: str) -> Prices:
    """The table in a TOML file or URI; pipelines/prices.toml for "".

    Raises:
        ConfigError: no such file, no TOML, or an entry that is not as in pipelines/prices.toml.
    """
    where = f"plan.prices={source}" if source else "pipelines/prices.toml"
    try:
        if source:
            files, path = filesystem(source)
            content = files.cat_file(path)
        else:
            content = resources.files("pipelines").joinpath("plan/prices.toml").read_bytes()
        table = tomllib.loads(content.decode())
    except (OSError, ImportError, ValueError) as error:
        raise ConfigError(
            f"{where}: expected a TOML file as pipelines/prices.toml, got {type(error).__name__}: {error}"
        ) from error
    gpus = tuple(_gpu(where, name, entry) for name, entry in _section(where, table, "gpus"))
    known = {gpu.name for gpu in gpus}
    machines = tuple(
        _machine(where, name, entry, known) for name, entry in _section(where, table, "machines")
    )
    currency = table.get("currency", "USD")
    if not isinstance(currency, str):
        raise ConfigError(f"{where}: expected currency as text, got {currency!r}")
    return Prices(currency, gpus, machines)


def _section(where: str, table: dict, name: str) -> list[tuple[str, dict]]:
    section = table.get(name, {})
    if not isinstance(section, dict) or not all(isinstance(e, dict) for e in section.values()):
        raise ConfigError(f"{where}: expected a table [{name}] of tables, got {section!r}")
    return list(section.items())


def _gpu(where: str, name: str, entry: dict) -> Gpu:
    peak = _number(where, f"gpus.{name}", entry, "float32_tflops")
    share = entry.get("share")
    is_pair = isinstance(share, list) and len(share) == 2
    if (
        not is_pair
        or not all(isinstance(s, int | float) for s in share)
        or not 0 < share[0] <= share[1] <= 1
    ):
        raise ConfigError(
            f"{where}: gpus.{name}.share: expected [lowest, highest] within 0 and 1, got {share!r}"
        )
    return Gpu(name, peak * 1e12, float(share[0]), float(share[1]))


def _machine(where: str, name: str, entry: dict, known: set[str]) -> Machine:
    place = f"machines.{name}"
    gpus = int(_number(where, place, entry, "gpus", least=0.0))
    gpu = entry.get("gpu", "")
    if bool(gpus) != bool(gpu) or (gpu and gpu not in known):
        raise ConfigError(
            f"{where}: {place}.gpu: expected {'one of ' + ', '.join(sorted(known)) if gpus else 'none'} for "
            f"{gpus} GPUs, got {gpu!r}"
        )
    price = _number(where, place, entry, "on_demand", least=0.0)
    return Machine(
        name=name,
        cpus=int(_number(where, place, entry, "cpus", least=1.0)),
        gpus=gpus,
        gpu=gpu,
        on_demand=price,
        spot=_number(where, place, {"spot": price} | entry, "spot", least=0.0),
    )


def _number(where: str, place: str, entry: dict, name: str, least: float = 1e-9) -> float:
    value = entry.get(name)
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not least <= value < math.inf
    ):
        raise ConfigError(
            f"{where}: {place}.{name}: expected a number, {least:g} or more, got {value!r}"
        )
    return float(value)
