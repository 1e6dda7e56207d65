"""Boxes, several sizes and stored projections through a whole run, of images and films together."""

import csv
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import confidence, predict
from jobs.fcvid_encode import main
from pipelines.doctor import examine
from pipelines.storage.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.timeout(400)]

SPECIES = ("001.Black_footed_Albatross", "005.Crested_Auklet")
SETTINGS = (
    "split.kind=given",
    "sampling.num_frames=2",
    "describe.streams=dense",
    "describe.pca_components=16",
    "picture.scales=64,96",
    "picture.box=crop",
    "fit.num_frames=40",
    "encode.encoders=ave@scales=mpp,ave@sides=96,vlad@scales=csf:num_centroids=3:regions=true",
    "classify.fusions=",
    "classify.final=all",
    "evaluate.bootstrap=10",
)
STREAM = "features_12_dense"
ENCODINGS = "encodings/*/*/*.parquet"


@pytest.fixture(scope="module")
def table(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of birds with boxes, and of films without."""
    folder = data / "images" / "cub"
    with open(folder / "labels.csv", encoding="utf-8") as file:
        birds = [row for row in csv.DictReader(file) if row["path"].startswith(SPECIES)]
    rows = []
    for species in SPECIES:
        own = [row for row in birds if row["path"].startswith(species)]
        rows += [row | {"path": str(folder / row["path"])} for row in own[:6]]
    for person, split in (("daria", "train"), ("denis", "train"), ("eli", "test")):
        path = data / "labelled" / "weizmann" / "walk" / f"{person}_walk.avi"
        rows.append({"path": str(path), "label": "walk", "split": split})
    file = tmp_path_factory.mktemp("manifest") / "all.csv"
    write(file, rows)
    return file


def write(file: Path, rows: list[dict]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as opened:
        fields = ("path", "label", "split", "box_x", "box_y", "box_width", "box_height")
        writer = csv.DictWriter(opened, fields, restval="")
        writer.writeheader()
        writer.writerows(rows)


def run(data: Path, manifest: Path, out: Path, *extra: str) -> int:
    weights = f"describe.weights={data / 'weights' / 'squeezenet1_0.safetensors'}"
    flags = ["--videos", str(manifest), "--out", str(out), "--recipe", "demo", *extra]
    for setting in (weights, *SETTINGS):
        flags += ["--set", setting]
    return main(flags)


def rows(out: Path, pattern: str) -> list[dict]:
    files = [file for file in sorted(out.glob(pattern)) if file.name[0] != "."]
    tables = [pq.read_table(file).replace_schema_metadata(None) for file in files]
    return pa.concat_tables(tables, promote_options="default").to_pylist()


@pytest.fixture(scope="module")
def out(local_ray: None, data: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert run(data, table, folder) == 0
    return folder


def test_tables_hold_boxes_scales_and_projected_rows(out: Path, table: Path) -> None:
    with open(table, encoding="utf-8") as file:
        given = {row["path"]: row for row in csv.DictReader(file)}
    for row in rows(out, "videos/*/*.parquet"):
        box = given[row["video_id"]]["box_width"]
        assert row["box_width"] == (float(box) if box else None)
    described = rows(out, "descriptors/*/*.parquet")
    assert {row["status"] for row in described} == {"ok"}
    # 3 x 3 positions at 64, 5 x 5 at 96, of 16 values each; films have two frames.
    for row in described:
        assert len(row[STREAM]) == row["num_frames"] * (9 + 25)
        assert {len(values) for values in row[STREAM]} == {16}
    lengths = {row["encoder"]: len(row["vector"]) for row in rows(out, ENCODINGS)}
    assert lengths == {
        "ave@scales=mpp": 16,
        "ave@sides=96": 16,
        "vlad@scales=csf:num_centroids=3:regions=true": 3 * 16 * 2 * 4,
    }


def test_vectors_are_those_of_the_stored_rows(out: Path) -> None:
    stored = {row["video_id"]: row for row in rows(out, "descriptors/*/*.parquet")}
    pooled_rows = [r for r in rows(out, ENCODINGS) if r["encoder"] == "ave@scales=mpp"]
    assert len(pooled_rows) == len(stored)
    for row in pooled_rows:
        x = np.array(stored[row["video_id"]][STREAM], np.float64).reshape(-1, 34, 16)
        means = [part.mean((0, 1)) for part in (x[:, :9], x[:, 9:])]
        pooled = sum(mean / np.linalg.norm(mean) for mean in means)
        rooted = np.sign(pooled) * np.sqrt(np.abs(pooled))
        np.testing.assert_allclose(row["vector"], rooted / np.linalg.norm(rooted), atol=1e-4)


def test_a_second_run_has_nothing_to_do_and_the_run_is_sound(
    out: Path, data: Path, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert run(data, table, out) == 0
    assert "nothing to do: every step is complete" in caplog.text
    assert examine.examine(Store(str(out))).findings == ()


def test_a_lost_projection_comes_back_as_it_was(out: Path, data: Path, table: Path) -> None:
    [file] = out.glob("projections/*.safetensors")
    before = file.read_bytes()
    file.unlink()
    assert run(data, table, out) == 0
    assert file.read_bytes() == before
    assert not [*out.glob("projections/*/*.parquet")]


def test_another_box_describes_its_picture_again_and_no_other(
    out: Path, data: Path, table: Path
) -> None:
    with open(table, encoding="utf-8") as file:
        given = list(csv.DictReader(file))
    moved = next(row for row in given if row["split"] == "test" and row["box_x"])
    before = {row["video_id"]: row["source"] for row in rows(out, "videos/*/*.parquet")}
    changed = table.with_name("moved.csv")
    write(changed, [row | ({"box_width": "40"} if row is moved else {}) for row in given])
    assert run(data, changed, out, "--steps", "index,describe") == 0
    after = {row["video_id"]: row["source"] for row in rows(out, "videos/*/*.parquet")}
    assert {name for name in after if after[name] != before[name]} == {moved["path"]}
    assert len(rows(out, "descriptors/*/*.parquet")) == len(given) + 1
    assert run(data, table, out) == 0


def test_new_videos_have_boxes_and_the_projection_of_the_run(
    out: Path, table: Path, tmp_path: Path
) -> None:
    flags = ["--videos", str(table), "--out", str(out), "--to", str(tmp_path / "p.parquet")]
    assert predict.main(flags) == 0
    of_run = {(r["encoder"], r["video_id"]): r["vector"] for r in rows(out, ENCODINGS)}
    again = rows(tmp_path / "p.work", ENCODINGS)
    assert len(again) == len({video for _, video in of_run})
    for row in again:
        assert row["vector"] == of_run[row["encoder"], row["video_id"]]


def test_the_confidence_of_a_class_is_painted_and_in_a_table(
    out: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(table, encoding="utf-8") as file:
        bird = next(row["path"] for row in csv.DictReader(file) if row["box_x"])
    for encoder in ("ave@scales=mpp", "vlad@scales=csf:num_centroids=3:regions=true"):
        flags = ["--out", str(out), "--image", bird, "--to", str(tmp_path / "map.png")]
        assert confidence.main([*flags, "--encoder", encoder, "--class", "walk"]) == 0
        assert "walk: " in capsys.readouterr().out
        assert Image.open(tmp_path / "map.png").size == (512, 512)
        [row] = pq.read_table(tmp_path / "map.parquet").to_pylist()
        assert (row["encoder"], row["class"], row["cells"]) == (encoder, "walk", 64)
        values = np.array(row["values"])
        assert values.shape == (64**2,)
        assert np.isfinite(values).all()
        assert len(set(values.tolist())) > 9
    assert confidence.main([*flags, "--class", "cat"]) == 2
    assert "--class cat: expected one of " in capsys.readouterr().err


def test_a_plan_counts_the_rows_of_all_scales(
    data: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, table, tmp_path, "--plan", "--set", "plan.probe_s=2") == 0
    planned = Store(str(tmp_path)).read_json("plan.json")
    assert planned
    frame_bytes = planned["measured"]["rates"]["frame_bytes"]
    assert 0.5 * 34 * 16 * 2 < frame_bytes < 20 * 34 * 16 * 2
