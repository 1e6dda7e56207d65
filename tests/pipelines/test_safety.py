"""What storage holds is data: nothing in it is run, and credentials stay out of what a run
writes."""

import ast
import json
import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from encoders.backbones import load
from pipelines.describe import weights
from pipelines.errors import ConfigError, RunError
from pipelines.run.lock import LOCK, RunLock
from pipelines.settings.sections import Describe
from pipelines.storage.retries import StorageError
from pipelines.storage.store import Store

ROOT = Path(__file__).parents[2]

UNPICKLERS = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "dill.load",
    "dill.loads",
    "joblib.load",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "pandas.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "runpy.run_path",
    "eval",
    "exec",
}


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """(full name, call) of a module's calls, with its imports' names resolved."""
    tree, names = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                a.asname or a.name.partition(".")[0]: a.name
                if a.asname
                else a.name.partition(".")[0]
                for a in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            yield names.get(first, first) + (f".{rest}" if rest else ""), node


def unsafe(source: str) -> list[str]:
    """The calls of a module that could run what a file says."""
    found = []
    for name, call in calls(source):
        options = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if (
            name in UNPICKLERS
            or (name == "torch.load" and options.get("weights_only") != "True")
            or (name == "numpy.load" and options.get("allow_pickle", "False") != "False")
        ):
            found.append(f"line {call.lineno}: {ast.unparse(call)}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(x)",
        "import pickle as p\np.load(x)",
        "from pickle import loads\nloads(x)",
        "import torch\ntorch.load(x)",
        "import torch\ntorch.load(x, weights_only=False)",
        "from torch import load as read\nread(x)",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "def f():\n    import joblib\n    joblib.load(x)",
        "import yaml\nyaml.load(x)",
        "eval(x)",
    ],
)
def test_the_search_finds_unpicklers(source: str) -> None:
    assert len(unsafe(source)) == 1


def test_no_code_unpickles() -> None:
    """Neither what storage holds nor what the decoder's process says."""
    files = [p for layer in ("encoders", "pipelines", "jobs") for p in (ROOT / layer).rglob("*.py")]
    assert len(files) > 40
    found = {str(p.relative_to(ROOT)): unsafe(p.read_text()) for p in files}
    assert {name: lines for name, lines in found.items() if lines} == {}
    safe = [n for p in files for n, _ in calls(p.read_text()) if n == "torch.load"]
    assert safe, "the search sees no torch.load at all"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.pt"])
def test_weights_that_would_run_code_are_refused(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()
    mark.unlink()
    torch.save({"a": Bomb(mark)}, tmp_path / name)
    settings = Describe(backbone="squeezenet1_0", weights=str(tmp_path / name))
    with pytest.raises(ConfigError):
        weights.resolve(settings).load()
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    with pytest.raises(load.WeightsError):
        load.load_file((tmp_path / name).read_bytes(), name)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["pickle", "numpy"])
def test_planted_tables_are_errors_not_code(tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "ran"
    store = Store(str(tmp_path / "run"))
    planted = tmp_path / "x.npy"
    np.save(planted, np.array([Bomb(mark)], object), allow_pickle=True)
    data = pickle.dumps(Bomb(mark)) if kind == "pickle" else planted.read_bytes()
    store.publish("t/x.parquet", data)
    store.publish("run.json", data)
    store.publish(LOCK, data)
    with pytest.raises(RunError, match="expected the bytes that were written"):
        store.read_table("t")
    with pytest.raises(ConfigError, match="expected a JSON object"):
        store.read_json("run.json")
    with RunLock(store, "x", heartbeat_s=0.1):
        pass
    assert not mark.exists()


def test_credentials_are_in_nothing_that_a_run_writes_or_says(
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The keys of the environment, through the errors, the lock and the logs of our own modules."""
    import fsspec

    secrets = {"AWS_ACCESS_KEY_ID": "AKIASECRETKEY0000001", "AWS_SECRET_ACCESS_KEY": "s3cr3tvalue"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    store, said = Store(f"{s3_bucket}/{tmp_path.name}"), []
    with (
        caplog.at_level(logging.DEBUG, logger="pipelines"),
        RunLock(store, "job", heartbeat_s=30.0),
    ):
        said.append(store.read(LOCK).decode())
        for call in (
            lambda: Store("s3://no-such-bucket-here/x").publish("x", b""),
            lambda: Store("s3://no-such-bucket-here/x").read("x"),
        ):
            with pytest.raises((StorageError, FileNotFoundError)) as error:
                call()
            said.append(repr(error.value))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("pipelines")]
    for text in [*said, *ours, json.dumps(Store(store.root).__getstate__())]:
        assert not any(secret in text for secret in secrets.values())


@pytest.mark.parametrize(
    "name", ["../x", "a b", "\u00e9", "'\"", "new\nline", "-x", "#?%*[", "\u202e"]
)
def test_odd_values_stay_inside_the_tables(tmp_path: Path, name: str) -> None:
    """Ids are values of rows: no file of a run is named by one."""
    from pipelines.storage.columns import file_name

    table = pa.table({"video_id": [name, name * 500], "x": [1, 2]})
    file = file_name(table, ("video_id",))
    assert file.removesuffix(".parquet").isalnum()
    store = Store(str(tmp_path / "run"))
    store.publish_table(f"t/{file}", table, {"name": name})
    assert store.read_table("t").equals(table)
    assert sorted(os.listdir(tmp_path)) == ["run"]
