"""Inputs of a run: videos, labels, settings, and the results that they ask for."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from encoders.registry import ENCODERS
from encoders.stream_specs import is_local
from pipelines.run.codebook import Codebook
from pipelines.settings.config import EXTERNAL_STREAM, Config, NetworkVariant, Variant
from pipelines.storage.store import Store

if TYPE_CHECKING:  # whoever reads a run loads no torch
    from encoders.descriptors.streams import Stream

RETRIES = "retries.json"
"""The fields of `Retries`."""

LEFT_OUT = "left_out.json"
"""{digest of the single results: why their vectors had no Gram matrix}, so that a resumed run on
other nodes fuses what the first one did.
"""


class Weights(Protocol):
    """The backbone's weights, as a run needs them.

    `pipelines.describe.weights.Weights` is one; it loads torchvision.
    """

    @property
    def identity(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def is_random(self) -> bool: ...
    @property
    def is_at_hand(self) -> bool: ...
    @property
    def file(self) -> str: ...
    def load(self) -> bytes: ...
    def keep(self, store: Store) -> None: ...


@dataclass(frozen=True)
class Retries:
    """Passes of `--retry-failed`, and the decoder of one that is not finished ("": the usual
    one).
    """

    passes: int = 0
    decoder: str = ""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The videos, labels, settings and weights of a run.

    Attributes:
        manifest: video_id, uri, labels, group, fold, size_bytes, source; one row per video.
        split: the kind of split in force ("none" without labels), of num_folds folds.
        described: {column of DESCRIPTORS: what it holds}.
        retries: how often failed segments have been tried again.
        no_gram: what LEFT_OUT says.
        external: {name in encode.external: what tells its file as it is now}.
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
    external: dict[str, str] = field(default_factory=dict)

    @functools.cached_property
    def variants(self) -> dict[str, Variant]:
        """Return the entries of encode.encoders and encode.external by name."""
        return {name: self.config.variant(name) for name in self.config.encoder_names}

    def pairs(self) -> list[tuple[str, str]]:
        """Return (encoder, stream) of all single results, in the order of the report: every encoder
        on its streams, then vectors that were given.
        """
        encoded = [
            (name, stream.name)
            for stream in self.described.values()
            for name in self.config.encode.encoders
            if stream.kind in ENCODERS[self.variants[name].base].reads
        ]
        return encoded + [(name, EXTERNAL_STREAM) for name in self.config.external]

    @property
    def streams(self) -> list[str]:
        """Return the streams that are encoded: columns of DESCRIPTORS."""
        return list(dict.fromkeys(s for _, s in self.pairs() if s in self.described))

    @property
    def local_streams(self) -> list[str]:
        """Return the streams of local descriptors: only their scores are fused."""
        return [name for name in self.streams if is_local(name)]

    @property
    def protocol(self) -> str:
        """Return the split in words: kind, the column of the labels if one is named, folds."""
        named = f" by {self.config.split.name}" if self.config.split.name else ""
        return f"{self.split}{named}, {self.num_folds} fold{'' if self.num_folds == 1 else 's'}"

    @property
    def folds(self) -> list[int]:
        """Return the folds that classifiers are trained for."""
        return list(range(self.num_folds))

    def _codebook_folds(self, variant: Variant) -> list[int]:
        return self.folds if variant.uses_labels and self.num_folds > 1 else [-1]

    def writes_attention(self, book: Codebook) -> bool:
        """Return whether ATTENTION has rows of this codebook: it has attention, on the spatial
        pyramid of pictures of one size.
        """
        if book.is_external:
            return False
        kind, scales = self.described[book.stream].kind, self.config.picture.scales
        is_asked = self.config.encode.attention and not scales and not book.settings.is_scaled
        is_asked = is_asked and kind in ("appearance", "difference")
        return is_asked and ENCODERS[book.base].has_attention

    def training_videos(self, fold: int | None) -> frozenset[str]:
        """Return the videos that a codebook may see: those that train in `fold`; -1 or None: in any
        fold.

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
            uses = zip(every, use.to_pylist(), strict=True)
            self._training[left_out] = frozenset(video for video, trains in uses if trains)
        return self._training[left_out]

    @functools.cached_property
    def _video_ids(self) -> list[str]:
        """Return the ids of the videos; sets share these texts."""
        return self.manifest["video_id"].to_pylist()

    @functools.cached_property
    def _training(self) -> dict[int | None, frozenset[str]]:
        """Return the sets of training videos by the fold that is left out."""
        return {}

    @property
    def network_node(self) -> str:
        """Return the node whose maps networks classify."""
        return self.config.network.node or self.config.describe.nodes[0]

    def reads_maps(self, variant: NetworkVariant) -> bool:
        """Return whether a network reads maps of the frozen backbone instead of pictures."""
        return variant.settings.reads_maps and self.config.network.input == "maps"

    @functools.cached_property
    def sources(self) -> dict[str, str]:
        """Return {video: what tells its file as it is now}."""
        return dict(zip(self._video_ids, self.manifest["source"].to_pylist(), strict=True))

    def sampled_frames(self, stream: str) -> int:
        """Return the frames of a stream that codebooks are fitted on, where there are so many."""
        num_descriptors = self.described[stream].num_descriptors
        return self.config.fit.frames_for(len(self.training_videos(None)), num_descriptors)

    @functools.cached_property
    def classes(self) -> list[str]:
        """Return the labels of all videos, sorted: what networks score."""
        labels = pc.list_flatten(self.manifest["labels"])
        return sorted(pc.unique(labels).to_pylist())

    def labels_for(self, book: Codebook) -> dict[str, list[str]]:
        """Return {video: labels} of the codebook's videos where it uses labels, else nothing."""
        return self._labels(book.fold) if book.settings.uses_labels else {}

    @functools.cached_property
    def groups(self) -> dict[str, str]:
        """Return {video: its group} of the videos that have one."""
        pairs = zip(self._video_ids, self.manifest["group"].to_pylist(), strict=True)
        return {video: group for video, group in pairs if group is not None}

    def groups_for(self, book: Codebook) -> dict[str, str]:
        """Return `groups` where fitting the codebook holds some out, else nothing."""
        return self.groups if book.settings.holds_out else {}

    def ignored(self, fold: int) -> dict[str, list[str]]:
        """Return {video: classes that it does not count for} of the videos that train in a fold and
        have some."""
        if "ignored" not in self.manifest.column_names:
            return {}
        allowed = self.training_videos(fold)
        pairs = zip(self._video_ids, self.manifest["ignored"].to_pylist(), strict=True)
        return {video: names for video, names in pairs if names and video in allowed}

    def _labels(self, fold: int) -> dict[str, list[str]]:
        allowed = self.training_videos(fold)
        pairs = zip(self._video_ids, self.manifest["labels"].to_pylist(), strict=True)
        return {video: labels for video, labels in pairs if video in allowed}
