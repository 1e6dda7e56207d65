"""Folders of a run, each named by a digest of what produced its content.

A changed setting never mixes with old output, and recomputes only what depends on it:

    plan.json   run.json   views.sql   retries.json   left_out.json   weights/
    videos/<digest>/   segments/<digest>/   descriptors/<digest>/   failures/<digest>/
    samples/<stream>/<digest>/   codebooks/<encoder>-<stream>/<digest>/
    encodings/<encoder>-<stream>/<digest>/   attention/...   classifiers/...   scores/...
    fusions/...   metrics/<digest>/   models/<digest>/   split_metrics/   report/index.html
    runs/<digest>.json   report/<digest>/index.html      of each configuration (reading/kept.py)
    projections/<digest>.safetensors   information/<encoder>-<stream>/<digest>.safetensors
    clips/<digest>/   networks/<network>-<stream>/<digest>/   clip_scores/...   cams/...
    scores_over_time/...   flows/...

More are made outside the steps: search/<encoder>-<stream>/<digest>/ (pipelines.search.index),
retrieval/<encoder>-<stream>/<digest>/ and retrieval_metrics/ (pipelines.search.retrieve),
frames/<digest>/ and finetuned/<digest>/ (pipelines.fit.finetune). train/ has the checkpoints of
what is being trained (pipelines.cluster.checkpoints).

A file marks/<folder>/_done...json is written last: it marks the folder as complete for the videos
of this run.
"""

from __future__ import annotations

import functools
import hashlib
import re

from encoders.fields import Changes, digested
from encoders.networks.settings import OF_RGB
from encoders.registry import ENCODERS
from pipelines.ledger.marks import Contents, damage
from pipelines.run.codebook import Codebook, FittedNetwork
from pipelines.run.combination import Combination, combinations, sums_kernels, version
from pipelines.run.inputs import LEFT_OUT, Inputs
from pipelines.run.makers import MAKERS, Result
from pipelines.run.steps import PAGE, STEPS
from pipelines.run.versions import FORMAT_VERSION, NUMBERS
from pipelines.settings.config import EXTERNAL, NetworkVariant, Variant, digest
from pipelines.settings.sections import Evaluate

OF_RESULTS = (
    "scores",
    "classifiers",
    "fusions",
    "clip_scores",
    "cams",
    "flows",
    "scores_over_time",
)
"""Tables with a folder for each result."""


