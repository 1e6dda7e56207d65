"""New videos as a job of their own, in a work folder: indexed, described and encoded by a run's
settings, weights and codebooks.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines import prepare
from pipelines.describe.stage import described_streams
from pipelines.errors import ConfigError
from pipelines.index.manifest import list_videos
from pipelines.networks.maps import MAPS
from pipelines.predict.model import Model
from pipelines.run.codebook import Codebook, FittedNetwork
from pipelines.run.folders import weights_file
from pipelines.run.inputs import RETRIES
from pipelines.run.job import Job
from pipelines.run.saved import SavedRun
from pipelines.settings.config import Config, digest
from pipelines.settings.sections import Classify, Evaluate, Manifest
from pipelines.storage.store import Store

STEPS = ("index", "describe", "encode")

_MAY_DIFFER = ("cluster.", "run.max_failed_fraction", "decode.timeout_s")
"""Settings that change no number."""


@dataclass(frozen=True)
class KeptWeights:
    """The weights that a run keeps."""

    source: Store
    identity: str
    description: str = "the weights of the run"
    is_random: bool = False
    is_at_hand: bool = True

    @property
    def file(self) -> str:
        """Return their file, in either store."""
        return weights_file(self.identity)

    def load(self) -> bytes:
        """Return the bytes of the file.

        Raises:
            ConfigError: it is gone.
        """
        try:
            return self.source.read(self.file)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self.source.uri(self.file)}: expected the weights of the run, found none; run "
                "the job again, which puts them there"
            ) from error

    def keep(self, store: Store) -> None:
        """Put the weights into another store."""
        if not store.exists(self.file):
            store.publish(self.file, self.load())


@dataclass(frozen=True, eq=False)
class NewVideos(Job):
    """A job of videos without labels, with codebooks of another run.

    Attributes:
        of_run: the folder of the run's DESCRIPTORS, whose projection is used.
    """

    books: tuple[Codebook, ...] = ()
    of_run: str = ""

    @functools.cached_property
    def _sample_pool(self) -> str:
        """Return what a projection was fitted on: that of the run."""
        return self.of_run

    @property
    def steps(self) -> tuple[str, ...]:
        """Return the steps that the model needs before it scores."""
        return STEPS if self.books else STEPS[:2] if self.described else STEPS[:1]

    @property
    def networks(self) -> list[FittedNetwork]:  # type: ignore[override]
        """Return no networks: nothing is trained here."""
        return []

    @property
    def codebooks(self) -> list[Codebook]:  # type: ignore[override]
        """Return the codebooks of the run."""
        return list(self.books)

    def pairs(self) -> list[tuple[str, str]]:
        """Return no results: nothing is trained here."""
        return []

    def predictions(self, model: Model) -> str:
        """Return the folder of PREDICTIONS by a model."""
        return f"predictions/{digest(self.videos, self.descriptors, model)}"


def new_videos(
    run: SavedRun, model: Model, videos: str, work: str, settings: Sequence[str]
) -> NewVideos:
    """Return the job of the videos, with the codebooks of the model in its folder.

    Raises:
        ConfigError: there are no such videos, the folder cannot be written to, or settings that
            would change the numbers.
    """
    if odd := [text for text in settings if not text.strip().startswith(_MAY_DIFFER)]:
        raise ConfigError(
            f"--set {odd[0]}: expected a setting that changes no number ("
            f"{', '.join(f'{name}*' if name.endswith('.') else name for name in _MAY_DIFFER)}); "
            "all others are those of the run"
        )
    config = _config(run.config, settings)
    inputs = prepare.Inputs(videos=videos, labels=None, out=work, config=config, steps=STEPS)
    has_boxes = config.picture.box == "crop"
    listed = list_videos(videos, out=work, media=config.manifest.media, with_boxes=has_boxes)
    manifest, split, num_folds = prepare.manifest_of(listed, None, inputs)
    store = prepare.open_store(work)
    books = tuple(dict.fromkeys(part.codebook for part in model.encoded))
    networks = [network for part in model.networks for network in part.networks]
    for folder in (made.folder for made in (*books, *networks)):
        for name in run.store.files(folder, ".safetensors"):
            if not store.exists(name):
                store.publish(name, run.store.read(name))
    described, used = described_streams(config), {book.stream for book in books}
    if any(network.reads_maps for network in networks):
        node = config.network.node or config.describe.nodes[0]
        used |= {n for n, of in described.items() if of.node == node and of.kind in MAPS}
    streams = {name: of for name, of in described.items() if name in used}
    job = NewVideos(
        store,
        config,
        manifest,
        split,
        num_folds,
        KeptWeights(run.store, run.weights_identity),
        streams,
        prepare.kept_retries(store, store.read_json(RETRIES) or {}),
        books=books,
        of_run=run.tables["descriptors"],
    )
    if job.projection and not store.exists(job.projection):
        store.publish(job.projection, run.store.read(run.projection))
    return job


def _config(config: Config, settings: Sequence[str]) -> Config:
    plain = dataclasses.replace(
        config,
        manifest=Manifest(media=config.manifest.media),
        encode=dataclasses.replace(config.encode, attention=False, external=()),
        # Nothing is fused where nothing is trained.
        classify=Classify(fusions=()),
        evaluate=Evaluate(),
        network=dataclasses.replace(config.network, over_time="none"),
    )
    return plain.with_settings(settings)
