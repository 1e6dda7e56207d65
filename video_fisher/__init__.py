"""Videos to Fisher vectors, classifiers and tables, from Python.

    import video_fisher as vf

    run = vf.run("videos/", labels="labels.csv", out="out")
    run.metrics.to_pandas()

docs/python.md has the whole of it. Nothing heavy is loaded before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from video_fisher import place

if TYPE_CHECKING:
    from pipelines import __version__
    from pipelines.errors import ConfigError, RunError
    from pipelines.reading.views import connect
    from video_fisher import estimators
    from video_fisher.runs import Run, open, run  # noqa: A004

__all__ = ["ConfigError", "Run", "RunError", "__version__", "connect", "estimators", "open", "run"]

_FROM = {
    "ConfigError": "pipelines.errors",
    "Run": "video_fisher.runs",
    "RunError": "pipelines.errors",
    "__version__": "pipelines",
    "connect": "pipelines.reading.views",
    "open": "video_fisher.runs",
    "run": "video_fisher.runs",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place.check()
    if name == "estimators":
        return importlib.import_module("video_fisher.estimators")
    return getattr(importlib.import_module(_FROM[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
