"""The backbone's weights: named before the cluster is used, fetched once, kept with the run."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from encoders.backbones import load as backbones_load
from encoders.backbones.clips import PREFIX, named
from encoders.tensor_files import metadata_of, sealed
from pipelines.errors import ConfigError
from pipelines.ledger.marks import damage
from pipelines.run.folders import weights_file
from pipelines.settings.sections import Describe
from pipelines.storage.filesystems import filesystem
from pipelines.storage.store import Store
from pipelines.storage.uris import refuse_credentials

IDENTITY = "weights"
"""Entry of a kept file's metadata with the identity of the weights."""


@dataclass(frozen=True)
class Weights:
    """Weights by identity; `load` fetches them.

    Attributes:
        identity: equal for equal weights: a published file's name, which holds its hash, or a
            sha256.
        description: for the report.
        is_random: seeded random filters instead of trained ones.
        clips: those of the network of clips, which stand beside in the same file.
    """

    settings: Describe
    identity: str
    description: str
    is_random: bool
    clips: "Weights | None" = None

    @property
    def is_at_hand(self) -> bool:
        """Return whether these are trained weights that `resolve` has read."""
        own = not self.is_random and not _is_published(self.settings.weights)
        return own and (self.clips is None or self.clips.is_at_hand)

    def _are(self, data: bytes) -> bool:
        """Return whether a file holds these weights; one of before seals says it by its name
        alone.
        """
        if damage(self.file, data):
            return False
        return metadata_of(data).get(IDENTITY, self.identity) == self.identity

    @property
    def file(self) -> str:
        """Return the file of a run that keeps the weights."""
        return weights_file(self.identity)

    def load(self) -> bytes:
        """Return safetensors bytes, checked against the network.

        Raises:
            ConfigError: they cannot be had, or do not fit the network.
        """
        source, network = self.settings.weights, self.settings.backbone
        try:
            if self.is_random:
                data = backbones_load.random_filters(network, _seed(source))
            elif _is_published(source):
                data = backbones_load.load_published(network, source)
            else:
                data = backbones_load.load_file(_read(source), source)
            backbones_load.load_model(network, data)
            if self.clips:
                data = backbones_load.with_clips(data, self.clips.load())
        except backbones_load.WeightsError as error:
            raise ConfigError(str(error)) from error
        return data

    def keep(self, store: Store) -> None:
        """Put the weights into the run, unless they are there, and drop them here.

        Those that are there are trusted by what is in them, not by their name alone.
        """
        if not (store.exists(self.file) and self._are(store.read(self.file))):
            store.publish(self.file, sealed(self.load(), **{IDENTITY: self.identity}))
        _read.cache_clear()


class _OfClips(Weights):
    """Weights of a network of clips, whose messages name their own settings."""

    def load(self) -> bytes:
        with about_clips():
            return super().load()


@contextmanager
def about_clips() -> Iterator[None]:
    """Name the settings of the network of clips in messages about a network."""
    try:
        yield
    except (ConfigError, backbones_load.WeightsError) as error:
        text = str(error).replace("describe.weights", "describe.clip_weights")
        text = text.replace("describe.backbone", "describe.clip_backbone").replace(PREFIX, "")
        raise ConfigError(text.replace("describe.nodes", "describe.streams: clip")) from error


def resolve(settings: Describe) -> Weights:
    """Return the weights that the settings name, with those of a network of clips where there are
    streams of clips.

    Names and files are checked, nothing is downloaded.

    Raises:
        ConfigError: an unknown network, node or weights, or a file that cannot be read.
    """
    own = _resolve(settings)
    if not settings.clips:
        return own
    nodes = {node for spec in settings.clips for node in spec.nodes}
    with about_clips():
        of_clips = dataclasses.replace(
            settings,
            backbone=f"{PREFIX}{settings.clip_backbone}",
            weights=settings.clip_weights,
            nodes=named(settings.clip_backbone, (*sorted(nodes),)),
            streams=("appearance",),
        )
        clips = _OfClips(**vars(_resolve(of_clips)))
    return dataclasses.replace(
        own,
        identity=f"{own.identity} with {settings.clip_backbone} {clips.identity}",
        description=f"{own.description}; clips: {settings.clip_backbone} {clips.description}",
        clips=clips,
    )


def _resolve(settings: Describe) -> Weights:
    source, network = settings.weights, settings.backbone
    try:
        backbones_load.resolve_nodes(network, settings.used_nodes)
        if source.startswith("random:"):
            identity = f"random {network} {_seed(source)}"
            return Weights(settings, identity, f"random filters, seed {_seed(source)}", True)
        if _is_published(source):
            identity = backbones_load.published(network, source)
            return Weights(settings, identity, f"{network} {source} ({identity})", False)
    except backbones_load.WeightsError as error:
        raise ConfigError(str(error)) from error
    sha = hashlib.sha256(_read(source)).hexdigest()
    return Weights(settings, sha, f"{source.rpartition('/')[2]} (sha256 {sha[:12]})", False)


def _is_published(source: str) -> bool:
    return "/" not in source and "." not in source


def _seed(source: str) -> int:
    text = source.removeprefix("random:")
    if not text.isdigit():
        raise ConfigError(
            f"describe.weights: expected random:SEED with a whole number, got {source!r}"
        )
    return int(text)


@functools.lru_cache(maxsize=2)
def _read(source: str) -> bytes:
    refuse_credentials("describe.weights", source)
    try:
        fs, path = filesystem(source)
        return cast(bytes, fs.cat_file(path))
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"describe.weights: cannot read {source!r} ({type(error).__name__}: {error}); expected "
            "a file or URI of a state dict, or the name of published weights"
        ) from error
