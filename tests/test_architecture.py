"""The layers video_fisher -> jobs -> pipelines -> encoders, the rooms inside them, and no Ray or
Arrow in encoders."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

ROOT = house.ROOT


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """{module: modules of the layers that it imports}."""
    return house.imports()


def test_all_of_the_code_is_looked_at(graph: dict[str, set[str]]) -> None:
    for layer in house.LAYERS:
        tracked = subprocess.run(
            ["git", "ls-files", f"{layer}/*.py"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        files = {name for name in tracked.stdout.split() if not name.endswith("__init__.py")}
        seen = {f"{name.replace('.', '/')}.py" for name in graph if name.startswith(f"{layer}.")}
        assert seen
        assert files <= seen
    assert {house.room(name) for name in graph} == set(house.ROOMS), "each room has a module"


def test_imports_point_down_the_list_of_rooms(graph: dict[str, set[str]]) -> None:
    assert house.upward(graph) == []


def test_no_module_of_the_layers_imports_tests_or_benchmarks() -> None:
    for file in house.modules().values():
        lines = file.read_text(encoding="utf-8").splitlines()
        starts = ("import tests", "from tests", "import benchmarks", "from benchmarks")
        assert [line for line in lines if line.strip().startswith(starts)] == [], file


def test_there_is_no_circle_between_files_or_rooms(graph: dict[str, set[str]]) -> None:
    assert house.circle(graph) == []
    rooms: dict[str, set[str]] = {}
    for name, others in graph.items():
        below = {house.room(other) for other in others} - {house.room(name)}
        rooms.setdefault(house.room(name), set()).update(below)
    assert house.circle(rooms) == []


def test_no_folder_is_crowded() -> None:
    assert house.crowded() == {}


def test_no_file_repeats_the_name_of_its_room() -> None:
    for name in house.modules():
        *_, folder, file = name.split(".")
        assert folder not in file.split("_"), name


def test_packages_own_files_are_empty() -> None:
    for layer in ("encoders", "pipelines"):
        for file in (ROOT / layer).rglob("__init__.py"):
            lines = file.read_text(encoding="utf-8").split()
            assert not lines or lines[0] == "__version__", file


def test_tests_mirror_the_rooms() -> None:
    for layer in ("encoders", "pipelines"):
        rooms = {path.name for path in (ROOT / layer).iterdir() if (path / "__init__.py").exists()}
        mirrored = {path.name for path in (ROOT / "tests" / layer).iterdir() if path.is_dir()}
        assert mirrored - {"__pycache__"} <= rooms


def _written(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "upward", "circle"),
    [
        ({"pipelines/run/a.py": "from pipelines.fit import b", "pipelines/fit/b.py": ""}, 1, False),
        ({"pipelines/fit/b.py": "def f():\n    import jobs.c", "jobs/c.py": ""}, 1, False),
        (
            {"encoders/svm/a.py": "from pipelines.run.b import x", "pipelines/run/b.py": ""},
            1,
            False,
        ),
        ({"pipelines/fit/b.py": "from pipelines.run import a", "pipelines/run/a.py": ""}, 0, False),
        (
            {
                "pipelines/fit/a.py": "from pipelines.fit import b",
                "pipelines/fit/b.py": "from pipelines.fit.a import x",
            },
            0,
            True,
        ),
    ],
)
def test_a_wrong_import_is_found(
    tmp_path: Path, files: dict[str, str], upward: int, circle: bool
) -> None:
    _written(tmp_path, files)
    graph = house.imports(tmp_path)
    assert len(house.upward(graph)) == upward
    assert bool(house.circle(graph)) == circle


def test_a_crowded_folder_is_found(tmp_path: Path) -> None:
    _written(tmp_path, {f"pipelines/fit/m{number}.py": "" for number in range(13)})
    assert house.crowded(tmp_path) == {"pipelines.fit": 13}


def test_the_picture_of_the_house_is_of_this_code() -> None:
    assert house.picture() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), (
        "CONTRIBUTING.md: expected the picture that `python -m tests.house` prints"
    )


@pytest.mark.slow
def test_encoders_run_without_ray_and_arrow() -> None:
    script = (
        "import sys\nclass Block:\n    def find_spec(self, name, path=None, target=None):\n       "
        " if name.partition('.')[0] in ('ray', 'pyarrow', 'decord', 'av', 'fsspec', 'pydantic'):\n "
        "           raise ImportError('blocked: ' + name)\nsys.meta_path.insert(0, Block())\nimport"
        " importlib, pkgutil, encoders\nnames = [m.name for m in"
        " pkgutil.walk_packages(encoders.__path__, 'encoders.')]\nfor name in names:"
        " importlib.import_module(name)\nprint(len(names))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    known = [name for name in house.modules() if name.startswith("encoders.")]
    assert int(done.stdout) >= len(known) > 40


def test_settings_need_no_torch() -> None:
    """A wrong flag must show at once: the modules that check flags load nothing heavy."""
    script = (
        "import sys, pipelines.settings.recipes, pipelines.run.lock\n"
        "print([m for m in ('torch', 'ray', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "without"),
    [
        ("pipelines.cluster.sink, pipelines.run.codebook, pipelines.video.stages", "torch"),
        ("pipelines.encode.stage, pipelines.fit.codebooks, pipelines.run.job", "torchvision"),
    ],
)
def test_workers_load_what_they_need(modules: str, without: str) -> None:
    """Each actor and task of a step is a new process; torch takes seconds of it, torchvision as
    long again."""
    script = f"import sys, {modules}\nprint({without!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stdout + done.stderr
