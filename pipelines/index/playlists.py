"""Playlists among the files: the files that they cut a video into are no videos of their own.

A playlist is not played (`pipelines.video.door` refuses it, in a row of its own); without this its
video would be in the corpus as so many short ones. Lists of whole videos, such as a player's, leave
these alone.
"""

import bisect
import contextlib
import html
import posixpath
import re
from collections.abc import Iterator
from urllib.parse import unquote

import fsspec

PLAYLISTS = (".m3u8", ".m3u", ".mpd")

_MOST_CHARACTERS = 16 * 2**20
_HLS = re.compile(r"^#EXT-X-(?:TARGETDURATION|STREAM-INF)", re.MULTILINE)
_HLS_NAMES = re.compile(r'^(?!#)(\S.*?)\s*$|^#EXT-X-.*\bURI="([^"]+)"', re.MULTILINE)
_DASH_NAMES = re.compile(r'\s(?:media|initialization|sourceURL)="([^"]+)"')
_DASH_NUMBER = re.compile(r"\$\w+(?:%0\d+d)?\$")


def pieces(fs: fsspec.AbstractFileSystem, paths: list[str]) -> set[str]:
    """Return those of the sorted `paths` that a playlist among them names as pieces of its video.

    A playlist that cannot be read names none; its row says why.
    """
    found: set[str] = set()
    for path in paths:
        if path.lower().endswith(PLAYLISTS):
            named = {
                p for name in _names(_text(fs, path)) for p in _matching(paths, path, name)
            } - {path}
            # One file alone that is named is a whole video; another playlist never is.
            found |= {p for p in named if len(named) > 1 or p.lower().endswith(PLAYLISTS)}
    return found


def _text(fs: fsspec.AbstractFileSystem, path: str) -> str:
    with (
        contextlib.suppress(OSError),
        fs.open(path, "rt", encoding="utf-8", errors="replace") as file,
    ):
        return str(file.read(_MOST_CHARACTERS))
    return ""


def _names(text: str) -> Iterator[str]:
    if _HLS.search(text):
        yield from (line or uri for line, uri in _HLS_NAMES.findall(text))
    elif "<MPD" in text:
        yield from map(html.unescape, _DASH_NAMES.findall(text))


def _matching(paths: list[str], playlist: str, name: str) -> list[str]:
    """Return the paths that a name in a playlist stands for."""
    if "://" in name:
        return []
    name = posixpath.join(posixpath.dirname(playlist), name.partition("?")[0])
    literal, *rest = map(unquote, _DASH_NUMBER.split(posixpath.normpath(name)))
    pattern = re.compile("[^/]*".join(map(re.escape, [literal, *rest])))
    start = bisect.bisect_left(paths, literal)
    stop = bisect.bisect_right(paths, literal + chr(0x10FFFF)) if rest else start + 1
    return [path for path in paths[start:stop] if pattern.fullmatch(path)]
