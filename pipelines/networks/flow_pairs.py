"""Pairs of pictures with true optical flow, as public data sets have them in a folder.

Known are FlyingChairs and its kin (`NAME_flow.flo`, `-gt.flo` or `-flow_01.flo` beside `img1` and
`img2`, or `img0` and `img1`), Sintel (`flow/SCENE/frame_0001.flo`, pictures in `clean` or `final`)
and KITTI (`flow_occ/000000_10.png`, pictures in `image_2` or `colored_0`). A place whose truth is
not known is NaN.
"""

import io
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fsspec import AbstractFileSystem
from PIL import Image
from torchvision.io import decode_png
from torchvision.transforms.v2 import functional

from encoders.networks.end_point import scaled
from encoders.networks.fit import Pairs
from pipelines.errors import ConfigError
from pipelines.storage.filesystems import filesystem
from pipelines.storage.pictures import scratch

MAGIC = b"PIEH"
"""Begins a .flo file: the number 202021.25."""

UNKNOWN_PX = 1e9
"""In a .flo file larger displacements stand for unknown ones."""

KITTI_FOLDERS = ("flow_occ", "flow_noc")

_PICTURE = "ppm|png|jpg|jpeg"
_CHAIRS = re.compile(rf"^(.*?)[-_]img_?(\d)\.({_PICTURE})$")
_TRUTH = re.compile(r"^(.*?)[-_](gt|flow|flow_01)\.flo$")
_SINTEL = re.compile(r"^(.*)/flow/(.*/frame_)(\d+)\.flo$")
_KITTI = re.compile(rf"^(.*)/({'|'.join(KITTI_FOLDERS)})/(.*)_10\.png$")


class FlowFileError(ConfigError):
    """A file of a pair that cannot be read; the message is for the user."""


