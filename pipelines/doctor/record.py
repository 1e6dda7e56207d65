"""The run.json of a run that may be damaged, unfinished, or of another version.

`pipelines.run.saved` refuses such a run; the doctor says what is wrong with it.
"""

import json
from functools import cached_property

from pipelines.run.combination import Combination
from pipelines.run.schema import malformed
from pipelines.run.steps import STEPS
from pipelines.settings.config import EXTERNAL_STREAM, Config, config_from_json, digest
from pipelines.storage.retries import StorageError
from pipelines.storage.store import Store


class Record:
    """A run's run.json; empty where it is missing or damaged.

    Attributes:
        error: "", or what is wrong with run.json.
        config_error: "", or why this version does not understand its configuration.
        config: the run's, or the default one where it is not understood.

    Raises:
        StorageError: the storage does not answer.
    """

    def __init__(self, store: Store) -> None:
        self.error, self.config_error = "", ""
        self._values: dict = {}
        try:
            values = json.loads(store.read("run.json"))
            if reason := malformed(values):
                self.error = f"run.json {reason}"
            else:
                self._values = values
        except FileNotFoundError:
            self.error = "run.json is missing"
        except StorageError:
            raise
        except (OSError, ValueError, TypeError) as error:
            self.error = f"run.json cannot be read ({type(error).__name__}: {error})"
        self.tables: dict[str, str] = self._values.get("tables", {})
        self.streams: list[dict] = self._values.get("streams", [])
        self.has_labels = self._values.get("split", {}).get("num_folds", 0) > 0
        self.config = Config()
        if not self.error:
            try:
                self.config = config_from_json(self._values["config"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self.config_error = str(error)

    @cached_property
    def combinations(self) -> list[Combination]:
        """The fused results with SCORES of their own."""
        return [
            Combination(entry["encoder"], entry["stream"], tuple((e, s) for e, s in entry["parts"]))
            for entry in self._values.get("combinations", [])
        ]

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """(encoder, stream) of single results with SCORES, in the order of `Job.pairs`.

        Results of other makers than the run's encoders come last.
        """
        known = {split_key(key)[:2] for key in self._keys("scores")}
        known -= {combination.pair for combination in self.combinations}
        order = [
            (encoder, stream["name"])
            for stream in self.streams
            for encoder in self.config.encode.encoders
        ] + [(encoder, EXTERNAL_STREAM) for encoder in self.config.external]
        return [pair for pair in order if pair in known] + sorted(known.difference(order))

    @property
    def scored(self) -> list[tuple[str, str]]:
        """(encoder, stream) of all results with SCORES: of encoders, the fused, the others."""
        own = [pair for pair in self.pairs if pair[0] in self.config.encoder_names]
        fused = [combination.pair for combination in self.combinations]
        return [*own, *fused, *(pair for pair in self.pairs if pair not in own)]

    def marks(self, step: str) -> list[str]:
        """Return the files that exist when a step is complete; none of the step fit."""
        return STEPS[step].marks(self._folders) if "videos" in self.tables else []

    def is_recorded(self, step: str) -> bool:
        """Return whether run.json says that the step was done for the tables it names."""
        entry = self._values.get("steps", {}).get(step)
        if entry is None:
            return False
        return step == "fit" or entry.get("digest") == digest(step, self.marks(step))

    def _folders(self, table: str) -> list[str]:
        """Return today's folders of a table in the order of the run; run.json has them sorted.

        Those of the codebooks are not named in it.
        """
        keys = self._keys(table)
        if table == "scores":
            keys = [f"scores/{encoder}-{stream}" for encoder, stream in self.scored]
        elif table == "networks":
            keys = sorted(keys, key=split_key)
        elif table == "encodings":
            variants = {name: self.config.variant(name) for name in self.config.encoder_names}
            results = [
                f"encodings/{variants[encoder].codebook}-{stream}"
                for encoder, stream in self.pairs
                if encoder in variants
            ]
            keys = [
                key
                for result in dict.fromkeys(results)
                for key in sorted(keys, key=split_key)
                if key.partition("/fold-")[0] == result
            ]
        return [self.tables[key] for key in keys if key in self.tables]

    def _keys(self, table: str) -> list[str]:
        return [key for key in self.tables if key.partition("/")[0] == table]


def split_key(key: str) -> tuple[str, str, int]:
    """Return encoder, stream and K of TABLE/ENCODER-STREAM/fold-K; K is -1 without a fold."""
    result, _, fold = key.partition("/")[2].partition("/fold-")
    encoder, _, stream = result.rpartition("-")
    return encoder, stream, int(fold or -1)
