"""What a job uploads: the code, by Ray's own packaging, and none of what may lie beside it."""

import shutil
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[1]
LAYERS = ("encoders", "pipelines", "jobs", "video_fisher")
MIB = 2**20


@pytest.fixture
def package(tmp_path: Path) -> zipfile.ZipFile:
    """The package of this checkout with big folders, caches and secrets in it."""
    tree = tmp_path / "checkout"
    tree.mkdir()
    for layer in (*LAYERS, "docs", "tests", "benchmarks", "deploy"):
        shutil.copytree(ROOT / layer, tree / layer)
    whole = (".gitignore", ".rayignore", "pyproject.toml", "README.md")
    for name in (*whole, "cluster.yaml", "requirements.lock"):
        shutil.copy(ROOT / name, tree)
    for folder in (
        ".venv/lib/torch",
        ".venv-312/lib",
        ".git/objects/pack",
        "data/videos",
        "runs/fcvid/descriptors",
        "demo_out/run",
        "weizmann_out/run",
        "build/lib",
        "encoders/__pycache__",
        ".pytest_cache",
        "video_fisher.egg-info",
    ):
        (tree / folder).mkdir(parents=True, exist_ok=True)
        (tree / folder / "big.bin").write_bytes(bytes(MIB))
    for secret in (".ray_token", ".env", "key.pem"):
        (tree / secret).write_text("secret")
    (tree / "pipelines" / "data").mkdir()
    (tree / "pipelines" / "data" / "kept.txt").write_text("a folder of ours with a common name")
    target = tmp_path / "package.zip"
    create_package(str(tree), target, include_gitignore=True)
    return zipfile.ZipFile(target)


def test_the_upload_is_the_code_alone(package: zipfile.ZipFile) -> None:
    names = {info.filename for info in package.infolist() if not info.is_dir()}
    code = {
        str(file.relative_to(ROOT))
        for layer in LAYERS
        for file in (ROOT / layer).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    at_top = {".gitignore", ".rayignore", "pyproject.toml", "README.md"}
    assert names == code | at_top | {"pipelines/data/kept.txt"}


def test_the_upload_is_small(package: zipfile.ZipFile) -> None:
    assert Path(package.filename).stat().st_size < 3 * MIB
    assert sum(info.file_size for info in package.infolist()) < 3 * MIB
