"""The doctor's checks, read from SQL files.

Each file is a list of checks, each with its queries. A query selects what should not be:

    -- error ID: a sentence that is true of a sound run
    -- do: what to do where it is not, in as many such lines as it takes
    -- done: a step; before that is done, what the query looks for may be missing
    -- whole: tables; where a file of theirs could not be read, rows of it may be missing
    -- remake: files
    SELECT folder, file, row, example, 'a sentence for people' AS found FROM ...;

`row` and `example` may be left out, and # in the sentence stands for the number of rows. With
`remake` the advice is a command after which the job makes these again: the `files` that the rows
are in, their `folder`, or what is `missing` beside it; `delete` only removes the files. Queries
after `-- of: scores` are asked for each result, while its rows are in the table `scores`. Such
lines count for all queries up to the next check. Any other comment is a reason.
"""

import re
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Literal, cast, get_args

Severity = Literal["error", "warning", "note"]
"""error: a reader gets wrong or missing rows. warning: odd, no row is wrong. note: good to know."""

SEVERITIES: tuple[Severity, ...] = get_args(Severity)

EXAMPLES = 5
"""Most examples that a problem has."""

BY_HAND = (
    "the job does not write this: find out who changed the files; delete the folder and run the "
    "job's command again to have it made anew"
)

_CHECK = re.compile(r"-- (error|warning|note) ([\w.]+): (.*)")
_SETTING = re.compile(r"-- (do|done|whole|remake|of): ?(.*)")


@dataclass(frozen=True)
class Query:
    """A query with the lines before it, see the docstring of this module."""

    sql: str = ""
    done: str = ""
    whole: str = ""
    remake: str = ""
    of: str = ""


@dataclass
class Check:
    """A sentence that is true of a sound run, and queries for what contradicts it."""

    id: str
    severity: Severity
    meaning: str
    advice: str = ""
    queries: list[Query] = field(default_factory=list)


def sql_text(name: str) -> str:
    """Return the text of a SQL file of this folder."""
    return resources.files("pipelines.doctor").joinpath(name).read_text()


def read_checks(name: str) -> list[Check]:
    """Return the checks of a SQL file, in its order."""
    checks: list[Check] = []
    query, lines = Query(), []
    for line in sql_text(name).splitlines():
        if match := _CHECK.fullmatch(line):
            severity, check_id, meaning = match.groups()
            checks.append(Check(check_id, cast(Severity, severity), meaning))
            query = Query()
        elif match := _SETTING.fullmatch(line):
            key, value = match.groups()
            if key == "do":
                value = value.replace("{again}", "run the job's command again")
                checks[-1].advice = f"{checks[-1].advice} {value}".lstrip()
            else:
                query = replace(query, **{key: value})
        elif not line.startswith("--"):
            lines.append(line)
            if line.endswith(";"):
                sql = "\n".join(lines).rstrip(";")
                checks[-1].queries.append(replace(query, sql=sql))
                lines.clear()
    return checks


CHECKS = (*read_checks("file_checks.sql"), *read_checks("row_checks.sql"))
