"""The command that measures optical flow on real pairs with truth."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from encoders.networks.flow.actionflownet import ActionFlowNet
from encoders.networks.settings import ActionFlowSettings
from jobs.flow_error import main
from pipelines.networks import flow_pairs
from pipelines.studies import flow_error

PAIR = ActionFlowSettings(frames=2, width=2)


def kept(folder: Path, settings: ActionFlowSettings = PAIR) -> str:
    folder.mkdir()
    for name, data in ActionFlowNet(3, settings, 4, 0).files().items():
        (folder / name).write_bytes(data)
    return str(folder)


def test_errors_are_those_of_a_loop_over_pairs(data: Path) -> None:
    pairs = flow_pairs.found(str(data / "flow" / "flying_chairs"))[:2]
    constant = np.array([3.0, -4.0], np.float32)
    methods = {
        "zero": flow_error.zero,
        "constant": lambda before, _: np.tile(constant, (*before.shape[:2], 1)),
    }
    found = {error.method: error.error_px for error in flow_error.errors(pairs, methods)}
    truths = [pair.flow() for pair in pairs]
    for name, flow in (("zero", np.zeros(2)), ("constant", constant)):
        expected = np.mean([np.linalg.norm(truth - flow, axis=2).mean() for truth in truths])
        assert found[name] == pytest.approx(expected, rel=1e-5)


def test_both_flows_and_a_network_stand_beside_the_table(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = kept(tmp_path / "network")
    flags = ["--side-px", "64", "--limit", "2", "--network", folder]
    assert main(["--pairs", str(data / "flow" / "flying_chairs"), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mean end-point error over 2 pairs"
    values = {line.rsplit(None, 2)[0]: float(line.split()[-2]) for line in lines[2:6]}
    assert list(values) == ["zero flow", "dis", "tvl1", folder]
    assert values["tvl1"] < values["zero flow"]
    pairs = flow_pairs.found(str(data / "flow" / "flying_chairs"))[:2]
    (own,) = flow_error.errors(pairs, {folder: flow_error.of_network(folder)}, 64)
    assert values[folder] == pytest.approx(own.error_px, abs=0.006)
    assert any(line.split() == ["EpicFlow", "6.29", "0.777"] for line in lines)


def test_wrong_files_end_with_one_message(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pairs = str(data / "flow" / "flying_chairs")
    clips = kept(tmp_path / "clips", dataclasses.replace(PAIR, frames=4))
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in sorted((data / "flow" / "flying_chairs").glob("0000000*")):
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[:99] if file.suffix == ".flo" else content)
    for flags, message in (
        (["--pairs", clips], "expected pairs of pictures with .flo or KITTI .png truth"),
        (["--pairs", str(broken)], "0000000-gt.flo: expected 512 x 384 flows, 1572876 bytes, got"),
        (["--pairs", pairs, "--network", str(tmp_path)], "expected encoder.safetensors and class"),
        (["--pairs", pairs, "--network", clips], "expected a network of pairs .* frames=4"),
        (["--pairs", pairs, "--side-px", "4"], "--side-px: 4 is not in the range x>=12"),
    ):
        assert main(flags) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(message, error), error
