"""A run: its inputs, its configuration, and where everything it makes is.

Outputs live in a folder named by the digest of what produced them, so a changed setting never mixes with
old output and recomputes only what depends on it:

    run.json   weights/   videos/<digest>/   segments/<digest>/   descriptors/<digest>/
    failures/<digest>/   samples/<stream>/<digest>/   codebooks/<encoder>-<stream>/<digest>/
    encodings/<encoder>-<stream>/<digest>/   classifiers/...   scores/...   metrics/<digest>/
    report/index.html

A file `_done...json` is written last: it marks a folder as complete for the videos of this run.
"""

import dataclasses
import datetime
import functools
import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines import __version__
from pipelines.config import Config, digest
from pipelines.descriptor_stages import Codebook
from pipelines.storage import DONE, Store
from pipelines.tables import FORMAT_VERSION
from pipelines.weights import Weights

STEPS = ("index", "describe", "fit", "encode", "classify", "evaluate")

NEED_LABELS = ("classify", "evaluate")


@dataclass(frozen=True, eq=False)
class Job:
    """Everything a run is made from.

    Attributes:
        manifest: video_id, uri, labels, group, fold, size_bytes, source; one row per video.
        split: the kind of split in force ("none" without labels), of num_folds folds.
        widths: {column of DESCRIPTORS: width of its descriptors}.
    """

    store: Store
    config: Config
    manifest: pa.Table
    split: str
    num_folds: int
    weights: Weights
    widths: dict[str, int]

    # --- what is made -------------------------------------------------------------------------

    @property
    def streams(self) -> list[str]:
        """The streams that are encoded: columns of DESCRIPTORS."""
        return list(self.config.describe.stream_columns)

    @property
    def folds(self) -> list[int]:
        """The folds that classifiers are trained for."""
        return list(range(self.num_folds))

    @functools.cached_property
    def codebooks(self) -> list[Codebook]:
        """All codebooks; one per fold where they use labels and there is more than one fold."""
        return [
            Codebook(encoder, stream, fold, self._codebook_digest(encoder, stream, fold))
            for stream in self.streams
            for encoder in self.config.encode.encoders
            for fold in self._codebook_folds(encoder)
        ]

    def codebook(self, encoder: str, stream: str, fold: int) -> Codebook:
        """The codebook whose encodings the classifier of this fold may use."""
        books = {b.fold: b for b in self.codebooks if (b.encoder, b.stream) == (encoder, stream)}
        return books.get(fold, books.get(-1))

    def _codebook_folds(self, encoder: str) -> list[int]:
        uses_labels = getattr(getattr(self.config, encoder, None), "uses_labels", False)
        return self.folds if uses_labels and self.num_folds > 1 else [-1]

    def training_videos(self, fold: int | None) -> frozenset[str]:
        """Videos that a codebook may see: those that train in `fold`; -1 or None: in any fold.

        Without labels all videos train.
        """
        rows = zip(
            self.manifest["video_id"].to_pylist(),
            self.manifest["labels"].to_pylist(),
            self.manifest["fold"].to_pylist(),
            strict=True,
        )
        if not self.num_folds:
            return frozenset(video for video, _, _ in rows)
        left_out = fold if fold is not None and fold >= 0 else (0 if self.num_folds == 1 else None)
        return frozenset(video for video, labels, tests in rows if labels and tests != left_out)

    def labels_for(self, book: Codebook) -> dict[str, list[str]]:
        """{video: labels} of the codebook's videos where it uses labels, else nothing."""
        if not getattr(getattr(self.config, book.encoder, None), "uses_labels", False):
            return {}
        allowed = self.training_videos(book.fold)
        pairs = zip(
            self.manifest["video_id"].to_pylist(), self.manifest["labels"].to_pylist(), strict=True
        )
        return {video: labels for video, labels in pairs if video in allowed}

    # --- where it is --------------------------------------------------------------------------

    @property
    def videos(self) -> str:
        return f"videos/{self._videos_digest}"

    @property
    def segments(self) -> str:
        return f"segments/{self._videos_digest}"

    @property
    def descriptors(self) -> str:
        return f"descriptors/{self._descriptors_digest}"

    @property
    def failures(self) -> str:
        return f"failures/{digest(self._videos_digest, self._descriptors_digest)}"

    def sample(self, stream: str) -> str:
        return f"samples/{stream}/{self._sample_digest(stream)}"

    def encodings(self, book: Codebook) -> str:
        return f"encodings/{book.name}/{digest(book.digest, self.config.encode.dtype)}"

    def encodings_mark(self, book: Codebook) -> str:
        return f"{self.encodings(book)}/_done-{self._videos_digest}.json"

    def scores(self, encoder: str, stream: str) -> str:
        return f"scores/{encoder}-{stream}/{self._scores_digest(encoder, stream)}"

    def classifiers(self, encoder: str, stream: str) -> str:
        return f"classifiers/{encoder}-{stream}/{self._scores_digest(encoder, stream)}"

    @property
    def metrics(self) -> str:
        return f"metrics/{self._metrics_digest}"

    report = "report/index.html"

    def pairs(self) -> list[tuple[str, str]]:
        """(encoder, stream) of all results, in the order of the report."""
        return [(e, s) for s in self.streams for e in self.config.encode.encoders]

    def marks(self, step: str) -> list[str]:
        """The files that exist when a step is complete."""
        videos = self._videos_digest
        return {
            "index": [f"{self.videos}/{DONE}"],
            "describe": [f"{self.descriptors}/_done-{videos}.json"],
            "fit": [f"{b.folder}/{DONE}" for b in self.codebooks],
            "encode": [self.encodings_mark(b) for b in self.codebooks],
            "classify": [f"{self.scores(*pair)}/{DONE}" for pair in self.pairs()],
            "evaluate": [f"{self.metrics}/{DONE}", f"report/_done-{self._metrics_digest}.json"],
        }[step]

    # --- digests ------------------------------------------------------------------------------

    def digest(self, step: str) -> str:
        """Twelve hex digits for what a step makes."""
        return digest(step, self.marks(step))

    @functools.cached_property
    def _videos_digest(self) -> str:
        columns = ["video_id", "uri", "source", "labels", "group", "fold"]
        rows = zip(*(self.manifest[name].to_pylist() for name in columns), strict=True)
        sha = hashlib.sha256()
        for row in rows:
            sha.update(repr(row).encode())
        return digest(FORMAT_VERSION, sha.hexdigest(), self.config.sampling)

    @functools.cached_property
    def _descriptors_digest(self) -> str:
        settings = dataclasses.asdict(self.config.describe)
        how = ("weights", "batch_frames", "batch_segments")
        made_by = {name: value for name, value in settings.items() if name not in how}
        return digest(
            FORMAT_VERSION,
            self.config.sampling,
            self.config.picture,
            self.config.decode.decoder,
            made_by,
            self.weights.identity,
        )

    @functools.cache  # noqa: B019 - a job lives as long as the process
    def _sample_digest(self, stream: str) -> str:
        allowed = self.training_videos(None)
        pairs = zip(
            self.manifest["video_id"].to_pylist(), self.manifest["source"].to_pylist(), strict=True
        )
        pool = sorted(pair for pair in pairs if pair[0] in allowed)
        settings = (self.config.fit.num_frames, self.config.run.seed)
        return digest(self._descriptors_digest, stream, settings, pool)

    def _codebook_digest(self, encoder: str, stream: str, fold: int) -> str:
        settings = getattr(self.config, encoder, None)
        learns = settings is not None
        book = Codebook(encoder, stream, fold, "")
        return digest(
            encoder,
            stream,
            settings,
            self.config.encode.normalisation,
            self._descriptors_digest,
            (self._sample_digest(stream), self.config.fit.num_workers) if learns else None,
            sorted(self.labels_for(book).items()),
            sorted(self.training_videos(fold)) if fold >= 0 else None,
        )

    def _scores_digest(self, encoder: str, stream: str) -> str:
        books = [self.codebook(encoder, stream, fold) for fold in self.folds]
        folders = [self.encodings(book) for book in books]
        return digest(folders, self._videos_digest, self.config.classify)

    @property
    def _metrics_digest(self) -> str:
        scores = [self.scores(*pair) for pair in self.pairs()]
        return digest(scores, self.config.evaluate, self.config.recipe)

    # --- bookkeeping --------------------------------------------------------------------------

    def older(self, table: str) -> list[str]:
        """Folders of `table` that other inputs or settings made."""
        current = {self.videos, self.segments, self.failures, self.metrics}
        current |= {self.scores(*pair) for pair in self.pairs()}
        current |= {self.classifiers(*pair) for pair in self.pairs()}
        return [f for f in self.store.folders(table) if f not in current]

    def finish(self, step: str) -> None:
        """Marks a step as complete, and removes what it replaces where that is cheap to make again."""
        for mark in self.marks(step):
            if not self.store.exists(mark):
                self.store.publish_json(mark, self.footer(step))
        replaced = {
            "index": ["videos", "segments"],
            "describe": ["failures"],
            "classify": [
                f"{kind}/{e}-{s}" for kind in ("scores", "classifiers") for e, s in self.pairs()
            ],
            "evaluate": ["metrics"],
        }
        for table in replaced.get(step, []):
            for folder in self.older(table):
                self.store.delete_folder(folder)

    def footer(self, step: str) -> dict[str, str]:
        """Provenance for the footer of every file of a step."""
        config = self.config
        return {
            "video_fisher.format": FORMAT_VERSION,
            "video_fisher.step": step,
            "video_fisher.recipe": config.recipe,
            "video_fisher.config": digest(config),
            "video_fisher.weights": self.weights.identity,
            "video_fisher.backbone": f"{config.describe.backbone} {','.join(config.describe.nodes)}",
            "video_fisher.decoder": config.decode.decoder,
            "video_fisher.sampling": repr(config.sampling),
            "video_fisher.code": code_revision(),
        }

    def record(self, step: str, rows: int, seconds: float) -> None:
        """Writes what a step did into run.json, with the whole configuration and today's folders."""
        record = self.store.read_json("run.json") or {"steps": {}}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record["steps"][step] = {
            "digest": self.digest(step),
            "rows": rows,
            "seconds": round(seconds, 3),
            "finished": now,
        }
        record |= {
            "format": FORMAT_VERSION,
            "code": code_revision(),
            "config": self.config.to_json(),
            "split": {"kind": self.split, "num_folds": self.num_folds},
            "weights": self.weights.description,
            "tables": self.tables(),
        }
        self.store.publish_json("run.json", record)

    def tables(self) -> dict[str, str]:
        """{table, or table/encoder-stream: its folder}, for readers."""
        named = {
            "videos": self.videos,
            "segments": self.segments,
            "descriptors": self.descriptors,
            "failures": self.failures,
            "metrics": self.metrics,
        }
        for encoder, stream in self.pairs():
            name = f"{encoder}-{stream}"
            named[f"scores/{name}"] = self.scores(encoder, stream)
            for book in self.codebooks:
                if book.name == name:
                    fold = "" if book.fold < 0 else f"/fold-{book.fold}"
                    named[f"encodings/{name}{fold}"] = self.encodings(book)
        return named


@functools.cache
def code_revision() -> str:
    """The version, and the git revision where this is a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} {found.stdout.strip()}"
