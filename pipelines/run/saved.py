"""A run as its run.json describes it, opened later without its inputs and without Ray."""

import functools
import re
from dataclasses import dataclass
from typing import Self

from encoders.settings import CODEBOOK
from pipelines.errors import ConfigError
from pipelines.ledger import marks
from pipelines.run.codebook import Codebook
from pipelines.run.folders import weights_file
from pipelines.run.schema import read_record
from pipelines.settings.config import EXTERNAL, Config, config_from_json
from pipelines.storage.store import Store
from pipelines.storage.uris import absolute_uri

# A stream is a node and a kind with what was given of it, such as features_12_difference_gap3: no
# number alone, as a fold is.
_ENCODINGS = re.compile(r"encodings/(?P<encoder>.+)-(?P<stream>\w+_\w+)(/fold-(?P<fold>\d+))?")


@dataclass(frozen=True)
class Encodings:
    """The ENCODINGS of one codebook: `encoder` as the table has it, without what concerns
    classifiers alone.
    """

    encoder: str
    stream: str
    fold: int
    folder: str


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A run's store, configuration, and {name: folder} of its tables."""

    store: Store
    config: Config
    tables: dict[str, str]

    @classmethod
    def open(cls, out: str) -> Self:
        """Open the run at the URI `out`.

        Raises:
            ConfigError: there is none, or its run.json was written by other code.
        """
        store = Store(absolute_uri(out))
        try:
            # Opens the client of its protocol, if there is one.
            store.path("run.json")
        except (ValueError, ImportError) as error:
            raise ConfigError(f"--out {out}: {error}") from error
        record = read_record(store)
        if record is None:
            raise ConfigError(
                f"--out {out}: expected a run with its run.json, found none; give the folder that "
                "was the job's --out"
            )
        try:
            return cls(store, config_from_json(record["config"]), dict(record["tables"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{store.uri('run.json')}: expected what this version writes, got {error}; run the "
                "job again with this version, or search with the version that made the run"
            ) from error

    @functools.cached_property
    def encodings(self) -> dict[tuple[str, str], Encodings]:
        """Return {(encoder, stream): its encodings}, in the order of encode.encoders, streams by
        name.

        Of a codebook that was fitted once per fold they are those of the first fold.
        """
        by_pair: dict[tuple[str, str], Encodings] = {}
        for key, folder in sorted(self.tables.items()):
            if match := _ENCODINGS.fullmatch(key):
                pair, fold = (match["encoder"], match["stream"]), int(match["fold"] or -1)
                if pair not in by_pair or fold < by_pair[pair].fold:
                    by_pair[pair] = Encodings(*pair, fold, folder)
        streams = sorted({stream for _, stream in by_pair})
        variants = [self.config.variant(name) for name in self.config.encoder_names]
        return {
            (variant.name, stream): by_pair[variant.codebook, stream]
            for variant in variants
            for stream in streams
            if (variant.codebook, stream) in by_pair
        }

    @property
    def videos(self) -> str:
        """Return the folder of VIDEOS."""
        return self.tables["videos"]

    def best_first(self) -> list[tuple[str, str]]:
        """Return the pairs of `encodings` by their mAP in METRICS; those without one last, in their
        order.
        """
        value = {}
        if self.store.files(self.tables["metrics"]):
            for row in self.store.read_table(self.tables["metrics"]).to_pylist():
                if (row["split"], row["metric"]) == ("all", "mAP") and row["value"] is not None:
                    value[row["encoder"], row["stream"]] = row["value"]
        return sorted(self.encodings, key=lambda pair: -value.get(pair, -1.0))

    def is_encoded(self, encodings: Encodings) -> bool:
        """Return whether the encodings are complete for today's VIDEOS."""
        videos = self.videos.rpartition("/")[2]
        return marks.holds(self.store, f"{encodings.folder}/_done-{videos}.json")

    def encodings_for(self, pair: tuple[str, str], fold: int) -> Encodings:
        """Return the encodings of a pair that the classifiers of a fold have; those of the first
        fold for one below 0.
        """
        codebook, stream = self.config.variant(pair[0]).codebook, pair[1]
        folder = self.tables.get(f"encodings/{codebook}-{stream}/fold-{fold}")
        return Encodings(codebook, stream, fold, folder) if folder else self.encodings[pair]

    def codebook(self, pair: tuple[str, str], fold: int = -1) -> Codebook:
        """Return the codebook that made the encodings of a pair, by their footer.

        Args:
            fold: whose encodings, see `encodings_for`.

        Raises:
            ConfigError: it is not there any more.
        """
        variant, encodings = self.config.variant(pair[0]), self.encodings_for(pair, fold)
        if variant.base == EXTERNAL:
            raise ConfigError(
                f"encode.external: the vectors of {pair[0]} were given for the videos of the run; "
                "a new video has none, so choose another encoder, or another result"
            )
        fitted = self._footer(encodings.folder, "video_fisher.codebook")
        book = Codebook.of(variant, encodings.stream, encodings.fold, fitted)
        if not self.store.exists(f"{book.folder}/{CODEBOOK}"):
            raise ConfigError(
                f"{self.store.uri(book.folder)}: expected the codebook of {pair[0]} on {pair[1]}, "
                "found none; a new file cannot be encoded without it, so run the job again with "
                "step fit"
            )
        return book

    @property
    def weights(self) -> str:
        """Return the file of the weights that DESCRIPTORS were made with."""
        return weights_file(self.weights_identity)

    @property
    def weights_identity(self) -> str:
        """Return the identity of those weights, as in the footers."""
        return self._footer(self.tables["descriptors"], "video_fisher.weights")

    @property
    def projection(self) -> str:
        """Return the file of the projection that DESCRIPTORS were made with, where there is one."""
        return f"projections/{self.tables['descriptors'].rpartition('/')[2]}.safetensors"

    def _footer(self, folder: str, entry: str) -> str:
        """Return an entry of the footers of a table's files, which are equal."""
        for name in self.store.files(folder)[:1]:
            if value := self.store.footer(name).get(entry):
                return value
        raise ConfigError(
            f"{self.store.uri(folder)}: expected files with {entry} in their footer, found "
            "none; run the job again"
        )
