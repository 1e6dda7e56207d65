"""The wheel: what is in it, and that it works from a folder that knows nothing of the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipelines import __version__
from tests.deploy.files import ROOT

pytestmark = pytest.mark.slow

PACKAGES = ("encoders", "jobs", "pipelines", "video_fisher")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network from a copy of its files."""
    tree, target = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--disable-pip-version-check", "--quiet", "--wheel-dir", str(target), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = target.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed in, with what it needs beside it."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target"]
    command += [str(target), "--disable-pip-version-check", str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a package `jobs` of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "jobs").mkdir()
    (folder / "jobs" / "__init__.py").write_text("raise SystemExit('not video-fisher')")
    return folder


def test_it_has_the_packages_and_their_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.suffix in (".py", ".j2", ".sql", ".toml", ".typed")
    }
    about = f"video_fisher-{__version__}.dist-info"
    assert {name for name in names if not name.startswith(about)} == code
    assert f"{about}/licenses/LICENSE" in names
    assert "video_fisher/py.typed" in names


def ran(site: Path, elsewhere: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        words, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("module", [False, True])
def test_the_command_works_elsewhere(site: Path, elsewhere: Path, *, module: bool) -> None:
    program = [sys.executable, str(site / "bin" / "video-fisher")]
    if module:
        program = [sys.executable, "-m", "video_fisher"]
    helped = ran(site, elsewhere, *program, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "compare-encoders" in helped.stdout
    refused = ran(site, elsewhere, *program, "run", "--encoder-typo")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: --encoder-typo: no such flag")
    out = ("--videos", "v", "--out", "o", "--set", "vlad.num_centroid=3")
    refused = ran(site, elsewhere, *program, "run", *out)
    assert refused.returncode == 2
    assert "did you mean num_centroids?" in refused.stderr
    assert not (elsewhere / "o").exists()


def test_the_package_is_imported_elsewhere(site: Path, elsewhere: Path) -> None:
    script = (
        "import video_fisher as vf, pipelines\n"
        "print(vf.__version__, pipelines.__file__)\n"
        "print(vf.estimators.Vlad(3, random_state=0).fit_transform([[[0., 1.], [1., 0.]]] * 2))\n"
    )
    done = ran(site, elsewhere, sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{__version__} {site}/pipelines/__init__.py\n")


@pytest.mark.ray
def test_workers_load_our_packages_also_beside_others_of_their_names(
    site: Path, data: Path, tmp_path: Path
) -> None:
    """Ray's workers look into the driver's folder first; paths stay relative to the user's."""
    for name in ("pipelines", "encoders"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not video-fisher')")
    (tmp_path / "videos").mkdir()
    shutil.copy(next((data / "labelled" / "weizmann").rglob("*.avi")), tmp_path / "videos")
    program = [sys.executable, str(site / "bin" / "video-fisher")]
    flags = ("--videos", "videos", "--out", "out", "--steps", "index")
    done = ran(site, tmp_path, *program, "run", *flags)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out" / "segments").glob("*/*.parquet"))
    assert "Set ray log level" not in done.stderr
    assert "index: done" in done.stderr + done.stdout
