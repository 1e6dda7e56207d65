"""Retrieval of a run: its average precisions against loops, crops of textures, and what its tables
and page hold."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb

from encoders.backbones import load
from encoders.codebooks.sample import FitSample
from encoders.descriptors.streams import Stream, positions
from encoders.registry import fit_encoder
from encoders.scores.retrieval import average_precision
from encoders.settings import VladSettings
from jobs.retrieve import main
from pipelines.errors import ConfigError
from pipelines.ledger import marks
from pipelines.search import retrieval_page
from pipelines.search.index import open_index
from pipelines.search.retrieve import retrieve
from pipelines.settings.config import Config
from pipelines.storage.store import Store
from tests.pipelines.report.page import HOSTILE, assert_fits, assert_stands_alone, assert_structure
from tests.pipelines.search.test_index import MADE_BY, VIDEOS_FOLDER, clusters, write

GROUP = 4
NUM_GROUPS = 10


def run(root: Path, vectors: np.ndarray, **of: tuple[int, ...]) -> Store:
    """A finished run whose vectors are these, of videos v000, v001, ..."""
    store = write(root, vectors, **of)
    config = Config().with_settings(["encode.encoders=vlad", "describe.nodes=pool5"])
    tables = {"videos": VIDEOS_FOLDER, "metrics": "metrics/none"}
    tables["encodings/vlad-pool5_appearance"] = MADE_BY.folder
    stream = Stream("pool5_appearance", "pool5", "appearance", 50, 3)
    record = {"config": config.to_json(), "tables": tables, "steps": {}}
    store.publish_json("run.json", record | {"streams": [dataclasses.asdict(stream)]})
    videos = VIDEOS_FOLDER.rpartition("/")[2]
    store.publish_json(marks.place(f"{MADE_BY.folder}/_done-{videos}.json"), {})
    return store


def truth_of(groups: np.ndarray, file: Path) -> str:
    """The first of each group is a query, the others its right answers."""
    rows = ["query,path,judgement"]
    for group in np.unique(groups):
        query, *right = np.flatnonzero(groups == group)
        rows += [f"v{query:03},v{answer:03},good" for answer in right]
    file.write_text("\n".join(rows))
    return str(file)


def textures(side: int = 160, crop: int = 96) -> np.ndarray:
    """Shifted crops [N, crop, crop, 3] of textures: stripes of two colours with some noise."""
    draw = np.random.default_rng(0)
    crops = []
    for group in range(NUM_GROUPS):
        y, x = np.mgrid[:side, :side] / side
        angle, waves = np.pi * group / NUM_GROUPS, 6 + 2 * (group % 5)
        stripes = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))
        tiles = np.kron(draw.normal(size=(side // 8, side // 8)), np.ones((8, 8)))
        light = np.clip(0.5 + 0.5 * stripes + 0.1 * tiles, 0, 1)[..., None]
        bright, dark = hsv_to_rgb(
            [(group / NUM_GROUPS, 0.9, 1), ((0.35 + 0.3 * group) % 1, 0.9, 0.5)]
        )
        picture = light * bright + (1 - light) * dark
        for top, left in draw.integers(side - crop, size=(GROUP, 2)):
            crops.append(picture[top : top + crop, left : left + crop])
    return (255 * np.clip(crops, 0, 1)).astype(np.uint8)


@pytest.mark.slow
def test_shifted_crops_of_a_texture_find_each_other(data: Path, tmp_path: Path) -> None:
    name, node = "squeezenet1_0", "features.5"
    weights = data / "weights" / f"{name}.safetensors"
    network = load.build(name, (node,), load.load_file(weights.read_bytes(), weights.name))
    rows = positions(network.maps(torch.from_numpy(textures()))[node], "per_position")
    sample = FitSample(frames=rows, video=torch.arange(len(rows)))
    vlad = fit_encoder("vlad", sample, VladSettings(num_centroids=16, intra=True), "l2")
    vectors = torch.stack([vlad.finalise(vlad.accumulate(part)) for part in rows])
    store = run(tmp_path / "run", vectors.numpy())
    groups = np.repeat(np.arange(NUM_GROUPS), GROUP)

    _, found = retrieve([store.root], truth_of(groups, tmp_path / "truth.csv"))
    assert found.results[0].whole.value == pytest.approx(1)
    # Of 40 images 13 values are kept, of which 9 tell 10 groups apart: the others are noise.
    assert found.results[0].compressed.value > 0.75

    shuffled = np.random.default_rng(1).permutation(groups)
    _, found = retrieve([store.root], truth_of(shuffled, tmp_path / "shuffled.csv"))
    draw = np.random.default_rng(2)
    right = np.arange(len(groups) - 1) < GROUP - 1
    chance = np.array([average_precision(draw.normal(size=len(right)), right) for _ in range(2000)])
    spread = 4 * chance.std() / np.sqrt(NUM_GROUPS)
    assert found.results[0].whole.value == pytest.approx(chance.mean(), abs=spread)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    vectors = clusters(60, 24, 15)
    store = run(folder / "run", vectors, empty=(8, 15))
    truth_of(np.arange(60) % 15, folder / "truth.csv")
    retrieve([store.root], str(folder / "truth.csv"))
    return folder


def test_the_tables_hold_what_loops_find(measured: Path) -> None:
    store, vectors = Store(str(measured / "run")), clusters(60, 24, 15)
    folder = store.folders("retrieval/vlad-pool5_appearance")[0]
    rows = store.read_table(folder).to_pylist()
    ap = {(row["compression"], int(row["query"][1:])): row["ap"] for row in rows}
    assert {row["truth"] for row in rows} == {"truth"}
    assert len(rows) == len(ap) == 2 * 15
    index = open_index(store, MADE_BY, VIDEOS_FOLDER)
    there = [i for i in range(60) if i not in (8, 15)]
    for query in range(15):
        right = {query + 15, query + 30, query + 45}
        nearest = sorted(there, key=lambda i: np.linalg.norm(vectors[i] - vectors[query]))
        whole = [i for i in nearest if i != query]
        own = frozenset([f"v{query:03}"])
        vector = index.vector(f"v{query:03}")
        for name, order in (
            ("none", whole),
            ("pca_whitening", vector is not None and index.nearest(vector, 60, own)),
        ):
            if query == 8:
                assert ap[name, query] == 0
                continue
            if name != "none":
                order = [int(video[1:]) for video, _ in order]
            hits, area = 0, 0.0
            for seen, video in enumerate(order):
                if video in right:
                    area += ((hits / seen if seen else 1) + (hits + 1) / (seen + 1)) / 2
                    hits += 1
            # v015 has no encoding: its query can find two of three at most.
            assert ap[name, query] == pytest.approx(area / len(right)), (name, query)


def test_metrics_are_the_means_with_their_intervals(measured: Path) -> None:
    store = Store(str(measured / "run"))
    folder = store.folders("retrieval/vlad-pool5_appearance")[0]
    ap = store.read_table(folder).to_pandas().groupby("compression")["ap"].mean()
    rows = {row["metric"]: row for row in store.read_table("retrieval_metrics").to_pylist()}
    assert rows.keys() == {"retrieval_mAP", "retrieval_mAP_compressed"}
    assert rows["retrieval_mAP"]["value"] == pytest.approx(ap["none"])
    assert rows["retrieval_mAP_compressed"]["value"] == pytest.approx(ap["pca_whitening"])
    for row in rows.values():
        assert row["ci_low"] < row["value"] < row["ci_high"]
        assert row["num_videos"] == 15


def test_a_query_is_found_first_where_it_is_one_of_its_answers(
    measured: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.csv"
    alone.write_text("query,path\nv000,v000\nv001,v001\n")
    _, found = retrieve([str(measured / "run")], str(alone), "oxford")
    assert found.results[0].whole.value == found.results[0].compressed.value == 1


def test_a_second_measurement_takes_the_place_of_the_first(tmp_path: Path) -> None:
    store = run(tmp_path / "run", clusters(30, 8, 10))
    truth = tmp_path / "truth.csv"
    for answer in ("v010", "v020"):
        truth.write_text(f"query,path\nv000,{answer}\n")
        retrieve([store.root], str(truth))
    other = tmp_path / "other.csv"
    other.write_text("query,path\nv000,v010\n")
    retrieve([store.root], str(other))
    folders = store.folders("retrieval/vlad-pool5_appearance")
    names = [store.read_table(folder)["truth"].to_pylist() for folder in folders]
    assert sorted(names) == [["other"] * 2, ["truth"] * 2]


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    store = run(tmp_path / "run", clusters(30, 8, 10))
    (tmp_path / "truth.csv").write_text("query,path\nv000,v010\n")
    with pytest.raises(ConfigError, match=r"expected encodings x, found --encoder vlad --stream"):
        retrieve([store.root], str(tmp_path / "truth.csv"), encoder="x")
    store.delete_folder("marks/encodings")
    with pytest.raises(ConfigError, match=r"expected complete encodings of vlad on pool5_app"):
        retrieve([store.root], str(tmp_path / "truth.csv"))


def test_the_command_prints_a_table_and_writes_a_page(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--out", str(measured / "run"), "--truth", str(measured / "truth.csv")]
    assert main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["encoder", "stream", "px", "D", "mAP", "P", "mAP", "after", "PCA"]
    assert lines[1].split()[:4] == ["vlad", "pool5_appearance", "224", "24"]
    assert lines[2] == "15 queries of truth"
    assert "Retrieval by truth" in Path(lines[3].removeprefix("page: ")).read_text()
    assert main(flags[:2]) == 2
    assert "error: --truth: expected a file with the right answers" in capsys.readouterr().err
    assert main([*flags[:3], "/nowhere.csv"]) == 2
    assert "error: --truth /nowhere.csv: no such file" in capsys.readouterr().err


def test_the_page_fits_a_phone_and_a_desktop(measured: Path, tmp_path: Path) -> None:
    _, found = retrieve([str(measured / "run")], str(measured / "truth.csv"))
    assert_fits(retrieval_page.render(found), tmp_path)


def test_the_page_draws_layers_and_sides_beside_the_paper(measured: Path) -> None:
    _, found = retrieve([str(measured / "run")], str(measured / "truth.csv"))
    first = found.results[0]
    several = tuple(
        dataclasses.replace(first, node=f"conv{i}", stream=f"conv{i}_dense", sides_px=side)
        for side in ("224", "448")
        for i in range(4)
    )
    found = dataclasses.replace(found, preset="holidays", results=several)
    drawn = retrieval_page.charts(found)
    assert [chart.title for chart in drawn] == ["Whole vectors", "After PCA with whitening"]
    names = [line.name for line in drawn[0].lines]
    assert names == ["vlad on appearance, 224 px", "vlad on appearance, 448 px"]
    assert "over the layers conv0, conv1, conv2, conv3" in drawn[0].alt
    html = retrieval_page.render(found, "a command")
    assert_stands_alone(html)
    assert_structure(html)
    assert all(text in html for text in ("VU Table 2.2", "VU Table 2.3", "0.897", "0.836"))
    assert html.count("Multi-resolution Spatial Search") == 1
    assert len(retrieval_page.beside(found)) == 2
    odd = dataclasses.replace(first, encoder=HOSTILE, stream=HOSTILE)
    assert_stands_alone(retrieval_page.render(dataclasses.replace(found, results=(odd,))))
