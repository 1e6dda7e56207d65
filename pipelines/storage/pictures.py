"""Pictures of a table as a file that is mapped into memory: there may be more than fit there. And
single ones as image files.
"""

import io
import tempfile

import numpy as np
from PIL import Image

from pipelines.storage.store import Store


def mapped(
    store: Store,
    folder: str,
    column: str,
    key: tuple[str, ...],
    first: dict[tuple[str, ...], int],
    shape: tuple[int, ...],
) -> np.ndarray:
    """Return uint8 pictures [f, ...] of some rows of a table, in a file without a name.

    Args:
        column: of the pictures' bytes. key: the columns that tell rows apart.
        first: {key of a wanted row: place of its first picture}.
        shape: [f, ...] of all pictures.
    """
    pictures = scratch(shape, np.uint8)
    for name in store.files(folder):
        with store.open_parquet(name) as table:
            for batch in table.iter_batches(8, columns=[*key, column]):
                for *own, value in zip(*(batch[name] for name in (*key, column)), strict=True):
                    place = first.get(tuple(part.as_py() for part in own))
                    if place is not None:
                        part = np.frombuffer(value.as_buffer(), np.uint8).reshape(-1, *shape[1:])
                        pictures[place : place + len(part)] = part
    return pictures


def scratch(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Return an empty array in a file without a name."""
    if not shape[0]:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def image_file(
    pixels: np.ndarray,
    *,
    kind: str = "JPEG",
    quality: int = 85,
    size_px: tuple[int, int] | None = None,
) -> bytes:
    """Return a picture, uint8 [h, w, 3], as a file.

    Args:
        kind: JPEG, or PNG, which loses nothing.
        size_px: width and height to resize it to.
    """
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if size_px:
        image = image.resize(size_px, Image.Resampling.LANCZOS)
    image.save(buffer, kind, quality=quality, optimize=True)
    return buffer.getvalue()
