"""The files that mark a step of a run as complete.

Needs neither Ray nor torch, so that the doctor asks here too.
"""

from collections.abc import Callable, Sequence

from pipelines.storage.store import DONE

_MARKS = {
    "index": ("videos", DONE),
    "describe": ("descriptors", "_done-{videos}.json"),
    "fit": ("codebooks", DONE),
    "encode": ("encodings", "_done-{videos}.json"),
    "classify": ("scores", DONE),
    "evaluate": ("metrics", DONE),
}
"""{step: the table in each of whose folders it leaves a mark, and the name of the mark}.

`{videos}` is the digest of the videos that the folder is complete for."""


def marks(step: str, folders: Callable[[str], Sequence[str]]) -> list[str]:
    """The files that exist when a step is complete.

    Args:
        folders: gives the folders of a table, or of the codebooks, in the order of the run. Only
            those that the step's marks need are asked for.
    """
    table, name = _MARKS[step]
    if "{videos}" in name:
        name = name.format(videos=_digest_of(folders("videos")[0]))
    found = [f"{folder}/{name}" for folder in folders(table)]
    if step == "evaluate":
        found += [f"report/_done-{_digest_of(folder)}.json" for folder in folders(table)]
    return found


def _digest_of(folder: str) -> str:
    return folder.rpartition("/")[2]
