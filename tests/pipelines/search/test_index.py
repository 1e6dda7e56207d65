"""The index: its vectors and neighbours against plain loops, what it leaves out, and what it
reads."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from pipelines.errors import RunError
from pipelines.run.saved import Encodings
from pipelines.search import index as search_index
from pipelines.search.index import Index, open_index
from pipelines.storage.columns import encoding_type, vectors_from_arrow
from pipelines.storage.store import Store
from pipelines.storage.tables import ENCODINGS, SEARCH, VIDEOS

MADE_BY = Encodings("vlad", "pool5_appearance", -1, "encodings/vlad-pool5_appearance/aa")
VIDEOS_FOLDER = "videos/bb"


def write(
    root: Path | str,
    vectors: np.ndarray,
    labels: list[list[str]] | None = None,
    *,
    rows_per_file: int = 64,
    seed: int = 1,
    changed: tuple[int, ...] = (),
    gone: tuple[int, ...] = (),
    empty: tuple[int, ...] = (),
) -> Store:
    """VIDEOS and ENCODINGS of videos v000, v001, ...: `changed`, `gone` from VIDEOS, or without
    descriptors."""
    store, everyone = Store(str(root)), range(len(vectors))
    facts = dict.fromkeys(VIDEOS.schema().names)
    facts |= {"fold": 0, "size_bytes": 1, "num_segments": 1, "status": "ok", "uri": "/nowhere"}
    rows = [
        facts
        | {
            "video_id": f"v{i:03}",
            "source": f"s{i}" + "*" * (i in changed),
            "labels": labels[i] if labels else [],
        }
        for i in everyone
        if i not in gone
    ]
    store.publish_table(f"{VIDEOS_FOLDER}/part.parquet", VIDEOS.build(rows), {})
    # As rows come out of a cluster: in no order.
    order = np.random.default_rng(seed).permutation(len(vectors)).tolist()
    for first in everyone[::rows_per_file]:
        rows = [
            {
                "video_id": f"v{i:03}",
                "source": f"s{i}",
                "encoder": MADE_BY.encoder,
                "stream": MADE_BY.stream,
                "fold": -1,
                "num_descriptors": 0 if i in empty else 50,
                "vector": vectors[i].tolist(),
            }
            for i in order[first : first + rows_per_file]
        ]
        table = ENCODINGS.build(rows, vector=encoding_type(vectors.shape[1], "float32"))
        store.publish_table(f"{MADE_BY.folder}/{first:05}.parquet", table, {}, 20)
    return store


def opened(store: Store) -> Index:
    return open_index(store, MADE_BY, VIDEOS_FOLDER)


def clusters(num: int, width: int, num_clusters: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    middles = draw.normal(size=(num_clusters, width))
    vectors = middles[np.arange(num) % num_clusters] + 0.4 * draw.normal(size=(num, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def stored(index: Index) -> dict[str, np.ndarray]:
    table = index.store.read_table(index.folder)
    names = table["video_id"].to_pylist()
    return dict(zip(names, vectors_from_arrow(table["vector"]), strict=True))


def test_neighbours_are_those_of_scikit_learns_whitened_pca(tmp_path: Path) -> None:
    vectors = clusters(300, 150, 9)
    index = opened(write(tmp_path, vectors))
    assert index.facts.num_features == 100
    whitened = PCA(100, whiten=True, svd_solver="full").fit_transform(vectors.astype(np.float64))
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True)
    for query in (0, 7, 299):
        similarity = whitened @ whitened[query]
        expected = [i for i in np.argsort(-similarity) if i != query][:10]
        found = index.nearest(index.vector(f"v{query:03}"), 10, frozenset([f"v{query:03}"]))
        assert [name for name, _ in found] == [f"v{i:03}" for i in expected]
        np.testing.assert_allclose([value for _, value in found], similarity[expected], atol=1e-4)
        np.testing.assert_allclose(
            index.compress(vectors[query]), index.vector(f"v{query:03}"), atol=1e-5
        )
    assert index.vector("v300") is None


def test_with_enough_videos_vectors_have_the_length_of_the_paper(tmp_path: Path) -> None:
    index = opened(write(tmp_path, clusters(400, 140, 9)))
    assert index.facts.num_features == 128
    assert np.linalg.norm(list(stored(index).values()), axis=1) == pytest.approx(1)


def test_a_small_sample_is_enough_for_the_components(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_index, "SAMPLE_BYTES", 4 * 20 * 60)
    index = opened(write(tmp_path, clusters(200, 20, 5)))
    assert (index.facts.num_videos, index.facts.num_features) == (200, 20)


def test_what_is_stale_is_left_out(tmp_path: Path) -> None:
    vectors = clusters(30, 20, 3)
    index = opened(write(tmp_path, vectors, changed=(3, 4), gone=(6,), empty=(9,)))
    expected = {f"v{i:03}" for i in range(30)} - {"v003", "v004", "v006", "v009"}
    assert set(index.video_ids()) == set(stored(index)) == expected
    assert (index.facts.num_videos, index.facts.num_left_out) == (26, 4)
    found = index.nearest(index.vector("v000"), 100, frozenset())
    assert {name for name, _ in found} == expected
    assert found[0] == ("v000", pytest.approx(1))


def test_neighbours_of_several_files_are_those_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clusters(300, 24, 40)
    one = opened(write(tmp_path / "one", vectors))
    monkeypatch.setattr(search_index, "ROWS_PER_FILE", 70)
    several = opened(write(tmp_path / "several", vectors))
    assert len(several.store.files(several.folder)) == 5
    names, matrix = list(stored(one)), np.stack(list(stored(one).values()))
    for query in range(0, 300, 40):
        vector, leave_out = one.vector(f"v{query:03}"), frozenset([f"v{query:03}"])
        assert (several.vector(f"v{query:03}") == vector).all()
        found = several.nearest(vector, 80, leave_out)
        assert found == one.nearest(vector, 80, leave_out)
        nearest = [names[i] for i in np.argsort(-matrix @ vector) if i != query][:80]
        assert [name for name, _ in found] == nearest
    assert len(several.nearest(matrix[0], 1000, frozenset())) == 300


def test_it_is_built_once_and_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clusters(90, 1200, 4)
    first = opened(write(tmp_path / "a", vectors, rows_per_file=64))
    second = opened(write(tmp_path / "b", vectors, rows_per_file=7, seed=2))
    files = sorted(path.name for path in (tmp_path / "a" / first.folder).iterdir())
    assert files == ["compression.safetensors", "part-00000.parquet"]
    assert first.folder == second.folder
    for name in files:
        content = (tmp_path / "a" / first.folder / name).read_bytes()
        assert (tmp_path / "b" / second.folder / name).read_bytes() == content, name
    schema = first.store.read_table(first.folder).schema
    assert schema.equals(SEARCH.schema(vector=encoding_type(30, "float32")))
    monkeypatch.setattr(search_index, "_build", lambda *_: pytest.fail("built again"))
    assert opened(first.store).facts == first.facts


def test_it_is_the_same_on_object_storage(tmp_path: Path, s3_bucket: str) -> None:
    vectors = clusters(300, 16, 4)
    local, remote = (opened(write(root, vectors)) for root in (tmp_path, f"{s3_bucket}/index"))
    assert remote.facts == local.facts
    leave_out = frozenset(["v003"])
    found = remote.nearest(remote.vector("v003"), 5, leave_out)
    assert found == local.nearest(local.vector("v003"), 5, leave_out)
    assert remote.compress(vectors[3]).tolist() == local.compress(vectors[3]).tolist()


def test_a_half_built_index_is_built_again_and_an_older_one_removed(tmp_path: Path) -> None:
    store = write(tmp_path, clusters(30, 12, 3))
    first = opened(store)
    before = store.read(f"{first.folder}/part-00000.parquet")
    store.delete(f"marks/{first.folder}/_done.json")
    store.publish(f"{first.folder}/part-00000.parquet", b"half")
    assert store.read(f"{opened(store).folder}/part-00000.parquet") == before
    store.publish("videos/cc/part.parquet", store.read(f"{VIDEOS_FOLDER}/part.parquet"))
    second = open_index(store, MADE_BY, "videos/cc")
    assert store.folders("search/vlad-pool5_appearance") == [second.folder] != [first.folder]


def test_the_quality_is_that_of_the_ranking(tmp_path: Path) -> None:
    labels = [["a", "x"] if i % 3 == 0 else ["b"] if i % 3 == 1 else [] for i in range(40)]
    index = opened(write(tmp_path, clusters(40, 10, 3), labels))
    compressed = stored(index)
    precisions = []
    for query in range(40):
        found = index.nearest(compressed[f"v{query:03}"], 40, frozenset([f"v{query:03}"]))
        right = [bool({*labels[int(name[1:])]} & {*labels[query]}) for name, _ in found]
        if not any(right):
            continue
        hits, area = 0, 0.0
        for seen, is_right in enumerate(right):
            if is_right:
                area += ((hits / seen if seen else 1) + (hits + 1) / (seen + 1)) / 2
                hits += 1
        precisions.append(area / hits)
    assert len(precisions) == 27
    assert index.facts.map == pytest.approx(np.mean(precisions))
    assert index.facts.num_queries == 27
    without = opened(write(tmp_path / "none", clusters(40, 10, 3))).facts
    assert (without.map, without.num_queries) == (None, 0)


def test_too_few_videos_are_refused(tmp_path: Path) -> None:
    store = write(tmp_path, clusters(5, 10, 2), changed=(0, 1, 2))
    with pytest.raises(RunError, match=r"at least 3 of today's videos, found 2; too few"):
        opened(store)


def test_equal_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"vlad-pool5_appearance/aa: compress.num_features"):
        opened(write(tmp_path, np.ones((9, 4), np.float32)))


def test_broken_encodings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clusters(60, 4, 2)
    vectors[8, 1] = np.nan
    with pytest.raises(RunError, match="expected finite vectors"):
        opened(write(tmp_path / "sampled", vectors))
    # By chance the broken one is not in the sample.
    monkeypatch.setattr(search_index, "SAMPLE_BYTES", 4 * 4 * 9)
    with pytest.raises(RunError, match="in 1 of 60, such as that of 'v008'"):
        opened(write(tmp_path / "other", vectors))


def test_nothing_of_an_index_is_a_pickle_or_a_file_of_faiss(tmp_path: Path) -> None:
    index = opened(write(tmp_path, clusters(30, 16, 4)))
    assert {path.suffix for path in (tmp_path / index.folder).iterdir()} == {
        ".parquet",
        ".safetensors",
    }
