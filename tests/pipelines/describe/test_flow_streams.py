"""Streams of optical flow in the describe stage: which network sees them, in which views, and what
rows hold."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from encoders import stream_specs
from encoders.backbones import load
from encoders.descriptors.streams import appearance
from encoders.stream_specs import FlowWindow, kind_of
from pipelines.describe.stage import DescribeFrames, described_streams
from pipelines.errors import ConfigError
from pipelines.settings.config import Config
from pipelines.storage.columns import descriptors_from_arrow
from tests.pipelines.video.segments import decoded

SETTINGS = [
    "sampling.policy=uniform",
    "sampling.num_frames=5",
    "describe.backbone=squeezenet1_0",
    "describe.nodes=features.5",
    "describe.weights=random:0",
    "describe.streams=appearance,flow,flow@gap=2:stack=5:bound_px=20,flow@nodes=ga:bound_px=20",
    "picture.resize_px=72",
    "picture.crop_px=64",
]
NAMES = [
    "features_5_appearance",
    "features_5_flow",
    "features_5_flow_gap2_x5_bound20",
    "ga_flow_bound20_global",
]
WEIGHTS = load.random_filters("squeezenet1_0", 0)


def describer(config: Config) -> DescribeFrames:
    return DescribeFrames(lambda: WEIGHTS, config, described_streams(config), num_threads=1)


@pytest.mark.parametrize("views", ["centre", "mirror"])
def test_a_stream_of_flow_is_the_networks_map_of_it(data: Path, views: str) -> None:
    """The clip, one that is too short for flow, and one that is lost, together as a batch."""
    config = Config().with_settings([*SETTINGS, f"picture.views={views}"])
    streams = described_streams(config)
    assert list(streams) == NAMES
    clips = data / "clips"
    files = ("v_Basketball_g01_c01.avi", "one_frame_mpeg4.mp4", "gone.mp4")
    frames = decoded(config, *(clips / name for name in files))
    stage = describer(config)
    # On a CPU it describes segment by segment, on a GPU all together: nothing may differ.
    rows = pa.concat_tables(stage._rows(part) for part in frames)
    together = stage._rows(pa.concat_tables(frames))
    assert rows["num_frames"].to_pylist() == [5, 1, 0]
    model = load.load_model("squeezenet1_0", WEIGHTS)
    flows = [w for w in config.describe.windows if isinstance(w, FlowWindow)]
    for name, stream in streams.items():
        found = [descriptors_from_arrow(rows[name][k]) for k in range(3)]
        assert found[2] is None
        alike = descriptors_from_arrow(together[name][0])
        np.testing.assert_allclose(alike, found[0], rtol=0.01, atol=1e-3)
        if stream.flow is None:
            continue
        assert found[1].shape == (0, stream.width)
        value = frames[0]["flows"][0][flows.index(stream.flow)].as_py()
        levels = np.frombuffer(value, np.uint8).reshape(5, 64, 64, stream.flow.num_channels)
        flipped = levels[:, :, ::-1].copy()
        flipped[..., 0::2] = 255 - flipped[..., 0::2]
        channels = max(3, stream.flow.num_channels)
        network = load.cut("squeezenet1_0", model, (stream.node,), num_channels=channels)
        expected = []
        for crop in (levels.copy(), flipped)[: stream.views]:
            maps = network.flow_maps(torch.from_numpy(crop))[stream.node]
            if stream.kind == "global":
                expected.append(maps.flatten(1)[:, None])
            else:
                expected.append(appearance(maps, "per_position"))
        assert found[0].shape == (5 * stream.num_descriptors, stream.width)
        joined = torch.cat(expected, 1).flatten(0, 1).numpy()
        np.testing.assert_allclose(found[0], joined, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize(
    ("entries", "views", "expected"),
    [
        # Pictures, single flows with two bounds, and stacks of five.
        (SETTINGS[5], "centre", {3: 15, 10: 5}),
        (SETTINGS[5], "ten", {3: 150, 10: 50}),
        # Two streams of one flow.
        ("describe.streams=flow,flow@nodes=features.3,appearance", "centre", {3: 10}),
        # Pictures that no stream reads do not go through the network.
        ("describe.streams=flow", "centre", {3: 5}),
    ],
)
def test_the_network_runs_once_on_each_picture_and_each_flow(
    data: Path, entries: str, views: str, expected: dict[int, int]
) -> None:
    config = Config().with_settings([*SETTINGS, entries, f"picture.views={views}"])
    stage = describer(config)
    passed = dict.fromkeys(expected, 0)

    def note(_: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        passed[args[0].shape[1]] += len(args[0])

    for backbone in stage.backbones.values():
        backbone.network.register_forward_pre_hook(note)
    stage(pa.concat_tables(decoded(config, data / "clips" / "v_Basketball_g01_c01.avi")))
    assert passed == expected


def test_networks_share_their_parameters() -> None:
    stage = describer(Config().with_settings(SETTINGS))
    pictures, *others = (
        {id(p) for p in backbone.network.parameters()} for backbone in stage.backbones.values()
    )
    # The stack of five has a first convolution of its own; its bias is shared.
    assert [len(pictures - other) for other in others] == [0, 1, 0]


def test_flow_counts_as_motion_in_fusions() -> None:
    assert [kind_of(name) for name in NAMES] == ["appearance", "flow", "flow", "global"]
    assert [stream_specs.is_difference(name) for name in NAMES] == [False, True, True, False]
    assert [stream_specs.is_local(name) for name in NAMES] == [True, True, True, False]


def test_two_entries_of_one_flow_are_refused() -> None:
    config = Config().with_settings([*SETTINGS, "describe.streams=flow,flow@method=dis"])
    with pytest.raises(ConfigError, match="differ in letters and digits"):
        described_streams(config)
