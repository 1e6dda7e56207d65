"""Four runs beside DQ Table 6: the table, the page, and the job itself on a few birds."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pyarrow as pa
import pytest
from PIL import Image

from jobs import fine_grained as job
from pipelines.run.saved import SavedRun
from pipelines.storage.store import Store
from pipelines.studies import fine_grained


def run(folder: Path, numbers: dict[str, float]) -> SavedRun:
    store = Store(str(folder))
    constant = {"stream": "s", "fusion": "none", "split": "all", "metric": "accuracy"}
    rows = [constant | {"encoder": name, "value": value} for name, value in numbers.items()]
    store.publish_table("metrics/a.parquet", pa.Table.from_pylist(rows), {})
    return cast(SavedRun, SimpleNamespace(store=store, tables={"metrics": "metrics"}))


def test_results_stand_beside_the_number_of_their_scenario(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "a", {"ave": 0.5, "fv_vae@lambda3=0": 0.75, "tsn": 0.4}),
        run(tmp_path / "b", {"ave": 0.6, "fv_vae@lambda3=0": 0.8}),
        run(tmp_path / "c", {"ave": 0.55}),
        run(tmp_path / "d", {"fv_vae@lambda3=0": 1.0}),
    ]
    found = {row.name: row for row in fine_grained.rows(runs)}
    assert found["ave"].own == (0.5, 0.6, 0.55, None)
    assert found["ave"].paper == (0.61, 0.704, 0.653, 0.764)
    assert found["fv_vae@lambda3=0"].paper == (0.793, 0.824, 0.795, 0.836)
    assert found["tsn"].paper == (None,) * 4
    lines = fine_grained.text(list(found.values()))
    assert lines[0].split("  ")[0] == "result"
    assert "0.750 (0.793)" in lines[2]
    assert lines[3].split() == ["tsn", "-", "0.400", "-", "-", "-"]
    uri = fine_grained.publish(Store(str(tmp_path)), list(found.values()), {"boxes": {"<b>": b"x"}})
    page = Path(uri.removeprefix("file://")).read_text(encoding="utf-8")
    assert "0.750 (0.793)" in page
    assert "&lt;b&gt;" in page


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_the_job_fine_tunes_and_shows_what_the_network_looks_at(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data / "images" / "cub"
    flags = ["--videos", str(folder), "--labels", str(folder / "labels.csv"), "--limit", "24"]
    flags += ["--out", str(tmp_path), "--recipe", "weizmann", "--pictures", "2"]
    for setting in (
        f"describe.weights={data / 'weights' / 'squeezenet1_0.safetensors'}",
        "describe.streams=dense",
        "split.kind=given",
        "picture.resize_px=96",
        "picture.crop_px=96",
        "encode.encoders=ave,fv_vae@num_latents=3:num_steps=20",
        "evaluate.bootstrap=10",
        "network.pictures=0",
        "tsn.num_steps=3",
        "tsn.rate_at=",
        "tsn.batch_clips=4",
    ):
        flags += ["--set", setting]
    assert job.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    (header,) = (n for n, line in enumerate(lines) if line.startswith("result "))
    assert [line.split()[0] for line in lines[header + 1 :]][:3] == [
        "ave",
        "fv_vae@num_latents=3:num_steps=20",
        "tsn",
    ]
    assert (tmp_path / "fine_grained.html").read_text(encoding="utf-8").count("<img") == 8
    described = {len(list((tmp_path / f).glob("descriptors/*"))) for f in job.RUNS.values()}
    assert described == {1}
    # A fine-tuned network is another one, and so are its descriptors.
    assert (
        len({p.name for f in job.RUNS.values() for p in (tmp_path / f).glob("descriptors/*")}) == 4
    )
    assert job.main(flags) == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--plan"], "--steps and --plan"),
        (["--steps", "index"], "--steps and --plan"),
    ],
)
def test_wrong_flags_are_said_before_anything_starts(
    wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    assert job.main(["--videos", str(tmp_path), "--out", str(tmp_path / "o"), *wrong]) == 2
    assert said in capsys.readouterr().err
