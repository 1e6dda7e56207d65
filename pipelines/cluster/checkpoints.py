"""Checkpoints of a training: plain tensors in the run's folder `train`, read without unpickling.

Not Ray Train's checkpoints: for these all workers of a run wait for each other, and here teams of
them fit different codebooks.
"""

import io
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from pipelines.cluster.teams import Team
from pipelines.run.codebook import Fitted
from pipelines.storage.store import Store

FOLDER = "train"


@dataclass
class Checkpoints:
    """The last state of each codebook or network that a team fits, every so many seconds."""

    store: Store
    every_s: float
    team: Team
    last: float = field(default_factory=time.monotonic)

    def of(self, book: Fitted) -> tuple[dict | None, list[dict]]:
        """Return the state of an interrupted fit of this codebook or None, and the rows of CURVES
        up to it.

        Raises:
            RuntimeError: the workers of the team have read different ones; they have to start
                again.
        """
        name = self._name(book)
        exists = self.team.agree(self.team.rank == 0 and self.store.exists(name))
        data = self.store.read(name) if exists else b""
        number = float(zlib.crc32(data))
        if self.team.agree(number) != number:
            raise RuntimeError(f"{name}: it was written while worker {self.team.rank} read it")
        if not data:
            return None, []
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return checkpoint["fit"], checkpoint["curves"]

    def offer(self, book: Fitted, state: Callable[[], dict], curves: list[dict]) -> None:
        """Save a state when the last one is old, by the clock of the team's first worker."""
        if not self.team.agree(time.monotonic() - self.last > self.every_s):
            return
        self.last = time.monotonic()
        checkpoint = {"fit": state(), "curves": curves}
        if self.team.rank == 0:
            packed = io.BytesIO()
            torch.save(checkpoint, packed)
            self.store.publish(self._name(book), packed.getvalue())

    @staticmethod
    def _name(book: Fitted) -> str:
        return f"{FOLDER}/{book.digest}.pt"
