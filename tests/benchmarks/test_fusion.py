"""The comparison of rules of fusion, on encodings of a run whose streams are known to be good and
useless."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.fusion import BEST, Corpus, compare, table
from pipelines.errors import ConfigError
from pipelines.run.saved import SavedRun
from pipelines.settings.config import Config
from pipelines.storage.store import Store

CONFIG = Config().with_settings(["encode.encoders=ave"])
GOOD, NOISE = "ave on a_appearance", "ave on a_difference"


def saved(root: str, *, missing: int = 0) -> SavedRun:
    """24 videos of two classes and four groups: one stream tells the classes apart, the other knows
    nothing."""
    store, draw = Store(root), np.random.default_rng(0)
    labels = [["x", "y"][n % 2] for n in range(24)]
    videos = [
        {"video_id": f"v{n:02d}", "labels": [labels[n]], "group": f"g{n // 6}"} for n in range(24)
    ]
    # Not labelled, so not compared.
    videos.append({"video_id": "w", "labels": [], "group": None})
    store.publish_table("videos/d/a.parquet", pa.Table.from_pylist(videos), {})
    for stream, shift in (("a_appearance", 3.0), ("a_difference", 0.0)):
        vectors = draw.standard_normal((25, 8))
        vectors[:24, 0] += shift * np.where(np.array(labels) == "x", 1, -1)
        order = draw.permutation(25)[missing:]
        columns = {
            "video_id": [videos[n]["video_id"] for n in order],
            "vector": pa.FixedSizeListArray.from_arrays(
                vectors[order].astype(np.float16).reshape(-1), 8
            ),
        }
        store.publish_table(f"encodings/ave-{stream}/d/a.parquet", pa.table(columns), {})
    tables = {
        f"encodings/ave-a_{kind}": f"encodings/ave-a_{kind}/d"
        for kind in ("appearance", "difference")
    }
    return SavedRun(store, CONFIG, tables | {"videos": "videos/d"})


@pytest.mark.nightly
def test_rules_that_choose_find_the_stream_that_knows(tmp_path) -> None:
    corpus = Corpus.read(saved(str(tmp_path)))
    assert list(corpus.grams) == [GOOD, NOISE]
    assert corpus.targets.shape == (24, 2)
    rows = {row.rule: row for row in compare("run", corpus, 3)}
    assert rows[BEST].accuracy > 0.9
    for rule in ("late_weighted", "late, best part alone", "kernel_weighted"):
        assert rows[rule].accuracy >= rows["given, equal"].accuracy
        assert rows[rule].gain == pytest.approx(rows[rule].accuracy - rows[BEST].accuracy)
    lines = table(list(rows.values()))
    assert lines[0] == "| rule | run | mean |"
    assert len(lines) == 2 + len(rows)


def test_results_of_two_runs_are_joined(tmp_path) -> None:
    one, other = (Corpus.read(saved(str(tmp_path / name))) for name in "ab")
    renamed = dataclasses.replace(other, grams={"x": other.grams[NOISE], GOOD: other.grams[NOISE]})
    joined = one.joined(renamed)
    assert set(joined.grams) == {GOOD, NOISE, "x"}
    assert joined.grams[GOOD] is one.grams[GOOD]
    with pytest.raises(ConfigError, match="expected runs on the same videos"):
        one.joined(dataclasses.replace(renamed, videos=one.videos[1:]))


def test_a_video_without_a_vector_is_a_message(tmp_path) -> None:
    with pytest.raises(
        ConfigError, match="expected a vector of every labelled video, found none of v"
    ):
        Corpus.read(saved(str(tmp_path), missing=3))
