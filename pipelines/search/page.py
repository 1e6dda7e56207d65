"""The answer to a search, as lines for a terminal, as JSON, and as a page that needs no network and
no script.

Ids and labels may hold anything: the template escapes them, and a terminal gets no control
characters.
"""

from dataclasses import dataclass
from typing import Any

from pipelines.report.template import template
from pipelines.search.index import Facts


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A video of the answer.

    `rank` and `similarity` are None for the query; `jpegs` are in order of time.
    """

    video_id: str
    labels: tuple[str, ...]
    rank: int | None = None
    similarity: float | None = None
    jpegs: tuple[bytes, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A query and its results, the best first.

    Args:
        fold: of the codebook; -1: fitted once.
        page: where the page is, "" before it is published.
    """

    encoder: str
    stream: str
    fold: int
    index: Facts
    query: Shown
    results: tuple[Shown, ...]
    page: str = ""

    def lines(self) -> list[str]:
        """Return lines of rank, similarity, video_id and labels, and last a description of the
        search."""
        rows = [("rank", "similarity", "video_id", "labels")]
        rows += [
            (
                str(r.rank),
                f"{r.similarity:.4f}",
                _visible(r.video_id),
                _visible(", ".join(r.labels)),
            )
            for r in self.results
        ]
        width = max(len(row[2]) for row in rows)
        table = [f"{a:>4}  {b:>10}  {c:<{width}}  {d}".rstrip() for a, b, c, d in rows]
        return [
            *table,
            f"of {self.index.num_videos} videos, by {_visible(self.encoder)} on "
            f"{self.stream}{self._quality()}",
            f"page: {self.page}",
        ]

    def _quality(self) -> str:
        if self.index.map is None:
            return ""
        return f"; retrieval mAP of {self.index.num_queries} labelled videos: {self.index.map:.3f}"

    def to_json(self) -> dict[str, Any]:
        """Return the answer as plain values."""
        return {
            "query": self.query.video_id,
            "encoder": self.encoder,
            "stream": self.stream,
            "fold": self.fold,
            "num_videos": self.index.num_videos,
            "mAP": self.index.map,
            "page": self.page,
            "results": [
                {
                    "rank": result.rank,
                    "video_id": result.video_id,
                    "similarity": result.similarity,
                    "labels": list(result.labels),
                }
                for result in self.results
            ],
        }


def render(answer: Answer) -> str:
    """Return the page as the text of a UTF-8 file. Equal answers give equal pages."""
    return template("search/page.html.j2").render(answer=answer)


def _visible(text: str) -> str:
    """Return `text` with the terminal's control characters written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
