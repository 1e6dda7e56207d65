"""The page of correspondences (VU Figures 2.3 and 2.4); it needs no network and no script."""

import numpy as np

from pipelines.report.template import template
from pipelines.run.saved import SavedRun
from pipelines.search.correspond import NEIGHBOURS, Layer
from pipelines.storage.pictures import image_file

FILE = "report/correspond.html"

_PICTURE_PX, _PATCH_PX, _GAP_PX = 224, 48, 2


def publish(run: SavedRun, layers: list[Layer], command: str) -> str:
    """Publish the page in the run, and return its URI."""
    run.store.publish(FILE, render(layers, command).encode("utf-8", "backslashreplace"))
    return run.store.uri(FILE)


def render(layers: list[Layer], command: str = "") -> str:
    """Return the page as the text of a UTF-8 file."""
    shown = [
        {
            "layer": layer,
            "pictures": [
                {
                    "video_id": picture.video_id,
                    "jpeg": _resized(picture.pixels),
                    "repainted": {n: _resized(pixels) for n, pixels in picture.repainted.items()},
                }
                for picture in layer.pictures
            ],
            "clusters": [image_file(_strip(part)) for part in layer.clusters],
        }
        for layer in layers
    ]
    page = template("search/correspond.html.j2")
    return page.render(shown=shown, neighbours=NEIGHBOURS, command=command)


def _strip(patches: np.ndarray) -> np.ndarray:
    """Return patches [k, p, p, 3] side by side, enlarged, with gaps between them."""
    times = max(1, round(_PATCH_PX / patches.shape[1]))
    large = np.rint(patches).astype(np.uint8).repeat(times, 1).repeat(times, 2)
    gaps = np.pad(large, ((0, 0), (0, 0), (0, _GAP_PX), (0, 0)), constant_values=255)
    return np.concatenate(list(gaps), 1)


def _resized(pixels: np.ndarray) -> bytes:
    rounded = np.rint(pixels).astype(np.uint8)
    return image_file(rounded, size_px=(_PICTURE_PX, _PICTURE_PX))
