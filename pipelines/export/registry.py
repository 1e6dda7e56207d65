"""Formats of other tools that a run can be written in.

A new one is one file here with a function of `Videos` and a folder, and one entry below.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pipelines.errors import ConfigError
from pipelines.export.videos import Exporter, open_videos


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        write: `module:function`, an Exporter.
        package: what it is written with, as it is installed; "" where the run's own suffice.
    """

    write: str
    package: str = ""

    def load(self, name: str) -> Exporter:
        """Return the exporter.

        Raises:
            ConfigError: its package is not installed.
        """
        module, _, function = self.write.partition(":")
        try:
            return cast(Exporter, getattr(importlib.import_module(module), function))
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--to {name}: expected the package {self.package}, found none ({error}); "
                f"pip install 'video-fisher[{name}]'"
            ) from error


FORMATS = {
    "huggingface": Format("pipelines.export.huggingface:write"),
    "lance": Format("pipelines.export.lance:write", "pylance"),
    "webdataset": Format("pipelines.export.webdataset:write", "webdataset"),
}
"""{name, and extra of pyproject.toml}."""


def export(
    out: str, to: str, folder: str, encoder: str | None = None, stream: str | None = None
) -> str:
    """Write a run in a format into a folder, and return the name of the vectors in it.

    Raises:
        ConfigError: the folder holds something, a package is missing, or there is no such result.
    """
    if "://" in folder:
        raise ConfigError(f"--folder {folder}: expected a folder of this machine, got a URI")
    target = Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--folder {folder}: expected no folder or an empty one; name another")
    write = FORMATS[to].load(to)
    videos = open_videos(out, encoder, stream)
    target.mkdir(parents=True, exist_ok=True)
    write(videos, target)
    return videos.name
