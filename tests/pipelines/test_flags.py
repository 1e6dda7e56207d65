"""Flags as values: a recipe, a file under it, settings on top; what is wrong is refused before
torch is loaded."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.flags import configuration
from pipelines.settings.config import Config
from pipelines.settings.recipes import recipe

ROOT = Path(__file__).parents[2]

REFUSED = """
import sys, time
from jobs.fcvid_encode import main
code = main(["--videos", "x", "--out", "y", *sys.argv[1:]])
print(code, *(name for name in ("torch", "ray", "torchvision") if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--set encode.encoders=vlat", "got 'vlat'; did you mean vlad?"),
        ("--set encode.encoders=vlad@num_centroid=3", "did you mean num_centroids?"),
        ("--set vlad.num_centroids=0", "vlad.num_centroids: expected at least 1, got 0"),
        ("--set sampler.fps=1", "no section 'sampler'; did you mean sampling?"),
        ("--set sampling.polcy=fps", "sampling: no field 'polcy'; did you mean policy?"),
        ("--set sampling.policy=unifrom", "got 'unifrom'; did you mean uniform?"),
        (
            "--set describe.streams=diference",
            "got 'diference'; did you mean difference?",
        ),
        ("--set fv_vae=relesed", "got 'relesed'; did you mean released?"),
        ("--set plan.gpu=h200", "plan.gpu: expected one of t4, l4, a10g, a100, h100, or another"),
        ("--plan --set plan.gpu=a100g", "got 'a100g'; did you mean a10g or a100 or h100?"),
        ("--steps describ", "got ['describ']; did you mean describe?"),
        ("--recipe weizman", "got 'weizman'; did you mean weizmann?"),
        ("--limit 0", "--limit: expected at least 1, got 0"),
        ("--config /nowhere.yaml", "--config /nowhere.yaml: cannot read it (FileNotFoundError"),
    ],
)
def test_a_wrong_value_is_refused_before_torch_and_ray_are_loaded(flags: str, message: str) -> None:
    command = [sys.executable, "-c", REFUSED, *flags.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "2\n", done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_it_is_refused_in_a_second() -> None:
    """Of this process's own time: others may have the machine."""
    script = f"import time; at = time.process_time(){REFUSED}print(time.process_time())"
    command = [sys.executable, "-c", script, "--set", "vlad.num_centroids=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert float(done.stdout.split()[-1]) < 1.0


def written(folder: Path, text: str, name: str = "settings.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def made(file: str | None, *settings: str, name: str | None = None) -> Config:
    return configuration(name, file, settings, default_recipe="fcvid")


YAML = """
vlad: {num_centroids: 7, intra: true}
describe:
  spp_levels: [2, 1]
  weights: random:3
classify: {tolerance: 1e-5, c: [1, 10]}
fv_vae: small
"""


def test_a_file_lies_between_the_recipe_and_the_settings(tmp_path: Path) -> None:
    wanted = recipe("demo").with_settings(
        [
            *("vlad.num_centroids=7", "vlad.intra=true", "describe.spp_levels=2,1"),
            *("describe.weights=random:3", "classify.tolerance=1e-5", "classify.c=1,10"),
            "fv_vae=small",
        ]
    )
    file = written(tmp_path, YAML)
    assert made(file, name="demo") == wanted
    assert made(file).recipe == "fcvid"
    assert made(file, "vlad.num_centroids=9", name="demo") == wanted.with_settings(
        ["vlad.num_centroids=9"]
    )
    first = configuration(
        None, file, (), default_recipe="fcvid", first=("vlad.num_centroids=5", "fit.num_frames=5")
    )
    assert (first.vlad.num_centroids, first.fit.num_frames) == (7, 5)


def test_a_run_json_gives_the_configuration_of_its_run(tmp_path: Path) -> None:
    config = recipe("actions").with_settings(["vlad.num_centroids=3", "fv_vae.hidden=none"])
    record = {"steps": {}, "config": config.to_json(), "tables": {}}
    file = written(tmp_path, json.dumps(record), "run.json")
    assert made(file) == config
    assert made(file, name="actions") == config
    assert made(file, "vlad.num_centroids=4").vlad.num_centroids == 4
    with pytest.raises(ConfigError, match=r"run.json: recipe: expected demo, as --recipe says"):
        made(file, name="demo")


@pytest.mark.parametrize("name", ["config.yaml", "config.json"])
def test_values_of_a_file_are_those_of_set(tmp_path: Path, name: str) -> None:
    config = recipe("compare_encoders")
    file = written(tmp_path, json.dumps(config.to_json()), name)
    assert made(file) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vlad: {num_centroids: 0}", "vlad.num_centroids: expected at least 1, got 0"),
        ("vlad: {centroids: 3}", "vlad: no field 'centroids'; did you mean num_centroids?"),
        ("vlat: {num_centroids: 3}", "no section 'vlat'; did you mean vlad or evaluate?"),
        ("vlad: 3", "vlad: expected fields and their values, got 3"),
        ("fit: {num_frames: many}", "fit.num_frames: expected a whole number, got 'many'"),
        ("fit: {num_frames: 1.5}", "fit.num_frames: expected a whole number, got 1.5"),
        ("describe: {nodes: pool5}", "describe.nodes: expected a list, got 'pool5'"),
        ("describe: {nodes: [5]}", "describe.nodes: expected text, got 5"),
        ("encode: {encoders: [vlat]}", "encode.encoders: expected some of ['ave', 'bilinear', "),
        ("classify: {c: [.nan]}", "classify.c: expected a finite number, got nan"),
        ("recipe: wiezmann", "recipe: expected one of ['act', "),
        ("recipe: [1]", "recipe: expected one of ['act', "),
        ("vlad: {", "expected YAML or JSON, got while parsing"),
        ("- vlad", "expected sections with their fields, got list"),
        ("", "expected sections with their fields, got NoneType"),
    ],
)
def test_errors_name_the_file_and_the_field(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        made(file)
    assert str(error.value).startswith(f"--config {file}: {message}")


def test_a_price_table_of_ones_own_has_kinds_of_its_own() -> None:
    assert made(None, "plan.prices=mine.toml", "plan.gpu=h200").plan.gpu == "h200"
    assert dataclasses.asdict(made(None)) == dataclasses.asdict(recipe("fcvid"))
