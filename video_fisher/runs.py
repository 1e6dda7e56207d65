"""A run from Python: `run` makes one, `open` reads one.

Letters: v videos, D length of a vector.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import flags, launch
from pipelines.errors import ConfigError, RunError, near, shown, user_error
from pipelines.run.saved import Encodings, SavedRun
from pipelines.run.steps import PAGE
from pipelines.storage.columns import places_of, vectors_from_arrow
from pipelines.storage.store import Store
from pipelines.storage.uris import refuse_credentials

log = logging.getLogger("video_fisher")

_FOUND = pa.schema(
    {
        "rank": pa.int64(),
        "video_id": pa.string(),
        "similarity": pa.float64(),
        "labels": pa.list_(pa.string()),
    }
)


class Run:
    """A run as its run.json describes it: the configuration that was run last, and its tables.

    Reading needs neither Ray nor torch; `search` loads torch.
    """

    def __init__(self, saved: SavedRun) -> None:
        self._saved = saved

    def __repr__(self) -> str:
        return f"video_fisher.open({self.uri!r})"

    @property
    def uri(self) -> str:
        """URI of the run's folder."""
        return self._saved.store.root

    @property
    def recipe(self) -> str:
        """Name of the recipe that the settings started from."""
        return self._saved.config.recipe

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """{section: {field: value}} of every setting, as `run(..., **settings)` takes them."""
        plain = dataclasses.asdict(self._saved.config)
        return {name: values for name, values in plain.items() if name != "recipe"}

    @property
    def report(self) -> str:
        """URI of the report, a page that needs no network."""
        return self._saved.store.uri(PAGE)

    @property
    def tables(self) -> list[str]:
        """Names that `table` takes, such as "metrics" or "scores/fv_vae-pool5_appearance"."""
        return sorted(self._saved.tables)

    @property
    def encodings(self) -> list[tuple[str, str]]:
        """(encoder, stream) of the vectors that `vectors` and `search` take."""
        return list(self._saved.encodings)

    @property
    def metrics(self) -> pa.Table:
        """METRICS: one row for each result, metric, class and split."""
        return self.table("metrics")

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a table of the run, read whole; docs/tables.md has its columns and units.

        Args:
            name: out of `tables`; "scores", "encodings" and their like are all of that kind, one
                below the other.
            columns: read these alone.

        Raises:
            ConfigError: there is no such table or column, or it has no rows yet.
        """
        known, store = self._saved.tables, self._saved.store
        keys = [key for key in known if name in (key, key.partition("/")[0])]
        if not keys:
            kinds = dict.fromkeys([*(key.partition("/")[0] for key in known), *known])
            raise ConfigError(f"table {name!r}: no such table{near(name, kinds)}")
        wanted = None if columns is None else list(columns)
        folders = dict.fromkeys(known[key] for key in keys)
        try:
            parts = [store.read_table(folder, wanted) for folder in folders]
            found = pa.concat_tables(parts, promote_options="default")
        except FileNotFoundError as error:
            raise ConfigError(f"table {name!r}: {error}") from error
        except pa.ArrowTypeError as error:
            raise ConfigError(
                f"table {name!r}: expected vectors of one length, got several; take one of "
                f"{', '.join(keys)}"
            ) from error
        for column in wanted or ():
            if column not in found.column_names:
                known_columns = store.read_table(next(iter(folders))).column_names
                raise ConfigError(f"column {column!r}: not in {name}{near(column, known_columns)}")
        return found

    def vectors(
        self, encoder: str, stream: str | None = None, *, fold: int | None = None
    ) -> tuple[list[str], NDArray[np.float32]]:
        """Return the videos that have a vector, and their vectors.

        Args:
            encoder: as in encode.encoders, such as "fv_vae".
            stream: such as "pool5_appearance"; None: of those of the encoder the one with the best
                mAP.
            fold: of a codebook that was fitted once per fold: the fold that it did not see; None:
                the first one.

        Returns:
            video_id of each, ascending, and float32 [v, D]. Videos that have changed since, and
            those without a descriptor, are left out.

        Raises:
            ConfigError: there are no such vectors, or they are not complete.
        """
        encodings = self._encodings(encoder, stream)
        store, folder = self._saved.store, encodings.folder
        if fold is not None and encodings.fold >= 0:
            key = f"encodings/{encodings.encoder}-{encodings.stream}/fold-{fold}"
            if key not in self._saved.tables:
                raise ConfigError(f"fold {fold}: expected a fold of the run, got no {key}")
            folder = self._saved.tables[key]
        keys = ["video_id", "source"]
        rows = store.read_table(folder, [*keys, "num_descriptors", "vector"])
        videos = store.read_table(self._saved.videos, keys)
        is_current = pc.is_valid(places_of(rows, videos, tuple(keys)))
        rows = rows.filter(pc.and_(is_current, pc.greater(rows["num_descriptors"], 0)))
        rows = rows.take(pc.sort_indices(rows["video_id"]))
        vectors = vectors_from_arrow(rows["vector"]).astype(np.float32, copy=False)
        return rows["video_id"].to_pylist(), vectors

    def search(
        self,
        query: str | os.PathLike[str],
        *,
        encoder: str | None = None,
        stream: str | None = None,
        num: int = 10,
    ) -> pa.Table:
        """Return the videos most like a video, the best first: rank, video_id, similarity, labels.

        The first search with an encoder and stream keeps an index in the run's folder search/, and
        every search a page with pictures.

        Args:
            query: a video_id of the run, or the file or URI of another video.
            encoder, stream: of the vectors that are compared; None: those with the best mAP.
            num: of results, at most 100.

        Raises:
            ConfigError, RunError: there is no such video or vector, or the file cannot be decoded.
        """
        from pipelines.search.nearest import search

        answer = search(self.uri, os.fspath(query), encoder=encoder, stream=stream, num=num)
        return pa.Table.from_pylist(answer.to_json()["results"], _FOUND)

    def predict(
        self,
        videos: str | os.PathLike[str],
        *,
        to: str | os.PathLike[str],
        address: str | None = None,
        **result: Any,
    ) -> pa.Table:
        """Classify new videos as `video-fisher predict` does; return PREDICTIONS (docs/predict.md).

        Args:
            videos: as for `run`.
            to: a .parquet file to write, or a folder; FAILURES are written beside it.
            address: Ray cluster to join, as for `run`.
            result: encoder, stream, fusion or fold of the classifiers to use; without any, the best
                result, trained on all labelled videos.

        Raises:
            ConfigError: there is no such result or video, or the output cannot be written.
            RunError: the work cannot go on, or more segments failed than run.max_failed_fraction.
        """
        paths = {"--videos": os.fspath(videos), "--to": os.fspath(to)}
        for flag, path in paths.items():
            refuse_credentials(flag, path)
        address, submission = launch.before_ray(address, {**paths})
        from pipelines.predict.command import Request, predict

        request = Request(out=self.uri, videos=paths["--videos"], to=paths["--to"], **result)
        with _plain_errors():
            done = predict(request, address, submission)
        if done.exceeds:
            raise RunError(
                f"{self.uri}: more segments failed than run.max_failed_fraction; all that could "
                f"be done is in {done.predictions}, see {done.failures}"
            )
        folder, _, name = done.predictions.rpartition("/")
        with Store(folder).open_parquet(name) as file:
            return file.read()

    def _encodings(self, encoder: str, stream: str | None) -> Encodings:
        """Return the encodings of an encoder on a stream, or on its best one."""
        saved = self._saved
        pairs = [pair for pair in saved.encodings if pair[0] == encoder]
        if not pairs:
            known = dict.fromkeys(name for name, _ in saved.encodings)
            raise ConfigError(f"encoder {encoder!r}: no vectors of it{near(encoder, known)}")
        if stream is None:
            pair = next(pair for pair in saved.best_first() if pair in pairs)
        elif (pair := (encoder, stream)) not in pairs:
            known = [name for _, name in pairs]
            raise ConfigError(f"stream {stream!r}: no vectors of it{near(stream, known)}")
        encodings = saved.encodings[pair]
        if not saved.is_encoded(encodings):
            raise ConfigError(
                f"{self.uri}: expected complete vectors of {encoder} on {pair[1]}, found some "
                "missing; run it again, at least with steps index,describe,fit,encode"
            )
        return encodings


def open(uri: str | os.PathLike[str]) -> Run:  # noqa: A001 - vf.open reads as it should
    """Return the run at a folder or URI, which was its `out`.

    Raises:
        ConfigError: there is none.
    """
    return Run(SavedRun.open(os.fspath(uri)))


def run(  # noqa: PLR0913 - each is a flag of the command
    videos: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str],
    recipe: str | None = None,
    steps: str | Sequence[str] = "all",
    limit: int | None = None,
    address: str | None = None,
    settings: Mapping[str, Any] | None = None,
    **sections: Mapping[str, Any] | str,
) -> Run:
    """Run the pipeline as `video-fisher run` does, and return the run.

    What is complete in `out` is not done again. The logger "video_fisher" and those of the packages
    tell of progress: `logging.basicConfig(level=logging.INFO)` shows it.

    Args:
        videos: folder, glob, file or URI, or a CSV or Parquet manifest with a column `path`.
        labels: CSV or Parquet: `path,label[,group][,split]`, or others of docs/labels.md; None:
            what needs labels is left out.
        out: folder or URI of the run.
        recipe: the settings to start from.
        steps: "all", or some of the steps, joined by commas or as a list.
        limit: use so many videos only, spread over the corpus.
        address: Ray cluster to join; None: RAY_ADDRESS, or else one is started on this machine.
        settings: {"section.field": value}.
        sections: settings of a section: `describe={"nodes": ["pool5"]}`.

    Raises:
        ConfigError: something in the inputs or settings is wrong.
        RunError: the run could not go on, or more segments failed than run.max_failed_fraction.
    """
    paths = {
        "--videos": os.fspath(videos),
        "--labels": None if labels is None else os.fspath(labels),
        "--out": os.fspath(out),
    }
    wanted = steps if isinstance(steps, str) else ",".join(steps)
    flags.parse_steps(wanted)
    flags.check_limit(limit)
    for flag, path in paths.items():
        refuse_credentials(flag, path or "")
    config = flags.configuration(
        recipe,
        None,
        (),
        default_recipe="auto",
        values=_joined(settings or {}, sections),
    )
    address, submission = launch.before_ray(address, paths)
    from pipelines import corpus, prepare

    named = flags.possible_steps(wanted, paths["--videos"] or "", paths["--labels"])
    inputs = prepare.Inputs(
        videos=paths["--videos"] or "",
        labels=paths["--labels"],
        out=paths["--out"] or "",
        config=config,
        steps=named,
        limit=limit,
    )
    start = launch.Start(
        command=f"video_fisher.run in {sys.argv[0] or 'an interactive session'}",
        address=address,
        submission=submission,
    )
    with _plain_errors():
        job, outcome = launch.launch(inputs, start)
        for line in corpus.closing_lines(job, outcome, named):
            log.info(line)
        if reason := launch.too_many_failed(job, outcome):
            raise RunError(reason)
    return open(out)


def _joined(
    settings: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any] | str]
) -> dict[str, Any]:
    """Return {section: {field: value}} of both ways to give settings.

    Raises:
        ConfigError: a name without a section, or a setting that is given twice.
    """
    joined: dict[str, Any] = {
        name: values if isinstance(values, str) else dict(values)
        for name, values in sections.items()
    }
    for name, value in settings.items():
        section, dot, field = name.partition(".")
        if not dot:
            raise ConfigError(f"settings: expected 'section.field', got {name!r}")
        record = joined.setdefault(section, {})
        if isinstance(record, str) or field in record:
            raise ConfigError(f"settings: expected {section}.{field} once, got it twice")
        record[field] = value
    return joined


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the user's error that another one comes of: Ray wraps what its workers raise."""
    try:
        yield
    except Exception as error:
        known = user_error(error)
        if known is None or known is error:
            raise
        raise type(known)(shown(known)) from error
