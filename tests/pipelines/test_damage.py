"""What is called done is there: each kind of file, lost or damaged in each way, is named by the
doctor and made again by the same command."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.fcvid_encode import main
from pipelines.doctor import examine
from pipelines.ledger.marks import NOTE
from pipelines.run import job
from pipelines.run.steps import STEPS
from pipelines.storage.store import Store
from tests.pipelines.damage import (
    CELLS,
    DAMAGE,
    FILES,
    assert_equal,
    contents,
    file_of,
    written,
)

pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.timeout(900)]

SMALL = (
    "sampling.num_frames=4",
    "picture.resize_px=64",
    "picture.crop_px=64",
    "describe.streams=appearance,difference,positions@scaling=whole_map",
    "fit.num_frames=40",
    "fv_vae.hidden=8",
    "fv_vae.num_latents=3",
    "fv_vae.num_steps=4",
    "fv_vae.batch_frames=4",
    "split.num_folds=2",
    "encode.encoders=fv_vae",
    "classify.fusions=kernel_sum",
    "network.networks=tsn,actionflownet,conv_pooling@clip_frames=3:num_steps=2:units=8",
    "network.side_px=40",
    "network.crop_px=32",
    "network.frames=2",
    "network.test_clips=2",
    "network.test_views=centre",
    "network.pictures=2",
    "network.over_time=all",
    "tsn.num_steps=1",
    "tsn.batch_clips=2",
    "actionflownet.frames=4",
    "actionflownet.width=4",
    "actionflownet.pretraining_steps=1",
    "actionflownet.num_steps=2",
    "actionflownet.batch_clips=4",
    "conv_pooling.batch_clips=4",
)
"""A run that writes every table, as quickly as may be."""


@pytest.fixture(scope="module")
def command(data: Path) -> Callable[..., int]:
    folder = data / "labelled" / "weizmann"
    settings = (f"describe.weights={data / 'weights' / 'squeezenet1_0.safetensors'}", *SMALL)
    inputs = (
        "--videos",
        str(folder),
        "--labels",
        str(folder / "labels.csv"),
        "--limit",
        "12",
        "--recipe",
        "demo",
    )
    flags = [*inputs, *(word for setting in settings for word in ("--set", setting))]
    return lambda out, *extra: main([*flags, "--out", str(out), *extra])


@pytest.fixture(scope="module")
def finished(
    local_ray: None, command: Callable[..., int], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert command(out) == 0
    assert examine.examine(Store(str(out))).findings == ()
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def named(run: Path) -> str:
    """What the doctor says of files that are not as they should be."""
    return "\n".join(
        line
        for finding in examine.examine(Store(str(run))).findings
        if finding.check
        in ("file.damaged", "run.mark", "run.folder", "codebook.missing", "folder.unfinished")
        for line in finding.lines()
    )


def assert_mended(run: Path, finished: Path, command: Callable[..., int]) -> None:
    assert command(run) == 0
    assert_equal(contents(run), contents(finished))
    assert examine.examine(Store(str(run))).findings == ()
    before = written(run)
    assert command(run) == 0
    assert written(run) == before


@pytest.mark.nightly
@pytest.mark.parametrize("damage", ["deleted", "flipped"])
def test_a_file_of_every_kind_at_once_comes_back(
    finished: Path, run: Path, command: Callable[..., int], damage: str
) -> None:
    files = [file_of(run, kind) for kind in FILES if not kind.startswith("mark")]
    for file in files:
        DAMAGE[damage](file)
    said = named(run)
    assert [
        str(file.relative_to(run)) for file in files if str(file.relative_to(run)) not in said
    ] == []
    assert_mended(run, finished, command)


@pytest.mark.nightly
def test_a_large_table_comes_back_after_the_doctor_has_read_it(
    finished: Path, run: Path, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where each step has more bytes than are looked into when a run starts."""
    monkeypatch.setattr(job, "MOST_BYTES", 0)
    odd = DAMAGE["flipped"](file_of(run, "descriptors"))
    before = written(run)
    assert command(run) == 0
    assert written(run) == before, "nobody has read it"
    assert str(odd.relative_to(run)) in named(run)
    assert_mended(run, finished, command)
    assert not (run / NOTE).exists()


def test_a_later_step_alone_says_which_step_to_run_first(
    run: Path, command: Callable[..., int], capsys: pytest.CaptureFixture
) -> None:
    """It has nothing to read, and must not end in a traceback."""
    for kind in ("segments", "failures"):
        DAMAGE["deleted" if kind == "segments" else "truncated"](file_of(run, kind))
    assert command(run, "--steps", "evaluate") == 2
    assert "step index is not complete" in capsys.readouterr().err


@pytest.mark.cluster
@pytest.mark.parametrize(("kind", "damage"), CELLS)
def test_every_kind_of_file_comes_back_alone(
    finished: Path, run: Path, command: Callable[..., int], kind: str, damage: str
) -> None:
    before = written(run)
    odd = DAMAGE[damage](file_of(run, kind)).relative_to(run)
    if (kind, damage) == ("mark of a codebook", "deleted"):
        # The doctor names the folder: it is unfinished.
        odd = odd.parent.relative_to("marks")
    assert str(odd) in named(run)
    assert_mended(run, finished, command)
    changed = {
        name.partition("/")[0] for name, when in written(run).items() if before.get(name) != when
    }
    step = next((step for step in STEPS.values() if kind in {t.name for t in step.tables}), None)
    if step:
        own = {FILES[table.name].partition("/")[0] for table in step.tables}
        # The record of the run and its report are written whenever a step has worked.
        assert changed <= own | {"runs", "report"}
