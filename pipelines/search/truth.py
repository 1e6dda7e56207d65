"""The right answers of a retrieval benchmark: a table of the user, or those of a published one.

Needs neither torch nor Ray.
"""

import logging
import os
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import pyarrow as pa

from pipelines.errors import ConfigError, near
from pipelines.index.user_tables import read_user_table, some, texts, user_filesystem, using
from pipelines.search.video_ids import near_id

log = logging.getLogger(__name__)

COLUMNS = ("query", "path", "judgement")
JUDGEMENTS = ("good", "ok", "junk")


@dataclass(frozen=True)
class Query:
    """A query: its video_id, its right answers, and those that are neither right nor wrong."""

    video_id: str
    right: frozenset[str]
    junk: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Truth:
    """The queries of a benchmark, by video_id.

    Attributes:
        name: of the file or preset, as RETRIEVAL has it.
        ignore_query: a query is left out of its own ranking; else it is one of its right answers.
    """

    name: str
    queries: tuple[Query, ...]
    ignore_query: bool


@dataclass(frozen=True)
class Preset:
    """The protocol of a published benchmark.

    Attributes:
        prefixes: in front of the names of queries in its files; they are no part of the image's.
        in_names: names of images tell which belong together: no file is needed.
    """

    ignore_query: bool
    prefixes: tuple[str, ...] = ()
    in_names: bool = False


PRESETS = {
    "holidays": Preset(ignore_query=True, in_names=True),
    "oxford": Preset(ignore_query=False, prefixes=("oxc1_",)),
    "paris": Preset(ignore_query=False),
}
"""Whole images are queries (VU 2.4): the rectangles of Oxford and Paris are ignored."""

_GROUP = 100
"""Holidays numbers an image 100 g + i; i = 0 is the query of group g."""

_ANSWERS = tuple(f"_{judgement}.txt" for judgement in JUDGEMENTS)
_QUERY = "_query.txt"