class Folders(Inputs):
    """Names of all files and folders that a run makes, relative to its root."""

    # --- what is made -------------------------------------------------------------------------

    @functools.cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """Return the results that are fused of others and have SCORES of their own."""
        return self._combined(on_gram=not self._why_no_gram)

    @property
    def left_out(self) -> str:
        """Return the missing combinations of the rule `auto`, and the reason; "" where none is
        missing.
        """
        missing = [
            combination
            for combination in self._combined(on_gram=True)
            if combination not in self.combinations
        ]
        if not missing:
            return ""
        names = ", ".join("-".join(combination.pair) for combination in missing)
        return f"{names}, without a Gram matrix: {self._why_no_gram}"

    def leave_out(self, reason: str) -> None:
        """Leave out combinations by the rule `auto` from now on, also when the run is resumed."""
        self.no_gram[self._singles_digest] = reason
        self.store.publish_json(LEFT_OUT, self.no_gram)
        self._forget("combinations", "results")

    def _combined(self, *, on_gram: bool) -> tuple[Combination, ...]:
        return combinations(self.pairs(), self.config.classify, on_gram=on_gram)

    def _forget(self, *names: str) -> None:
        """Forget cached properties, which are then computed again."""
        for name in names:
            self.__dict__.pop(name, None)

    @property
    def _why_no_gram(self) -> str:
        """Return the reason why there are no Gram matrices; empty while none is known."""
        if self.config.classify.form == "primal":
            return "classify.form says so"
        return self.no_gram.get(self._singles_digest, "") if self.no_gram else ""

    @functools.cached_property
    def results(self) -> dict[tuple[str, str], Result]:
        """Return {(encoder, stream): result} of all that publish SCORES: of each maker the single
        ones, then the fused.

        Raises:
            ValueError: two makers have results of one name.
        """
        every = [result for maker in MAKERS.values() for result in maker.results(self)]
        named = {result.pair: result for result in every}
        if len(named) != len(every):
            twice = sorted({"-".join(r.pair) for r in every if named[r.pair] is not r})
            raise ValueError(f"results: expected each name once, got two of {', '.join(twice)}")
        return named

    def classified(self) -> list[Result]:
        """Return the results of linear SVMs: every encoder on its streams, then their
        combinations.
        """
        singles = [
            Result(*pair, self._single_digest(*pair), tables=("classifiers",))
            for pair in self.pairs()
        ]
        made_by = {
            result.pair: f"{folder_name(*result.pair)}/{result.made_by}" for result in singles
        }
        fused = []
        for combination in self.combinations:
            parts = [made_by[part] for part in combination.parts]
            own_digest = digest(
                combination.stream, version(combination.stream), parts, self.config.run.seed
            )
            tables = (
                ("classifiers", "fusions") if sums_kernels(combination.stream) else ("fusions",)
            )
            fused.append(Result(*combination.pair, own_digest, combination.parts, tables))
        return [*singles, *fused]

    @functools.cached_property
    def networks(self) -> list[FittedNetwork]:
        """Return the networks that are trained, by name, stream and fold, as `jobs.doctor` lists
        them.
        """
        config = self.config
        variants = [config.network_variant(name) for name in sorted(config.network.networks)]
        return [
            FittedNetwork.of(
                variant,
                stream,
                fold,
                self._network_digest(variant, stream, fold),
                reads_maps=self.reads_maps(variant),
            )
            for variant in variants
            for stream in sorted(config.network.streams)
            for fold in self.folds
        ]

    @property
    def networks_see_pictures(self) -> bool:
        """Return whether CLIPS are needed."""
        return not all(network.reads_maps for network in self.networks)

    def networks_of(self, encoder: str, stream: str) -> list[FittedNetwork]:
        """Return the networks of a result, one for each fold."""
        return [n for n in self.networks if (n.encoder, n.stream) == (encoder, stream)]

    def scored_by_networks(self) -> list[Result]:
        """Return the results of networks, by name and stream."""
        network = self.config.network
        tested = (network.test_clips, network.test_views, network.pictures)
        return [
            Result(
                encoder,
                stream,
                digest(
                    [network.folder for network in self.networks_of(encoder, stream)],
                    self._videos_digest,
                    tested,
                    self.config.run.seed,
                    *([network.over_time] if "scores_over_time" in tables else []),
                ),
                tables=tables,
            )
            for encoder, stream, tables in dict.fromkeys(
                (n.encoder, n.stream, self._tables_of(n)) for n in self.networks
            )
        ]

    def _tables_of(self, network: FittedNetwork) -> tuple[str, ...]:
        """Return the tables of a network's result beside SCORES."""
        # Networks on full-length video join positions before the scores.
        is_full_length = network.settings.reads_maps
        cams = ("cams",) if network.stream == "rgb" and not is_full_length else ()
        over = ()
        if is_full_length and self.config.network.over_time != "none":
            over = ("scores_over_time",)
        flows = ("flows",) if network.settings.learns_flow else ()
        return ("clip_scores", *cams, *over, *flows)

    def scored(self) -> list[tuple[str, str]]:
        """Return (encoder, stream) of all results."""
        return list(self.results)

    @property
    def singles(self) -> list[tuple[str, str]]:
        """Return (encoder, stream) of the results that are not fused of others."""
        return [pair for pair, result in self.results.items() if not result.parts]

    @property
    def fused(self) -> list[Result]:
        """Return the results that are fused of others and have SCORES of their own."""
        return [result for result in self.results.values() if result.parts]

    @functools.cached_property
    def codebooks(self) -> list[Codebook]:
        """Return all codebooks, each once; one per fold where they use labels and there is more
        than one fold.
        """
        return list(
            dict.fromkeys(
                self._codebook(self.variants[name], stream, fold)
                for name, stream in self.pairs()
                for fold in self._codebook_folds(self.variants[name])
            )
        )

    @property
    def learning(self) -> list[Codebook]:
        """Return the codebooks that are fitted on descriptors."""
        return [book for book in self.fitted if ENCODERS[book.base].learns]

    @property
    def fitted(self) -> list[Codebook]:
        """Return the codebooks that step fit makes: all but those of vectors that were given."""
        return [book for book in self.codebooks if not book.is_external]

    def codebook(self, encoder: str, stream: str, fold: int) -> Codebook:
        """Return the codebook whose encodings the classifier of this fold may use."""
        variant = self.variants[encoder]
        folds = self._codebook_folds(variant)
        return self._codebook(variant, stream, fold if fold in folds else -1)

    def _codebook(self, variant: Variant, stream: str, fold: int) -> Codebook:
        made_by = self._codebook_digest(variant, stream, fold)
        return Codebook.of(variant, stream, fold, made_by)

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

    @property
    def projection(self) -> str:
        """Return the file of the projection of describe.pca_components; "" without one."""
        if not self.config.describe.pca_components:
            return ""
        return f"projections/{self._descriptors_digest}.safetensors"

    @property
    def projection_rows(self) -> str:
        """Return the folder of the rows that it is fitted on, until it is."""
        return f"projections/{self._descriptors_digest}"

    @property
    def information(self) -> list[str]:
        """Return the files of Fisher information of all frames."""
        return sorted({book.information for book in self.codebooks} - {""})

    def sample(self, stream: str) -> str:
        return f"samples/{stream}/{self._sample_digest(stream)}"

    def encodings(self, book: Codebook) -> str:
        settings = digested(book.settings, Changes.VECTORS)
        made_by = (book.encoder, book.digest, settings, self.config.encode.dtype)
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

    def clip_scores(self, encoder: str, stream: str) -> str:
        return f"clip_scores/{self._scores_folder(encoder, stream)}"

    def cams(self, encoder: str, stream: str) -> str:
        return f"cams/{self._scores_folder(encoder, stream)}"

    def scores_over_time(self, encoder: str, stream: str) -> str:
        return f"scores_over_time/{self._scores_folder(encoder, stream)}"

    def flows(self, encoder: str, stream: str) -> str:
        return f"flows/{self._scores_folder(encoder, stream)}"

    @property
    def clips(self) -> str:
        return f"clips/{self._clips_digest}"

    @property
    def clips_mark(self) -> str:
        return f"{self.clips}/_done-{self._videos_digest}.json"

    @property
    def metrics(self) -> str:
        return f"metrics/{self._metrics_digest}"

    @property
    def models(self) -> str:
        which = (self.config.classify.final, self.config.classify.keep_folds)
        return f"models/{digest(self._metrics_digest, which)}"

    report = PAGE

    def current(self, table: str) -> list[str]:
        """Return today's folders of a table, or of the codebooks, in the order of the run."""
        if table == "codebooks":
            return [book.folder for book in self.fitted]
        if table == "clips":
            return [self.clips] if self.networks_see_pictures else []
        if table == "networks":
            return [network.folder for network in self.networks]
        if table == "encodings":
            return [self.encodings(book) for book in self.codebooks]
        if table in OF_RESULTS:
            return [f"{table}/{self._scores_folder(*pair)}" for pair in self.scored()]
        for step in STEPS.values():
            if folder := step.folders(self).get(table):
                return [folder]
        return [getattr(self, table)]

    def tables(self) -> dict[str, str]:
        """Return {table, or table/encoder-stream: its folder}, for readers."""
        named = {
            "videos": self.videos,
            "segments": self.segments,
            "descriptors": self.descriptors,
            "failures": self.failures,
            "metrics": self.metrics,
        }
        for step in STEPS.values():
            named |= step.folders(self)
        for result in self.results.values():
            name = "-".join(result.pair)
            named[f"scores/{name}"] = self.scores(*result.pair)
            if "classifiers" in result.tables:
                named[f"solutions/{name}"] = self.classifiers(*result.pair)
            for table in ("fusions", "clip_scores", "cams", "flows", "scores_over_time"):
                if table in result.tables:
                    named[f"{table}/{name}"] = f"{table}/{self._scores_folder(*result.pair)}"
        if self.networks_see_pictures:
            named["clips"] = self.clips
        for network in self.networks:
            name = f"{network.encoder}-{network.stream}/fold-{network.fold}"
            named[f"networks/{name}"] = network.folder
        for book in self.codebooks:
            name = f"{book.encoder}-{book.stream}" + ("" if book.fold < 0 else f"/fold-{book.fold}")
            named[f"encodings/{name}"] = self.encodings(book)
            if self.writes_attention(book):
                named[f"attention/{name}"] = self.attention(book)
        return named

    def contents(self, step: str) -> dict[str, Contents]:
        """Return {mark of a step: what it is for}: the folders of its tables for one result, and
        files beside them.
        """
        named, declared = self.tables(), STEPS[step]
        tables = [table.name for table in declared.tables]
        contents = {}
        for mark in declared.marks(self.current):
            folder = mark.rpartition("/")[0]
            if declared.page.startswith(f"{folder}/"):
                contents[mark] = Contents((), (declared.page,))
                continue
            results = {key.partition("/")[2] for key, path in named.items() if path == folder}
            parts = ((*key.partition("/"), path) for key, path in named.items())
            found = [
                path for table, _, result, path in parts if table in tables and result in results
            ]
            contents[mark] = Contents(
                tuple(dict.fromkeys([folder, *found])), tuple(declared.beside(self))
            )
        return contents

    def older(self, table: str) -> list[str]:
        """Return folders of `table` that other inputs or settings made, of today's results."""
        current, parents = set(self.current(table)), [table]
        if table in OF_RESULTS:
            parents = [f"{table}/{folder_name(*pair)}" for pair in self.scored()]
        return [f for parent in parents for f in self.store.folders(parent) if f not in current]

    def output_dim(self, encoder: str, stream: str) -> int | None:
        """Return D of the encodings of a pair; None for a fusion."""
        if (encoder, stream) not in self.pairs():
            return None
        folder = self.encodings(self.codebook(encoder, stream, self.folds[0]))
        with self.store.open_parquet(self.store.files(folder)[0]) as file:
            return file.schema_arrow.field("vector").type.list_size

    # --- digests ------------------------------------------------------------------------------

    @functools.cached_property
    def _videos_digest(self) -> str:
        columns = ["video_id", "uri", "source", "labels", "group", "fold"]
        # Only where some are ignored: runs of before keep their digest.
        columns += ["ignored"] if "ignored" in self.manifest.column_names else []
        rows = zip(*(self.manifest[name].to_pylist() for name in columns), strict=True)
        sha = hashlib.sha256()
        for row in rows:
            sha.update(repr(row).encode())
        passes = (self.retries.passes,) if self.retries.passes else ()
        return digest(FORMAT_VERSION, sha.hexdigest(), digested(self.config.sampling), *passes)

    @functools.cached_property
    def _descriptors_digest(self) -> str:
        return digest(
            FORMAT_VERSION,
            digested(self.config.sampling),
            digested(self.config.picture),
            self.config.decode.decoder,
            digested(self.config.describe),
            self.weights.identity,
            *self._projected_by,
        )

    @property
    def _projected_by(self) -> tuple[object, ...]:
        """Return what a projection of descriptors depends on beside them."""
        if not self.config.describe.pca_components:
            return ()
        return self._sample_pool, self.config.run.seed

    @functools.cached_property
    def _described_digest(self) -> str:
        """Return the descriptors' digest with the segments that are not whole: a retry may change
        them.
        """
        # Damaged ones are no better than none: `describe` writes them anew, and this is forgotten.
        files = self.store.files(self.failures)
        if not files or any(damage(name, self.store.read(name)) for name in files):
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
        settings = (self.sampled_frames(stream), self.config.run.seed)
        if not self.config.fit.num_frames:
            settings = ("each video", *settings)
        return digest(self._described_digest, stream, settings, self._sample_pool)

    def _codebook_digest(self, variant: Variant, stream: str, fold: int) -> str:
        if variant.base == EXTERNAL:
            return digest(EXTERNAL, variant.name, self.external[variant.name])
        learns, ignored = ENCODERS[variant.base].learns, self.ignored(fold)
        return digest(
            variant.base,
            stream,
            digested(variant.settings),
            variant.normalisation,
            self._described_digest,
            (self._sample_digest(stream), self.config.fit.num_workers) if learns else None,
            sorted(self._labels(fold).items()) if variant.uses_labels else [],
            sorted(self.training_videos(fold)) if fold >= 0 else None,
            *([self._groups_digest] if variant.settings.holds_out else []),
            *([sorted(ignored.items())] if variant.uses_labels and ignored else []),
        )

    @functools.cached_property
    def _brought_back(self) -> list[tuple[str, str]]:
        """Return (video, source) of CLIPS that have failed and came back with `--retry-failed`:
        networks were trained without them."""
        files = self.store.files(self.clips) if self.retries.passes else []
        # Damaged ones are no better than none: `train` writes them anew, and this is forgotten.
        if not files or any(damage(name, self.store.read(name)) for name in files):
            return []
        rows = self.store.read_table(self.clips, ["video_id", "source", "status"]).to_pylist()
        failed, there = (
            {(row["video_id"], row["source"]) for row in rows if (row["status"] == "failed") == is_}
            for is_ in (True, False)
        )
        return sorted(failed & there)

    @functools.cached_property
    def _clips_digest(self) -> str:
        network = self.config.network
        moving = (network.flow_stack, network.flow_method, network.flow_bound_px)
        in_runs = self.config.run_frames > 1
        return digest(
            FORMAT_VERSION,
            (network.side_px, network.frames, self.config.decode.decoder),
            moving if "flow" in network.streams else None,
            *([self.config.run_frames, self.config.learns_flow and moving[1:]] if in_runs else []),
            *(["streamed"] if network.stream else []),
        )

    def _network_digest(self, variant: NetworkVariant, stream: str, fold: int) -> str:
        config, allowed = self.config, self.training_videos(fold)
        ignored = self.ignored(fold)
        back = [pair for pair in self._brought_back if pair[0] in allowed]
        of_maps, crop_px = self.reads_maps(variant), config.network.crop_px
        return digest(
            variant.base,
            stream,
            digested(variant.settings.on(stream)),
            ("maps", self._described_digest) if of_maps else self._clips_digest,
            sorted(pair for pair in self.sources.items() if pair[0] in allowed),
            sorted(self._labels(fold).items()),
            self.classes,
            (config.describe.backbone, self.weights.identity, self.network_node),
            (None if of_maps else crop_px, config.network.num_workers, config.run.seed),
            *(
                [self._network_digest(variant, "rgb", fold)]
                if stream == "flow" and variant.settings.flow_start == OF_RGB
                else []
            ),
            *([sorted(ignored.items())] if ignored else []),
            *([back] if back and not of_maps else []),
        )

    @property
    def _groups_digest(self) -> str:
        """Return a digest of the groups, which early stopping holds out; other codebooks do not
        depend on them.
        """
        return digest(sorted(self.groups.items()))

    def _scores_folder(self, encoder: str, stream: str) -> str:
        return f"{folder_name(encoder, stream)}/{self.results[encoder, stream].made_by}"

    @property
    def _singles_digest(self) -> str:
        pairs = self.pairs()
        return digest([f"{folder_name(*pair)}/{self._single_digest(*pair)}" for pair in pairs])

    def _single_digest(self, encoder: str, stream: str) -> str:
        books = [self.codebook(encoder, stream, fold) for fold in self.folds]
        folders = [self.encodings(book) for book in books]
        solved_by = digested(self.config.classify)
        compress = self.variants[encoder].compress
        # Inner folds that choose C, and a compression, are drawn.
        drawn = len(self.config.classify.c) > 1 or compress.kind != "none"
        seed = (self.config.run.seed,) if drawn else ()
        kept = ("kept",) if self.config.classify.keep_folds else ()
        return digest(folders, self._videos_digest, (solved_by, digested(compress), *seed), *kept)

    @property
    def _metrics_digest(self) -> str:
        scores = [self.scores(*pair) for pair in self.scored()]
        evaluate, seed = digested(self.config.evaluate), self.config.run.seed
        if self.config.evaluate.fusions == Evaluate().fusions:
            # METRICS of before had one more fusion by default: they count, and keep its name here.
            evaluate = (evaluate or {}) | {"fusions": (*self.config.evaluate.fusions, "chosen")}
        settings = (evaluate, self.config.recipe, seed, self.protocol)
        return digest(scores, settings, NUMBERS)


def weights_file(identity: str) -> str:
    """Return where a run keeps the weights of this identity."""
    return f"weights/{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"


def folder_name(encoder: str, stream: str) -> str:
    """Return a folder name for the results of an encoder or variant: readers take name=value for a
    partition.
    """
    return re.sub("[^0-9A-Za-z_.-]+", "_", f"{encoder}-{stream}")