@dataclass(frozen=True)
class Pair:
    """Paths of two pictures and of the flow from the first to the second."""

    fs: AbstractFileSystem
    before: str
    after: str
    truth: str

    def pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """Return both pictures, RGB uint8 [h, w, 3].

        Raises:
            FlowFileError: a file that is no picture.
        """
        return self._picture(self.before), self._picture(self.after)

    def flow(self) -> np.ndarray:
        """Return the flow, float32 [h, w, 2].

        Raises:
            FlowFileError: a file that is not of its format.
        """
        read = read_flo if self.truth.endswith(".flo") else read_kitti
        return read(_bytes(self.fs, self.truth), self.truth)

    def checked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return both pictures and the flow, which have one size.

        Raises:
            FlowFileError: a file that cannot be read, or another size.
        """
        before, after = self.pictures()
        flow = self.flow()
        sizes = [array.shape[:2] for array in (before, after, flow)]
        if len(set(sizes)) > 1:
            raise FlowFileError(
                f"{self.truth}: expected pictures and flow of one size, got (height, width) "
                f"{sizes[0]} and {sizes[1]} of the pictures, {sizes[2]} of the flow"
            )
        return before, after, flow

    def _picture(self, path: str) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(_bytes(self.fs, path))) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, Image.DecompressionBombError) as error:
            raise FlowFileError(f"{path}: expected a picture, got {error}") from error


def _bytes(fs: AbstractFileSystem, path: str) -> bytes:
    try:
        data = fs.cat_file(path)
    except OSError as error:
        raise FlowFileError(f"{path}: expected a file that can be read, got {error}") from error
    assert isinstance(data, bytes)
    return data


def read_flo(data: bytes, name: str) -> np.ndarray:
    """Return float32 [h, w, 2] of a .flo file (Middlebury).

    Raises:
        FlowFileError: another format, or fewer values than its head says.
    """
    if data[:4] != MAGIC:
        raise FlowFileError(f"{name}: expected a .flo file, which begins PIEH, got {data[:4]!r}")
    width, height = (int(n) for n in np.frombuffer(data[4:12].ljust(8, b"\0"), "<i4"))
    size = 8 * width * height
    if min(width, height) < 1 or len(data) != 12 + size:
        raise FlowFileError(
            f"{name}: expected {width} x {height} flows, {12 + max(0, size)} bytes, got "
            f"{len(data)}; the file is cut off or damaged"
        )
    flow = np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)
    return np.where((np.abs(flow) < UNKNOWN_PX).all(2, keepdims=True), flow, np.float32("nan"))


def read_kitti(data: bytes, name: str) -> np.ndarray:
    """Return float32 [h, w, 2] of a KITTI file: a PNG of 16 bits, u, v, and whether it is known.

    Raises:
        FlowFileError: another format.
    """
    try:
        # Pillow knows no colours of 16 bits.
        pixels = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except (RuntimeError, ValueError) as error:
        raise FlowFileError(f"{name}: expected a PNG of flow, got {error}") from error
    if pixels.dtype != torch.uint16 or len(pixels) != 3:
        kind = f"{len(pixels)} of {8 * pixels.itemsize}"
        raise FlowFileError(f"{name}: expected a PNG of 3 channels of 16 bits, got {kind}")
    values = pixels.permute(1, 2, 0).numpy().astype(np.float32)
    flow = (values[..., :2] - 2**15) / 64
    return np.where(values[..., 2:] > 0, flow, np.float32("nan"))


def found(folder: str) -> list[Pair]:
    """Return the pairs below a folder or URI, by the names of their truth.

    Raises:
        ConfigError: there is none.
    """
    fs, path = filesystem(folder)
    try:
        names = set(fs.find(path))
    except OSError as error:
        raise ConfigError(f"{folder}: expected a folder of pairs, got {error}") from error
    pairs = [Pair(fs, *files) for files in _complete(names)]
    if not pairs:
        raise ConfigError(
            f"{folder}: expected pairs of pictures with .flo or KITTI .png truth (FlyingChairs, "
            f"Sintel or KITTI's names), got none among {len(names)} files"
        )
    return sorted(pairs, key=lambda pair: pair.truth)


def _complete(names: set[str]) -> Iterator[tuple[str, str, str]]:
    """Yield both pictures and the truth of what has all three."""
    pictures: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if match := _CHAIRS.match(name):
            pictures.setdefault(match[1], []).append((match[2], name))
    for truth in names:
        if match := _TRUTH.match(truth):
            own = [name for _, name in sorted(pictures.get(match[1], ()))]
            if len(own) == 2:
                yield own[0], own[1], truth
        for start, ends in _neighbours(truth):
            both = [start + end for end in ends]
            if names.issuperset(both):
                yield both[0], both[1], truth
                break


def _neighbours(truth: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield where the pictures of Sintel or KITTI may be: a start, and both ends."""
    if match := _SINTEL.match(truth):
        number = int(match[3])
        for kind in ("clean", "final"):
            start = posixpath.join(match[1], kind, match[2])
            yield start, (f"{number:04d}.png", f"{number + 1:04d}.png")
    if match := _KITTI.match(truth):
        for kind in ("image_2", "colored_0"):
            yield posixpath.join(match[1], kind, match[3]), ("_10.png", "_11.png")


def read_all(pairs: Sequence[Pair], side_px: int) -> Pairs | None:
    """Return pairs resized to squares, in files that are mapped into memory; flow is in px of the
    squares. None of no pairs.

    Raises:
        FlowFileError: a file that cannot be read.
    """
    if not pairs:
        return None
    frames = scratch((len(pairs), 2, side_px, side_px, 3), np.uint8)
    flows = scratch((len(pairs), side_px, side_px, 2), np.float16)
    for place, pair in enumerate(pairs):
        *pictures, flow = pair.checked()
        frames[place] = [square(picture, side_px) for picture in pictures]
        flows[place] = scaled(torch.from_numpy(flow)[None], (side_px, side_px))[0].numpy()
    return Pairs(frames=torch.from_numpy(frames), flow=torch.from_numpy(flows))


def square(picture: np.ndarray, side_px: int) -> np.ndarray:
    """Return a picture [side_px, side_px, 3]; the aspect ratio is not kept, as for CLIPS."""
    planes = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    resized = functional.resize(planes, [side_px, side_px], antialias=True)
    return resized.permute(1, 2, 0).numpy()