def read_truth(name: str | None, preset: str | None, videos: pa.Table) -> Truth:
    """Read the queries, and match them with the videos of a run.

    Args:
        name: path or URI of a CSV or Parquet file with the columns query, path and judgement (good,
            ok or junk; without the column all are good), or the folder of text files that Oxford
            and Paris are published with. None: the names of the images tell, as on Holidays.
        preset: key of PRESETS; None: a query is left out of its own ranking.
        videos: rows of VIDEOS with video_id and uri.

    Raises:
        ConfigError: no such file or preset, a malformed row, a query or an answer that the run does
            not have, or no query with an answer.
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(
            f"--preset: expected one of {', '.join(PRESETS)}, got {preset!r}{near(preset, PRESETS)}"
        )
    rules = PRESETS[preset] if preset else Preset(ignore_query=True)
    if name is None:
        if not rules.in_names:
            raise ConfigError(
                "--truth: expected a CSV or Parquet file of query, path and judgement, got none; "
                "only --preset holidays reads the truth off the names of the images"
            )
        rows, flag = _numbered(videos["video_id"].to_pylist()), f"--preset {preset}"
    else:
        flag = f"--truth {name}"
        rows = _published(name, rules.prefixes) if _is_folder(name) else _table(name)
        rows = _matched(rows, videos, flag)
    stem = posixpath.splitext(posixpath.basename(str(name).rstrip("/")))[0]
    title = preset or re.sub("[^0-9A-Za-z_.-]+", "_", stem)
    return Truth(title, _queries(rows, rules.ignore_query, flag), rules.ignore_query)


_Row = tuple[str, str, str]
"""Query, path and judgement."""


def _table(name: str) -> list[_Row]:
    """Return the rows of a CSV or Parquet file."""
    table = read_user_table("--truth", name)
    if missing := [column for column in COLUMNS[:2] if column not in table.column_names]:
        raise ConfigError(
            f"--truth {name}: expected columns {','.join(COLUMNS)}, got "
            f"{','.join(table.column_names)}; {' and '.join(missing)} missing"
        )
    queries, paths = (texts("--truth", name, table, column).to_pylist() for column in COLUMNS[:2])
    judgements = ["good"] * len(paths)
    if COLUMNS[2] in table.column_names:
        judgements = texts("--truth", name, table, COLUMNS[2]).to_pylist()
    rows = list(zip(queries, paths, judgements, strict=True))
    for number, (query, path, judgement) in enumerate(rows, start=2):
        if not query or not path:
            raise ConfigError(f"--truth {name}: row {number} has no {'path' if query else 'query'}")
        if judgement not in JUDGEMENTS:
            raise ConfigError(
                f"--truth {name}: row {number}: expected judgement {', '.join(JUDGEMENTS)}, got "
                f"{judgement!r}"
            )
    return rows


def _is_folder(name: str) -> bool:
    fs, path = user_filesystem("--truth", name)
    with using("--truth", name):
        return fs.isdir(path)


def _published(name: str, prefixes: tuple[str, ...]) -> list[_Row]:
    """Return the rows of a folder with NAME_query.txt, NAME_good.txt, NAME_ok.txt and
    NAME_junk.txt for each query."""
    fs, path = user_filesystem("--truth", name)
    with using("--truth", name):
        files = sorted(file for file in fs.ls(path, detail=False) if file.endswith(".txt"))
        data = {file: cast(bytes, fs.cat_file(file)) for file in files}
    content = {file: text.decode("utf-8", "replace").split() for file, text in data.items()}
    rows = []
    for file in (file for file in files if file.endswith(_QUERY)):
        stem = file.removesuffix(_QUERY)
        query = content[file][0] if content[file] else ""
        for prefix in prefixes:
            query = query.removeprefix(prefix)
        for judgement, end in zip(JUDGEMENTS, _ANSWERS, strict=True):
            rows += [(query, answer, judgement) for answer in content.get(stem + end, [])]
    if not rows:
        raise ConfigError(
            f"--truth {name}: expected a folder of text files, for each query NAME{_QUERY} and "
            f"{', '.join(f'NAME{end}' for end in _ANSWERS)}; found no query with answers in "
            f"{len(files)} files"
        )
    return rows


def _numbered(video_ids: list[str]) -> list[_Row]:
    """Return the rows that the numbers in the names of Holidays' images tell."""
    numbers = {v: posixpath.splitext(posixpath.basename(v))[0] for v in video_ids}
    if odd := [video for video, number in numbers.items() if not number.isdecimal()]:
        raise ConfigError(
            f"--preset holidays: expected images named by numbers, such as 100000.jpg, got "
            f"{len(odd)} others, such as {some(odd)}; give their truth as --truth FILE"
        )
    first = {int(number) // _GROUP: v for v, number in numbers.items() if not int(number) % _GROUP}
    return [
        (first[int(number) // _GROUP], video, "good")
        for video, number in numbers.items()
        if int(number) // _GROUP in first
    ]


def _matched(rows: list[_Row], videos: pa.Table, flag: str) -> list[_Row]:
    """Return the rows with the video_ids of a run in place of paths.

    A path may be the video_id, the address of the file, or the id without its suffix, as the files
    of Oxford and Paris have it.
    """
    by_name: dict[str, set[str]] = {}
    for video, uri in zip(videos["video_id"].to_pylist(), videos["uri"].to_pylist(), strict=True):
        for spelling in _spellings(video, uri):
            by_name.setdefault(spelling, set()).add(video)
    unknown: dict[str, str] = {}

    own = set(videos["video_id"].to_pylist())

    def found(column: str, path: str) -> str:
        if path in own:
            return path
        tried = (path, path if "://" in path else os.path.normpath(path))
        ids = next((by_name[name] for name in tried if name in by_name), set())
        if len(ids) != 1:
            unknown.setdefault(path, column)
        return min(ids, default="")

    matched = [
        (found("query", query), found("path", path), judgement) for query, path, judgement in rows
    ]
    if unknown:
        path, column = next(iter(unknown.items()))
        why = f"stands for {len(by_name[path])} videos" if path in by_name else "is none of them"
        raise ConfigError(
            f"{flag}: expected video_ids of the run, queries too; {len(unknown)} paths are not, "
            f"such as {column} {path[:200]!r}, which {why}"
            f"{near_id(path, videos['video_id'].to_pylist())}"
        )
    return matched


def _spellings(video: str, uri: str) -> Iterable[str]:
    stem = posixpath.splitext(posixpath.basename(video))[0]
    return dict.fromkeys((video, uri, posixpath.splitext(video)[0], stem))


def _queries(rows: list[_Row], ignore_query: bool, flag: str) -> tuple[Query, ...]:
    """Return the queries that have a right answer, in the order of the rows."""
    answers: dict[str, dict[str, str]] = {}
    for query, path, judgement in rows:
        judged = answers.setdefault(query, {}).setdefault(path, judgement)
        if (judged == "junk") != (judgement == "junk"):
            raise ConfigError(f"{flag}: query {query}: {path} is {judged} and {judgement}")
    queries = []
    for video, judged in answers.items():
        junk = frozenset(path for path, judgement in judged.items() if judgement == "junk")
        right = judged.keys() - junk - ({video} if ignore_query else set())
        queries.append(Query(video, frozenset(right), junk))
    without = [query.video_id for query in queries if not query.right]
    if len(without) == len(queries):
        raise ConfigError(
            f"{flag}: expected queries with right answers, got none with one"
            f"{' beside itself' * ignore_query} among {len(queries)}"
        )
    if without:
        log.warning(
            "%s: %d of %d queries have no right answer and are left out, such as %s",
            flag,
            len(without),
            len(queries),
            some(without),
        )
    return tuple(query for query in queries if query.right)
