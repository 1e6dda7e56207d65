"""Names and folders of codebooks and of trained networks, and the rows of the tables made with a
codebook.

No torch: write tasks need none.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.networks.settings import NetworkSettings
from encoders.settings import EncoderSettings, FvVaeSettings
from pipelines.settings.config import EXTERNAL, NetworkVariant, Variant
from pipelines.storage.columns import attention_type
from pipelines.storage.tables import ATTENTION, ENCODINGS, SAMPLES


class Fitted(Protocol):
    """What a Ray Train run makes for one fold: a codebook, or a network."""

    @property
    def encoder(self) -> str: ...
    @property
    def stream(self) -> str: ...
    @property
    def fold(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def folder(self) -> str: ...


@dataclass(frozen=True)
class FittedNetwork:
    """A network that is trained without a fold: its name in network.networks, its folder, and its
    settings on its stream.

    Attributes:
        base: the registry key.
        digest: of all that training depends on.
        reads_maps: of a frozen backbone, instead of pictures.
    """

    encoder: str
    base: str
    stream: str
    fold: int
    settings: NetworkSettings
    digest: str
    reads_maps: bool = False

    @classmethod
    def of(
        cls, variant: NetworkVariant, stream: str, fold: int, digest: str, *, reads_maps: bool
    ) -> Self:
        """Return the network of an entry of network.networks on a stream, without a fold."""
        settings = variant.settings.on(stream)
        return cls(variant.name, variant.base, stream, fold, settings, digest, reads_maps)

    @property
    def folder(self) -> str:
        return f"networks/{self.base}-{self.stream}/{self.digest}"

    @property
    def name(self) -> str:
        return f"{self.base}-{self.stream}"


@dataclass(frozen=True)
class Codebook:
    """A fitted encoder: the name of its encodings, its folder, and its settings.

    Attributes:
        encoder: its name in encode.encoders, without what concerns the classifier alone.
        base: the registry key.
        fold: the fold that it was fitted without; -1 where it was fitted once for all folds.
        settings: the encoder's section of the configuration, as its variant has it.
        digest: of what `fit` depends on. Codebooks that differ in nothing of it are one, in one
            folder.
    """

    encoder: str
    base: str
    stream: str
    fold: int
    settings: EncoderSettings
    digest: str
    temporal_pyramid: tuple[int, ...]
    normalisation: str

    @classmethod
    def of(cls, variant: Variant, stream: str, fold: int, digest: str) -> Self:
        """Return the codebook of an entry of encode.encoders on a stream."""
        return cls(
            encoder=variant.codebook,
            base=variant.base,
            stream=stream,
            fold=fold,
            settings=variant.settings,
            digest=digest,
            temporal_pyramid=variant.temporal_pyramid,
            normalisation=variant.normalisation,
        )

    @property
    def folder(self) -> str:
        return f"codebooks/{self.base}-{self.stream}/{self.digest}"

    @property
    def information(self) -> str:
        """Return the file of the Fisher information of all frames; "" where that of the sample is
        used, in the codebook's folder.
        """
        settings = self.settings
        if not isinstance(settings, FvVaeSettings) or settings.information_frames == "sample":
            return ""
        return f"information/{self.name}/{self.digest}.safetensors"

    @property
    def name(self) -> str:
        return f"{self.base}-{self.stream}"

    @property
    def is_external(self) -> bool:
        """Return whether it stands for vectors that were given, and is no codebook at all."""
        return self.base == EXTERNAL

    @property
    def column(self) -> str:
        """Return its column in a table of `EncodeVideos`."""
        return f"{self.encoder}/{self.digest}"


def sample_of(rows: pa.Table, stream: str) -> pa.Table:
    """Return the SAMPLES rows of one stream, from a table of `SampleFrames`."""
    # Chosen first: the other streams would be copied too.
    rows = rows.select([*SAMPLES.schema().names, stream])
    return rows.filter(pc.is_valid(rows[stream])).rename_columns({stream: "descriptors"})


def encodings_of(rows: pa.Table, book: Codebook) -> pa.Table:
    """Return the ENCODINGS rows of one codebook, from a table of `EncodeVideos`."""
    kind = rows.schema.field(book.column).type
    columns = _named(rows, book) | {"vector": rows[book.column]}
    return ENCODINGS.from_columns(columns, vector=kind)


def attention_of(rows: pa.Table, book: Codebook, num_cells: int) -> pa.Table:
    """Return the ATTENTION rows of one codebook, one per frame, from a table of `EncodeVideos`."""
    indices, times = (rows[f"{book.stream}/{name}"] for name in ("frame_indices", "timestamps_s"))
    lengths = [len(values) for values in indices]
    video = pa.array(np.repeat(np.arange(rows.num_rows), lengths))
    cells = pc.list_flatten(rows[f"attention/{book.column}"]).to_numpy().astype(np.float32)
    cells = cells.reshape(-1, num_cells)
    # Not the rows themselves: their vectors would be copied for each frame.
    shared = pa.table(_named(rows, book)).take(video)
    columns = dict(zip(shared.column_names, shared.columns, strict=True)) | {
        "frame_index": pc.list_flatten(indices).cast(pa.int64()),
        "timestamp_s": pc.list_flatten(times).cast(pa.float64()),
        "value": pa.array(cells.sum(1, dtype=np.float64).astype(np.float32)),
        "cells": pa.FixedSizeListArray.from_arrays(
            pa.array(cells.reshape(-1)), type=attention_type(num_cells)
        ),
    }
    return ATTENTION.from_columns(columns, cells=attention_type(num_cells))


def _named(rows: pa.Table, book: Codebook) -> dict[str, pa.ChunkedArray | pa.Array]:
    """Return the columns that both tables share."""
    count = rows.num_rows
    return {
        "video_id": rows["video_id"],
        "source": rows["source"],
        "num_descriptors": rows[f"{book.stream}/num_descriptors"],
        "encoder": pa.repeat(book.encoder, count),
        "stream": pa.repeat(book.stream, count),
        "fold": pa.repeat(pa.scalar(book.fold, pa.int32()), count),
    }
