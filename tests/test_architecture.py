"""The layers: jobs -> pipelines -> encoders, and no Ray or Arrow in encoders."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "encoders": {"encoders"},
    "pipelines": {"encoders", "pipelines"},
    "jobs": {"encoders", "pipelines", "jobs"},
}


def imports(file: Path) -> set[str]:
    """Top-level names of all modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("layer", ALLOWED)
def test_imports_point_downwards(layer: str) -> None:
    files = sorted((ROOT / layer).glob("*.py"))
    assert len(files) > 1
    for file in files:
        ours = imports(file) & {"encoders", "pipelines", "jobs", "tests", "benchmarks"}
        assert ours <= ALLOWED[layer], file


@pytest.mark.slow
def test_encoders_run_without_ray_and_arrow() -> None:
    script = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('ray', 'pyarrow', 'pydantic', 'decord', 'av', 'fsspec'):\n"
        "            raise ImportError('blocked: ' + name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import importlib, pkgutil, encoders\n"
        "names = [m.name for m in pkgutil.iter_modules(encoders.__path__)]\n"
        "for name in names: importlib.import_module('encoders.' + name)\n"
        "print(len(names))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(list((ROOT / "encoders").glob("[a-z]*.py")))


def test_settings_need_no_torch() -> None:
    """A wrong flag must show at once: the modules that check flags load nothing heavy."""
    script = "import sys, pipelines.flags\nprint([m for m in ('torch', 'ray', 'av') if m in sys.modules])"
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
    """Each actor and task of a step is a new process; torch takes seconds of it, torchvision as long again."""
    script = f"import sys, {modules}\nprint({without!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stdout + done.stderr
