"""The index: its vectors and neighbours against plain loops, what it leaves out, and what it reads."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
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
    """VIDEOS and ENCODINGS of videos v000, v001, ...: `changed`, `gone` from VIDEOS, or without descriptors."""
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


def test_a_large_index_finds_nearly_all_in_a_few_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clusters(1200, 24, 40)
    store = write(tmp_path, vectors, rows_per_file=500)
    exact = opened(store)
    assert (exact.facts.num_cells, exact.facts.recall) == (1, 1)
    compressed = stored(exact)
    monkeypatch.setattr(search_index, "MAX_FLAT", 500)
    monkeypatch.setattr(search_index, "ROWS_PER_FILE", 700)
    index = opened(store)
    assert index.facts.num_cells == 32
    assert index.facts.recall >= 0.95
    table = store.read_table(index.folder)
    assert table["cell"].to_pylist() == sorted(table["cell"].to_pylist())
    again = stored(index)
    assert all((again[name] == vector).all() for name, vector in compressed.items())
    names, matrix = list(compressed), np.stack(list(compressed.values()))
    hits = num_read = 0
    for query in range(0, 1200, 40):
        vector = compressed[f"v{query:03}"]
        nearest = {names[i] for i in np.argsort(-matrix @ vector)[:10]}
        hits += len(nearest & {name for name, _ in index.nearest(vector, 10, frozenset())})
        num_read += sum(rows.num_rows for rows in index._candidates(vector, 10))
    assert hits / 300 >= 0.93
    assert num_read / 30 < 1200 / 3
    # Cells that hold too few are not the end of the search.
    assert len(index.nearest(compressed["v000"], 1000, frozenset(["v000"]))) == 1000


def test_only_row_groups_of_the_cells_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_index, "MAX_FLAT", 100)
    monkeypatch.setattr(search_index, "ROWS_PER_GROUP", 10)
    store = write(tmp_path, clusters(400, 16, 16))
    index = opened(store)
    num_read = []
    read_row_groups = pq.ParquetFile.read_row_groups

    def counted(file: pq.ParquetFile, groups: list[int], **how: object) -> pa.Table:
        table = read_row_groups(file, groups, **how)
        num_read.append(table.num_rows)
        return table

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    assert index.nearest(index.vector("v005"), 3, frozenset())[0][0] == "v005"
    assert 0 < sum(num_read) < 200


def test_cells_that_are_empty_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 videos only six differ: most cells are empty, and lie between others in a file."""
    monkeypatch.setattr(search_index, "MAX_FLAT", 100)
    monkeypatch.setattr(search_index, "ROWS_PER_FILE", 100)
    index = opened(write(tmp_path, clusters(6, 20, 6)[np.arange(300) % 6]))
    sizes = safetensors.numpy.load(index.store.read(f"{index.folder}/cells.safetensors"))["sizes"]
    empty = np.flatnonzero(sizes == 0)
    occupied = np.flatnonzero(sizes)
    assert ((occupied[0] < empty) & (empty < occupied[-1])).any()
    assert len(index.nearest(index.vector("v001"), 299, frozenset(["v001"]))) == 299
    monkeypatch.setattr(Index, "_probed", lambda *_: empty.astype(np.int32))
    assert index.nearest(index.vector("v001"), 5, frozenset()) == []


def test_it_is_built_once_and_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clusters(90, 1200, 4)
    first = opened(write(tmp_path / "a", vectors, rows_per_file=64))
    second = opened(write(tmp_path / "b", vectors, rows_per_file=7, seed=2))
    files = sorted(path.name for path in (tmp_path / "a" / first.folder).iterdir())
    assert files == ["_done.json", "compression.safetensors", "part-00000.parquet"]
    assert first.folder == second.folder
    for name in files:
        content = (tmp_path / "a" / first.folder / name).read_bytes()
        assert (tmp_path / "b" / second.folder / name).read_bytes() == content, name
    schema = first.store.read_table(first.folder).schema
    assert schema.equals(SEARCH.schema(vector=encoding_type(30, "float32")))
    monkeypatch.setattr(search_index, "_build", lambda *_: pytest.fail("built again"))
    assert opened(first.store).facts == first.facts


def test_it_is_the_same_on_object_storage(
    tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_index, "MAX_FLAT", 100)
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
    store.delete(f"{first.folder}/_done.json")
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


def test_the_cells_are_plain_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of an index is a pickle or a file of faiss."""
    monkeypatch.setattr(search_index, "MAX_FLAT", 100)
    index = opened(write(tmp_path, clusters(300, 16, 4)))
    cells = safetensors.numpy.load(index.store.read(f"{index.folder}/cells.safetensors"))
    assert cells["centroids"].shape == (16, index.facts.num_features)
    assert cells["sizes"].sum() == 300
    assert {path.suffix for path in (tmp_path / index.folder).iterdir()} == {
        ".json",
        ".parquet",
        ".safetensors",
    }
