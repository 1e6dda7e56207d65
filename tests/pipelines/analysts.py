"""The snippets of docs/analysts.md, run as they stand there, without Ray, on any run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "analysts.md"
TOOLS = ("DuckDB", "pandas", "Polars")

_RUN = """
import json, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'ray':
            raise ImportError('blocked: ' + name)
sys.meta_path.insert(0, Block())
import duckdb, numpy

def plain(value):
    if isinstance(value, (list, tuple, numpy.ndarray)):
        return [plain(item) for item in value]
    value = value.item() if isinstance(value, numpy.generic) else value
    return None if value is None or value != value else value

def answer(tool, head, snippet):
    if tool == 'DuckDB':
        connection = duckdb.connect()
        connection.execute(head)
        found = connection.sql(snippet)
        return found.columns, found.fetchall()
    names = {}
    exec(head, names)
    exec(snippet, names)
    frame = names['answer']
    rows = frame.rows() if tool == 'Polars' else frame.itertuples(index=False, name=None)
    return list(frame.columns), list(rows)

asked = json.load(sys.stdin)
found = [[tool, *answer(tool, *texts)] for tool, *texts in asked]
print(json.dumps([[tool, columns, plain(rows)] for tool, columns, rows in found]))
"""


def snippets() -> dict[str, list[str]]:
    """{heading: its snippets for DuckDB, pandas and Polars}; under "" those that come first."""
    found: dict[str, list[str]] = {}
    for section in re.split("^## ", DOCUMENT.read_text(), flags=re.MULTILINE):
        title = section.partition("\n")[0] if found else ""
        blocks = re.findall(r"```(sql|python)\n(.*?)```", section, re.DOTALL)
        marks = (
            ["# pandas" in text for _, text in blocks],
            ["# Polars" in text for _, text in blocks],
        )
        assert [kind for kind, _ in blocks] == ["sql", "python", "python"], title
        assert marks == ([False, True, False], [False, False, True]), title
        found[title] = [text for _, text in blocks]
    return found


def answers(run: Path, changes: dict[str, str]) -> dict[str, dict[str, tuple[list[str], list]]]:
    """{question: {tool: (columns, rows)}} on a run, with some names in the snippets replaced."""
    texts = snippets()
    heads = texts.pop("")
    asked, keys = [], []
    for question, parts in texts.items():
        for tool, head, part in zip(TOOLS, heads, parts, strict=True):
            both = [text.replace("OUT/", f"{run}/") for text in (head, part)]
            for old, new in changes.items():
                both = [text.replace(old, new) for text in both]
            asked.append([tool, *both])
            keys.append((question, tool))
    command = [sys.executable, "-c", _RUN]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, tuple[list[str], list]]] = {}
    for (question, _), (tool, columns, rows) in zip(keys, json.loads(done.stdout), strict=True):
        found.setdefault(question, {})[tool] = (columns, rows)
    return found


def assert_alike(found: dict[str, dict[str, tuple[list[str], list]]]) -> None:
    """The tools give the same columns and rows, numbers to six digits; and there are rows."""
    for question, by_tool in found.items():
        columns, rows = by_tool["DuckDB"]
        assert rows, question
        for tool in TOOLS[1:]:
            assert by_tool[tool][0] == columns, (question, tool)
            _assert_close(by_tool[tool][1], rows, (question, tool))


def _assert_close(ours: object, theirs: object, where: object) -> None:
    if isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for a, b in zip(ours, theirs, strict=True):
            _assert_close(a, b, where)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6), where
    else:
        assert ours == theirs, where
