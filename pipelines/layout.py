"""A run: its inputs, its configuration, and where everything it makes is.

Outputs live in a folder named by the digest of what produced them, so a changed setting never mixes with
old output and recomputes only what depends on it:

    plan.json   run.json   retries.json   left_out.json   weights/
    videos/<digest>/   segments/<digest>/   descriptors/<digest>/   failures/<digest>/
    samples/<stream>/<digest>/   codebooks/<encoder>-<stream>/<digest>/
    encodings/<encoder>-<stream>/<digest>/   attention/...   classifiers/...   scores/...   fusions/...
    metrics/<digest>/   split_metrics/   report/index.html

Three more are made outside the steps: search/<encoder>-<stream>/<digest>/ (pipelines.search_index), frames/<digest>/ and
finetuned/<digest>/ (pipelines.finetune). train/ has the checkpoints of what is being trained (pipelines.checkpoints).

A file `_done...json` is written last: it marks a folder as complete for the videos of this run.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from encoders.descriptors import Stream
from encoders.registry import ENCODERS
from encoders.stream_specs import is_local
from pipelines.codebook import Codebook
from pipelines.combination import Combination, combinations, sums_kernels, version
from pipelines.config import Config, Variant, digest
from pipelines.ledger import Account, Spent
from pipelines.revision import FORMAT_VERSION, NUMBERS, code_revision
from pipelines.storage import DONE, Store

if TYPE_CHECKING:  # loads torchvision, which the tasks that import this do not need
    from pipelines.weights import Weights

NEED_LABELS = ("classify", "evaluate")

RETRIES = "retries.json"
"""The fields of `Retries`."""

LEFT_OUT = "left_out.json"
"""{digest of the single results: why their vectors had no Gram matrix}, so that a resumed run on other nodes fuses what the
first one did."""


@dataclass(frozen=True)
class Retries:
    """How many times `--retry-failed` was asked for, and the decoder of a pass that is not finished ("": the usual one)."""

    passes: int = 0
    decoder: str = ""


@dataclass(frozen=True, eq=False)
class Job:
    """Everything a run is made from.

    Frozen except for what only the run itself finds out, see `leave_out` and `finish`.

    Attributes:
        manifest: video_id, uri, labels, group, fold, size_bytes, source; one row per video.
        split: the kind of split in force ("none" without labels), of num_folds folds.
        described: {column of DESCRIPTORS: what it holds}.
        retries: how often failed segments have been tried again.
        no_gram: what LEFT_OUT says.
    """

    store: Store
    config: Config
    manifest: pa.Table
    split: str
    num_folds: int
    weights: Weights
    described: dict[str, Stream]
    retries: Retries = Retries()
    no_gram: dict[str, str] = field(default_factory=dict)

    # --- what is made -------------------------------------------------------------------------

    @functools.cached_property
    def variants(self) -> dict[str, Variant]:
        """The entries of encode.encoders by name."""
        return {name: self.config.variant(name) for name in self.config.encode.encoders}

    def pairs(self) -> list[tuple[str, str]]:
        """(encoder, stream) of all single results, in the order of the report: every encoder on the streams that it reads."""
        return [
            (variant.name, stream.name)
            for stream in self.described.values()
            for variant in self.variants.values()
            if stream.kind in ENCODERS[variant.base].reads
        ]

    @functools.cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """The results that are fused of others and have SCORES of their own."""
        return self._combined(on_gram=not self._why_no_gram)

    @property
    def left_out(self) -> str:
        """Which combinations of the rule `auto` there are not, and why; "" where none is missing."""
        missing = [one for one in self._combined(on_gram=True) if one not in self.combinations]
        if not missing:
            return ""
        names = ", ".join("-".join(one.pair) for one in missing)
        return f"{names}, without a Gram matrix: {self._why_no_gram}"

    def leave_out(self, reason: str) -> None:
        """From now on there are no combinations by the rule `auto`, also when the run is resumed."""
        self.no_gram[self._singles_digest] = reason
        self.store.publish_json(LEFT_OUT, self.no_gram)
        self._forget("combinations")

    def _combined(self, *, on_gram: bool) -> tuple[Combination, ...]:
        return combinations(self.pairs(), self.config.classify, on_gram=on_gram)

    def _forget(self, *names: str) -> None:
        """Cached properties are computed again when they are asked for next."""
        for name in names:
            self.__dict__.pop(name, None)

    @property
    def _why_no_gram(self) -> str:
        """Empty while nothing is known that keeps results from having Gram matrices."""
        if self.config.classify.form == "primal":
            return "classify.form says so"
        return self.no_gram.get(self._singles_digest, "") if self.no_gram else ""

    def scored(self) -> list[tuple[str, str]]:
        """(encoder, stream) of all results with SCORES: the single ones, then the combinations."""
        return [*self.pairs(), *(combination.pair for combination in self.combinations)]

    @property
    def streams(self) -> list[str]:
        """The streams that are encoded: columns of DESCRIPTORS."""
        return list(dict.fromkeys(stream for _, stream in self.pairs()))

    @property
    def local_streams(self) -> list[str]:
        """The streams of local descriptors: only their scores are fused."""
        return [name for name in self.streams if is_local(name)]

    @property
    def protocol(self) -> str:
        """How videos are split, in words: kind, the column of the labels if one is named, folds."""
        named = f" by {self.config.split.name}" if self.config.split.name else ""
        return f"{self.split}{named}, {self.num_folds} fold{'' if self.num_folds == 1 else 's'}"

    @property
    def folds(self) -> list[int]:
        """The folds that classifiers are trained for."""
        return list(range(self.num_folds))

    @functools.cached_property
    def codebooks(self) -> list[Codebook]:
        """All codebooks, each once; one per fold where they use labels and there is more than one fold."""
        return list(
            dict.fromkeys(
                self._codebook(self.variants[name], stream, fold)
                for name, stream in self.pairs()
                for fold in self._codebook_folds(self.variants[name])
            )
        )

    @property
    def learning(self) -> list[Codebook]:
        """The codebooks that are fitted on descriptors."""
        return [book for book in self.codebooks if ENCODERS[book.base].learns]

    def codebook(self, encoder: str, stream: str, fold: int) -> Codebook:
        """The codebook whose encodings the classifier of this fold may use."""
        variant = self.variants[encoder]
        folds = self._codebook_folds(variant)
        return self._codebook(variant, stream, fold if fold in folds else -1)

    def _codebook(self, variant: Variant, stream: str, fold: int) -> Codebook:
        fitted = ENCODERS[variant.base].fit_settings(variant.settings)
        made_by = self._codebook_digest(variant, fitted, stream, fold)
        return Codebook.of(variant, stream, fold, made_by)

    def _codebook_folds(self, variant: Variant) -> list[int]:
        return self.folds if variant.uses_labels and self.num_folds > 1 else [-1]

    def writes_attention(self, book: Codebook) -> bool:
        """Whether ATTENTION has rows of this codebook: it can say where it looks, and on a pyramid."""
        kind = self.described[book.stream].kind
        wanted = self.config.encode.attention and kind in ("appearance", "difference")
        return wanted and ENCODERS[book.base].has_attention

    def training_videos(self, fold: int | None) -> frozenset[str]:
        """Videos that a codebook may see: those that train in `fold`; -1 or None: in any fold.

        Without labels all videos train.
        """
        left_out = fold if fold is not None and fold >= 0 else (0 if self.num_folds == 1 else None)
        if left_out not in self._training:
            every, manifest = self._video_ids, self.manifest
            use = pa.repeat(True, len(every))
            if self.num_folds:
                use = pc.greater(pc.list_value_length(manifest["labels"]), 0)
            if self.num_folds and left_out is not None:
                use = pc.and_(use, pc.not_equal(manifest["fold"], left_out))
            kept = zip(every, use.to_pylist(), strict=True)
            self._training[left_out] = frozenset(video for video, trains in kept if trains)
        return self._training[left_out]

    @functools.cached_property
    def _video_ids(self) -> list[str]:
        """Each text once, however many sets it is in."""
        return self.manifest["video_id"].to_pylist()

    @functools.cached_property
    def _training(self) -> dict[int | None, frozenset[str]]:
        """By the fold that is left out."""
        return {}

    def labels_for(self, book: Codebook) -> dict[str, list[str]]:
        """{video: labels} of the codebook's videos where it uses labels, else nothing."""
        return self._labels(book.fold) if getattr(book.settings, "uses_labels", False) else {}

    @functools.cached_property
    def groups(self) -> dict[str, str]:
        """{video: its group}, of videos that have one."""
        pairs = zip(self._video_ids, self.manifest["group"].to_pylist(), strict=True)
        return {video: group for video, group in pairs if group is not None}

    def groups_for(self, book: Codebook) -> dict[str, str]:
        """`groups` where fitting the codebook holds some out, else nothing."""
        return self.groups if holds_out(book.settings) else {}

    def _labels(self, fold: int) -> dict[str, list[str]]:
        allowed = self.training_videos(fold)
        pairs = zip(self._video_ids, self.manifest["labels"].to_pylist(), strict=True)
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
        made_by = (book.encoder, book.digest, book.settings, self.config.encode.dtype)
        pyramid = () if book.temporal_pyramid == (1,) else (book.temporal_pyramid,)
        return f"encodings/{book.name}/{digest(*made_by, *pyramid)}"

    def attention(self, book: Codebook) -> str:
        return f"attention/{book.name}/{digest(book.encoder, book.digest)}"

    def encodings_mark(self, book: Codebook) -> str:
        return f"{self.encodings(book)}/_done-{self._videos_digest}.json"

    def scores(self, encoder: str, stream: str) -> str:
        return f"scores/{self._scores_folder(encoder, stream)}"

    def classifiers(self, encoder: str, stream: str) -> str:
        return f"classifiers/{self._scores_folder(encoder, stream)}"

    def fusions(self, encoder: str, stream: str) -> str:
        return f"fusions/{self._scores_folder(encoder, stream)}"

    @property
    def metrics(self) -> str:
        return f"metrics/{self._metrics_digest}"

    report = "report/index.html"

    def marks(self, step: str) -> list[str]:
        """The files that exist when a step is complete."""
        videos = self._videos_digest
        return {
            "index": [f"{self.videos}/{DONE}"],
            "describe": [f"{self.descriptors}/_done-{videos}.json"],
            "fit": [f"{b.folder}/{DONE}" for b in self.codebooks],
            "encode": [self.encodings_mark(b) for b in self.codebooks],
            "classify": [f"{self.scores(*pair)}/{DONE}" for pair in self.scored()],
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
        passes = (self.retries.passes,) if self.retries.passes else ()
        return digest(FORMAT_VERSION, sha.hexdigest(), self.config.sampling, *passes)

    @functools.cached_property
    def _descriptors_digest(self) -> str:
        settings = dataclasses.asdict(self.config.describe)
        how = ("weights", "batch_frames", "batch_segments", "compile")
        made_by = {name: value for name, value in settings.items() if name not in how}
        return digest(
            FORMAT_VERSION,
            self.config.sampling,
            self.config.picture,
            self.config.decode.decoder,
            made_by,
            self.weights.identity,
        )

    @functools.cached_property
    def _described_digest(self) -> str:
        """As the descriptors', and which of today's segments are not whole: a retry may change that."""
        if not self.store.files(self.failures):
            return self._descriptors_digest
        columns = ["segment_id", "source", "status", "num_missing"]
        rows = self.store.read_table(self.failures, columns).to_pylist()
        bad = sorted(tuple(row.values()) for row in rows)
        return digest(self._descriptors_digest, bad) if bad else self._descriptors_digest

    @functools.cached_property
    def _sample_pool(self) -> str:
        allowed = self.training_videos(None)
        pairs = zip(self._video_ids, self.manifest["source"].to_pylist(), strict=True)
        return digest(sorted(pair for pair in pairs if pair[0] in allowed))

    def _sample_digest(self, stream: str) -> str:
        settings = (self.config.fit.num_frames, self.config.run.seed)
        return digest(self._described_digest, stream, settings, self._sample_pool)

    def _codebook_digest(self, variant: Variant, settings: object, stream: str, fold: int) -> str:
        learns = ENCODERS[variant.base].learns
        return digest(
            variant.base,
            stream,
            settings,
            variant.normalisation,
            self._described_digest,
            (self._sample_digest(stream), self.config.fit.num_workers) if learns else None,
            sorted(self._labels(fold).items()) if variant.uses_labels else [],
            sorted(self.training_videos(fold)) if fold >= 0 else None,
            *self._groups_digest(variant.settings),
        )

    def _groups_digest(self, settings: object) -> list[str]:
        """Early stopping holds out whole groups; other codebooks do not depend on them."""
        return [digest(sorted(self.groups.items()))] if holds_out(settings) else []

    def _scores_folder(self, encoder: str, stream: str) -> str:
        for combination in self.combinations:
            if combination.pair == (encoder, stream):
                parts = [self._scores_folder(*part) for part in combination.parts]
                made_by = digest(stream, version(stream), parts, self.config.run.seed)
                return f"{folder_name(encoder, stream)}/{made_by}"
        return self._single_folder(encoder, stream)

    @property
    def _singles_digest(self) -> str:
        return digest([self._single_folder(*pair) for pair in self.pairs()])

    def _single_folder(self, encoder: str, stream: str) -> str:
        books = [self.codebook(encoder, stream, fold) for fold in self.folds]
        folders = [self.encodings(book) for book in books]
        classify = dataclasses.asdict(self.config.classify)
        solved_by = {n: v for n, v in classify.items() if n not in ("fusions", "fusion_groups")}
        compress = self.variants[encoder].compress
        # Inner folds that choose C, and a compression, are drawn.
        drawn = len(self.config.classify.c) > 1 or compress.kind != "none"
        seed = (self.config.run.seed,) if drawn else ()
        made_by = digest(folders, self._videos_digest, (solved_by, compress, *seed))
        return f"{folder_name(encoder, stream)}/{made_by}"

    @property
    def _metrics_digest(self) -> str:
        scores = [self.scores(*pair) for pair in self.scored()]
        settings = (self.config.evaluate, self.config.recipe, self.config.run.seed, self.protocol)
        return digest(scores, settings, NUMBERS)

    # --- bookkeeping --------------------------------------------------------------------------

    def older(self, table: str) -> list[str]:
        """Folders of `table` that other inputs or settings made."""
        current = {self.videos, self.segments, self.failures, self.metrics}
        for pair in self.scored():
            current |= {self.scores(*pair), self.classifiers(*pair), self.fusions(*pair)}
        return [f for f in self.store.folders(table) if f not in current]

    def finish(self, step: str) -> None:
        """Marks a step as complete, and removes what it replaces where that is cheap to make again."""
        if step == "describe":
            # What follows is named by which segments are whole.
            self._forget("_described_digest", "codebooks", "combinations")
            if self.retries.decoder:
                # Before the mark: a killed run comes here again.
                passed = dataclasses.replace(self.retries, decoder="")
                self.store.publish_json(RETRIES, dataclasses.asdict(passed))
        for mark in self.marks(step):
            if not self.store.exists(mark):
                self.store.publish_json(mark, self.footer(step))
        replaced = {
            "index": ["videos", "segments"],
            "describe": ["failures"],
            "classify": [
                f"{kind}/{folder_name(*pair)}"
                for kind in ("classifiers", "scores", "fusions")
                for pair in self.scored()
            ],
            "evaluate": ["metrics"],
        }
        for table in replaced.get(step, []):
            for folder in self.older(table):
                if self._split_of(folder) in (None, self.config.split.name):
                    self.store.delete_folder(folder)

    def unmark(self, folder: str) -> None:
        """Says of a folder that it is complete for nobody, before rows are published there.

        Their files are named by ids alone: those of a file that has changed may replace rows that other inputs count on.
        """
        for mark in self.store.marks(folder):
            self.store.delete(mark)

    def _split_of(self, folder: str) -> str | None:
        """The named split that a folder was made for, "" where it has no name; None where the folder does not say.

        Results of one named split stay while another one is run.
        """
        # Classifiers have no footer; their scores are beside them.
        for name in self.store.files(folder.replace("classifiers/", "scores/", 1))[:1]:
            return self.store.footer(name).get("video_fisher.split", "")
        return None

    def footer(self, step: str) -> dict[str, str]:
        """Provenance for the footer of every file of a step."""
        config = self.config
        return {
            "video_fisher.format": FORMAT_VERSION,
            "video_fisher.step": step,
            "video_fisher.recipe": config.recipe,
            "video_fisher.config": digest(config),
            "video_fisher.weights": self.weights.identity,
            "video_fisher.backbone": f"{config.describe.backbone} {','.join(config.describe.used_nodes)}",
            "video_fisher.decoder": config.decode.decoder,
            "video_fisher.sampling": repr(config.sampling),
            "video_fisher.split": config.split.name,
            "video_fisher.code": code_revision(),
        }

    def record(
        self,
        step: str,
        account: Account,
        spent: Spent,
        seconds: float,
        resources: dict[str, float],
    ) -> None:
        """Writes what a step did into run.json, with the whole configuration and today's folders.

        Args:
            spent: where the time of its workers went.
            resources: of the cluster when the step ended, as Ray names them.
        """
        record = self._record()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record["steps"][step] = {
            "digest": self.digest(step),
            **dataclasses.asdict(account),
            "seconds": round(seconds, 3),
            "cpus": resources.get("CPU", 0.0),
            "gpus": resources.get("GPU", 0.0),
            "finished": now,
            **spent.record(seconds),
        }
        self.store.publish_json("run.json", record | self._description())

    def describe_again(self) -> None:
        """Makes run.json that of this configuration, after another one was run in between."""
        self.store.publish_json("run.json", self._record() | self._description())

    @property
    def is_described(self) -> bool:
        """Whether run.json has this configuration, and today's folders."""
        record, mine = self._record(), json.loads(json.dumps(self._description()))
        return all(record.get(name) == mine[name] for name in ("config", "tables"))

    @property
    def is_reported(self) -> bool:
        """Whether the report is of this run's METRICS: there is one page, of what was evaluated last."""
        step = self._record()["steps"].get("evaluate", {})
        return step.get("digest") == self.digest("evaluate")

    def _record(self) -> dict:
        return self.store.read_json("run.json") or {"steps": {}}

    def _description(self) -> dict:
        """What run.json says beside the steps."""
        return {
            "format": FORMAT_VERSION,
            "code": code_revision(),
            "config": self.config.to_json(),
            "split": {"kind": self.split, "num_folds": self.num_folds},
            "weights": self.weights.description,
            "streams": [dataclasses.asdict(stream) for stream in self.described.values()],
            "tables": self.tables(),
            "combinations": [dataclasses.asdict(one) for one in self.combinations],
        }

    def output_dim(self, encoder: str, stream: str) -> int | None:
        """D of the encodings of a pair; None for a fusion."""
        if (encoder, stream) not in self.pairs():
            return None
        folder = self.encodings(self.codebook(encoder, stream, self.folds[0]))
        with self.store.open_parquet(self.store.files(folder)[0]) as file:
            return file.schema_arrow.field("vector").type.list_size

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
            named[f"scores/{encoder}-{stream}"] = self.scores(encoder, stream)
            named[f"solutions/{encoder}-{stream}"] = self.classifiers(encoder, stream)
        for one in self.combinations:
            name = "-".join(one.pair)
            named[f"scores/{name}"] = self.scores(*one.pair)
            named[f"fusions/{name}"] = self.fusions(*one.pair)
            if sums_kernels(one.stream):
                named[f"solutions/{name}"] = self.classifiers(*one.pair)
        for book in self.codebooks:
            name = f"{book.encoder}-{book.stream}" + ("" if book.fold < 0 else f"/fold-{book.fold}")
            named[f"encodings/{name}"] = self.encodings(book)
            if self.writes_attention(book):
                named[f"attention/{name}"] = self.attention(book)
        return named


def holds_out(settings: object) -> bool:
    """Whether fitting with an encoder's settings holds groups of videos out."""
    return getattr(settings, "early_stopping_steps", 0) > 0


def folder_name(encoder: str, stream: str) -> str:
    """A folder for an encoder's or variant's results: readers take name=value for a partition."""
    return re.sub("[^0-9A-Za-z_.-]+", "_", f"{encoder}-{stream}")
