"""Fine-grained recognition beside DQ Table 6: pictures whole and by their boxes, with the own
weights of the backbone and with fine-tuned ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.report.papers.images import CUB_COLUMNS, DQ_TABLE_6
from pipelines.report.template import template
from pipelines.run.saved import SavedRun
from pipelines.storage.store import Store
from pipelines.text_table import aligned

METHODS = {
    "ga": "GA",
    "ave": "GA",
    "gmm_fv": "FV",
    "vlad": "VLAD",
    "bilinear": "BP",
    "fv_vae": "FV-VAE",
}
"""{encoder: its row of DQ Table 6}. The mean over positions of the last maps stands where the paper
has the last fully connected layer."""

PAGE = "fine_grained.html"


@dataclass(frozen=True)
class Row:
    """A result in all scenarios: its accuracies and the paper's, None where there is none."""

    name: str
    method: str
    own: tuple[float | None, ...]
    paper: tuple[float | None, ...]


def rows(runs: Sequence[SavedRun]) -> list[Row]:
    """Return the rows of the table, from the METRICS of a run for each column of DQ Table 6."""
    numbers = [_accuracies(run) for run in runs]
    paper = {name: value for name, (value,) in DQ_TABLE_6.rows}
    found = []
    for pair in dict.fromkeys(pair for own in numbers for pair in own):
        method = METHODS.get(pair[0].partition("@")[0], "")
        found.append(
            Row(
                pair[0],
                method or "-",
                tuple(own.get(pair) for own in numbers),
                tuple(paper.get(f"{method}, {column}") for column in CUB_COLUMNS),
            )
        )
    return found


def _accuracies(run: SavedRun) -> dict[tuple[str, str], float]:
    metrics = run.store.read_table(run.tables["metrics"]).to_pylist()
    return {
        (row["encoder"], row["stream"]): row["value"]
        for row in metrics
        if (row["split"], row["metric"], row["fusion"]) == ("all", "accuracy", "none")
        and row["value"] is not None
    }


def text(found: Sequence[Row]) -> list[str]:
    """Return lines for a terminal: of each scenario the own accuracy and the paper's."""
    header = ("result", "DQ Table 6", *CUB_COLUMNS)
    lines = [(row.name, row.method, *map(_cell, row.own, row.paper)) for row in found]
    return [*aligned([header, *lines], left=(0, 1)), f"own (DQ Table 6: {DQ_TABLE_6.data})"]


def _cell(own: float | None, paper: float | None) -> str:
    return " ".join(
        ["-" if own is None else f"{own:.3f}", *([] if paper is None else [f"({paper:.3f})"])]
    )


def publish(store: Store, found: Sequence[Row], pictures: Mapping[str, Mapping[str, bytes]]) -> str:
    """Publish the page and return its URI.

    Args:
        pictures: {scenario: {picture: PNG of its attention}}.
    """
    page = template("studies/fine_grained.html.j2")
    html = page.render(rows=found, columns=CUB_COLUMNS, paper=DQ_TABLE_6, pictures=pictures)
    store.publish(PAGE, html.encode())
    return store.uri(PAGE)
