"""The file or folder that `--labels` names, as readers of annotations look at it."""

from dataclasses import dataclass, field
from typing import cast

import fsspec

from pipelines.errors import ConfigError
from pipelines.index.user_tables import user_filesystem, using

_HEAD_BYTES = 4096


@dataclass(frozen=True)
class Source:
    """A file of annotations, or a folder of several.

    Attributes:
        uri: as the user wrote it.
        names: of the files in the folder, or of the one file.
    """

    uri: str
    fs: fsspec.AbstractFileSystem = field(repr=False)
    names: tuple[str, ...]
    folder: str

    @property
    def is_folder(self) -> bool:
        """Return whether the user named a folder."""
        return len(self.names) != 1 or not self.uri.rstrip("/").endswith(self.names[0])

    def named(self, *suffixes: str) -> list[str]:
        """Return the names that end so, sorted; case counts for nothing."""
        return [name for name in self.names if name.lower().endswith(suffixes)]

    def text(self, name: str) -> str:
        """Return the content of a file.

        Raises:
            ConfigError: it cannot be read, or is no text in UTF-8.
        """
        with using("--labels", self.uri):
            data = cast(bytes, self.fs.cat_file(f"{self.folder}/{name}"))
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"--labels {self.uri}: {name}: expected text in UTF-8, got another encoding: "
                f"{error}; save it as UTF-8"
            ) from error

    def head(self, name: str) -> str:
        """Return the first line of a file; empty where it is no text.

        Raises:
            ConfigError: it cannot be read.
        """
        with using("--labels", self.uri):
            data = cast(bytes, self.fs.cat_file(f"{self.folder}/{name}", start=0, end=_HEAD_BYTES))
        return data.decode("utf-8-sig", "replace").partition("\n")[0]

    def lines(self, name: str) -> list[list[str]]:
        """Return the words of the lines that are not empty."""
        return [words for line in self.text(name).splitlines() if (words := line.split())]

    def wrong(self, name: str, line: int, expected: str, got: object) -> ConfigError:
        """Return the error of a line, counted from 1."""
        return ConfigError(
            f"--labels {self.uri}: {name}, line {line}: expected {expected}, got {got!r}"
        )


def source(uri: str) -> Source:
    """Return the file or folder at `uri`.

    Raises:
        ConfigError: nothing is there.
    """
    fs, path = user_filesystem("--labels", uri)
    path = path.rstrip("/")
    with using("--labels", uri):
        if fs.isdir(path):
            listed = fs.ls(path, detail=False)
            return Source(uri, fs, tuple(sorted(n.rpartition("/")[2] for n in listed)), path)
        if not fs.exists(path):
            raise ConfigError(f"--labels {uri}: no such file")
    folder, _, name = path.rpartition("/")
    return Source(uri, fs, (name,), folder)
