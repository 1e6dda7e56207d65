"""Labels as the benchmarks ship them: each kind is one file, and one line here."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa

from pipelines.errors import ConfigError
from pipelines.index.readers import activitynet, fcvid, folders, hmdb51, kinetics, ucf101
from pipelines.index.readers.names import Names
from pipelines.index.readers.source import Source, source


class Reader(NamedTuple):
    """A kind of annotations: how to know it, and how to read it."""

    recognises: Callable[[Source], bool]
    read: Callable[[Source, Names], pa.Table]
    shape: str
    is_untrimmed: bool = False


READERS: dict[str, Reader] = {
    "ucf101": Reader(ucf101.recognises, ucf101.read, "trainlist01.txt, testlist01.txt, ..."),
    "hmdb51": Reader(hmdb51.recognises, hmdb51.read, "a folder of CLASS_test_split1.txt, ..."),
    "kinetics": Reader(kinetics.recognises, kinetics.read, "label,youtube_id,time_start,..."),
    "activitynet": Reader(activitynet.recognises, activitynet.read, "JSON with a `database`", True),
    "fcvid": Reader(fcvid.recognises, fcvid.read, "a folder with FCVID_Label.txt"),
}
"""By the name of the data set, in the order in which they are tried."""


_UNTRIMMED = b"untrimmed"
"""Mark in the metadata of a table whose labels are whole files', beside the times they hold."""


def is_untrimmed(table: pa.Table | None) -> bool:
    """Return whether the labels of `read_annotations` are whole files', as the data set is used."""
    return table is not None and _UNTRIMMED in (table.schema.metadata or {})


def read_annotations(uri: str, paths: Sequence[str]) -> pa.Table | None:
    """Return path, label and whatever else annotations of a data set say; None of a plain table.

    Args:
        paths: of the videos, relative to --videos.

    Raises:
        ConfigError: nothing is there, it is of no kind known here, or something in it is wrong.
    """
    if uri == folders.WORD:
        return folders.read(paths)
    at = source(uri)
    names = Names(paths)
    for reader in READERS.values():
        if reader.recognises(at):
            table = reader.read(_whole(at), names)
            mark = {_UNTRIMMED: b""} if reader.is_untrimmed else None
            return table.replace_schema_metadata(mark)
    if at.is_folder or at.named(".json"):
        kinds = "; ".join(f"{name}: {reader.shape}" for name, reader in READERS.items())
        raise ConfigError(
            f"--labels {uri}: expected a CSV or Parquet file with columns path,label, the word "
            f"{folders.WORD} (each video lies in the folder of its class), or annotations of a "
            f"data set ({kinds})"
        )
    return None


def _whole(at: Source) -> Source:
    """Return the folder of a file that is one half of a split, else the source itself."""
    half = {"train": "test", "test": "train"}
    name = at.names[0]
    if at.is_folder or not name.startswith(("trainlist", "testlist")):
        return at
    other = name.replace(name[: name.index("list")], half[name[: name.index("list")]], 1)
    return Source(at.uri, at.fs, tuple(sorted((name, other))), at.folder)
