"""The editable price table: speeds of GPUs, prices of machines, and the cost of a planned cluster
by them."""

import math
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from pipelines.errors import ConfigError, near
from pipelines.storage.filesystems import filesystem
from pipelines.storage.uris import refuse_credentials


@dataclass(frozen=True)
class Range:
    """A number, with the lowest and highest value that the assumptions allow."""

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> "Range":
        return cls(value, value, value)

    def at_least(self, least: float) -> "Range":
        """Return the range with each of its three numbers at least `least`."""
        return Range(*(max(least, part) for part in (self.value, self.low, self.high)))

    def __add__(self, other: "Range") -> "Range":
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> "Range":
        return Range(self.value * factor, self.low * factor, self.high * factor)


_Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(gt=0, le=1)]


class Gpu(BaseModel, frozen=True, extra="forbid"):
    """A kind of GPU: its peak in 10^12 operations a second, and the share of it that is reached,
    lowest and highest."""

    name: str = ""
    float32_tflops: float = Field(gt=0, allow_inf_nan=False)
    share: tuple[_Share, _Share]

    def seconds(self, flops: float) -> Range:
        """Return the seconds for so many operations, at the (geometric) middle, highest and lowest
        share."""
        low, high = self.share
        at_peak = flops / (1e12 * self.float32_tflops)
        return Range(at_peak / (low * high) ** 0.5, at_peak / high, at_peak / low)

    @field_validator("share")
    @classmethod
    def _in_order(cls, share: tuple[float, float]) -> tuple[float, float]:
        if share[0] > share[1]:
            raise ValueError("expected the lowest share before the highest")
        return share


class Machine(BaseModel, frozen=True, extra="forbid"):
    """A kind of machine, with prices an hour.

    `gpu` is empty where it has none; `spot` None means the price on demand.
    """

    name: str = ""
    cpus: int = Field(ge=1)
    gpus: int = Field(ge=0)
    gpu: str = ""
    on_demand: _Price
    spot: _Price | None = None

    @property
    def lowest(self) -> float:
        """The spot price, or the price on demand where there is none."""
        return self.on_demand if self.spot is None else self.spot


@dataclass(frozen=True)
class Prices:
    currency: str
    gpus: tuple[Gpu, ...]
    machines: tuple[Machine, ...]

    def gpu(self, name: str) -> Gpu:
        """Return the kind of that name.

        Raises:
            ConfigError: the table has none.
        """
        for gpu in self.gpus:
            if gpu.name == name:
                return gpu
        known = [gpu.name for gpu in self.gpus]
        raise ConfigError(
            f"plan.gpu: expected one of {', '.join(known)}, or another that a price table of "
            f"yours has (plan.prices), got {name!r}{near(name, known, '')}"
        )


@dataclass(frozen=True)
class Shape:
    """A cluster: CPUs and GPUs of all nodes.

    `gpu` is None for this machine's own GPU, or without one.
    """

    cpus: int
    gpus: int = 0
    gpu: Gpu | None = None

    @property
    def text(self) -> str:
        gpu_text = f" {self.gpu.name}" if self.gpu else ""
        return f"{self.cpus} CPUs" + (f", {self.gpus}{gpu_text} GPUs" if self.gpus else "")


@dataclass(frozen=True)
class Offer:
    """The planned cluster built of machines of one kind: their number and the cost of the run."""

    machine: Machine
    number: int
    price: Range


def offers(shape: Shape, wall_s: Range, prices: Prices) -> list[Offer]:
    """Return offers of machines that make up the shape, the cheapest first; none where no machine
    has the GPU of the shape.

    The price of a run: lowest at the spot price and the shortest time, highest on demand and at the
    longest.
    """
    offered = []
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
            hours.low * machine.lowest,
            hours.high * machine.on_demand,
        )
        offered.append(Offer(machine, number, price))
    return sorted(offered, key=lambda offer: (offer.price.value, offer.machine.name))


def gpu_hours(flops: float, prices: Prices) -> dict[str, Range]:
    """Return hours of one GPU of each kind in the table for so many operations."""
    return {gpu.name: gpu.seconds(flops) * (1 / 3600) for gpu in prices.gpus}


class _Table(BaseModel, extra="forbid"):
    """The content of a TOML file of prices."""

    currency: str = "USD"
    gpus: dict[str, Gpu] = {}
    machines: dict[str, Machine] = {}

    @model_validator(mode="after")
    def _known_gpus(self) -> Self:
        for name, machine in self.machines.items():
            known = sorted(self.gpus) if machine.gpus else [""]
            if machine.gpu not in known:
                words = f"one of {', '.join(known)}" if machine.gpus else "none"
                raise ValueError(
                    f"machines.{name}.gpu: expected {words} for {machine.gpus} GPUs, got "
                    f"{machine.gpu!r}"
                )
        return self


def read_prices(source: str) -> Prices:
    """Return the table in a TOML file or URI; pipelines/plan/prices.toml for "".

    Raises:
        ConfigError: no such file, no TOML, or an entry unlike those of prices.toml.
    """
    refuse_credentials("plan.prices", source)
    where = f"plan.prices={source}" if source else "pipelines/plan/prices.toml"
    try:
        if source:
            files, path = filesystem(source)
            content = files.cat_file(path)
            content = content.encode() if isinstance(content, str) else content
        else:
            content = resources.files("pipelines").joinpath("plan/prices.toml").read_bytes()
        table = _Table.model_validate(tomllib.loads(content.decode()))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_words(error)}") from error
    except (OSError, ImportError, ValueError) as error:
        raise ConfigError(
            f"{where}: expected a TOML file as pipelines/plan/prices.toml, got "
            f"{type(error).__name__}: {error}"
        ) from error
    gpus = (gpu.model_copy(update={"name": name}) for name, gpu in table.gpus.items())
    machines = (
        machine.model_copy(update={"name": name}) for name, machine in table.machines.items()
    )
    return Prices(table.currency, tuple(gpus), tuple(machines))


def _words(error: ValidationError) -> str:
    """Return the first mistake as a message: where, expected and got."""
    first = error.errors()[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ")
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{'.'.join(map(str, first['loc']))}: {message}, got {first['input']!r}"
