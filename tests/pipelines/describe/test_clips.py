"""Streams of clips: what a network over time gives for the same frames, wherever a video is cut."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torchvision import models
from torchvision.transforms.v2 import functional

from encoders.backbones import clips, load
from encoders.networks.flow.actionflownet import ENCODER, ActionFlowNet
from encoders.networks.settings import ActionFlowSettings
from pipelines.describe import weights
from pipelines.describe.segments import stored_frames
from pipelines.describe.stage import DescribeFrames, described_streams
from pipelines.errors import ConfigError
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.video.stages import DecodeSegments
from tests.pipelines.run.examples import example
from tests.pipelines.video.segments import decoded, segments

SETTINGS = (
    "describe.backbone=squeezenet1_0",
    "describe.nodes=features.12",
    "describe.weights=random:0",
    "describe.clip_backbone=r3d_18",
    "describe.clip_weights=random:1",
    "describe.streams=appearance,clip@frames=8:step=2:side_px=32:nodes=layer1/layer4,"
    "clip@frames=8:step=2:side_px=32:rows=all:nodes=layer3",
    "describe.spp_levels=2,1",
    "sampling.policy=uniform",
    "sampling.num_frames=4",
    "picture.resize_px=72",
    "picture.crop_px=64",
)


def configured(*settings: str) -> Config:
    return Config().with_settings([*SETTINGS, *settings])


def describe(config: Config, rows: list[pa.Table]) -> pa.Table:
    data = weights.resolve(config.describe).load()
    stage = DescribeFrames(lambda: data, config, described_streams(config), num_threads=1)
    return pa.concat_tables([stage(row) for row in rows])


@pytest.fixture(scope="module")
def made(data: Path) -> tuple[Config, pa.Table, pa.Table]:
    config = configured()
    frames = decoded(config, data / "clips" / "bikes.mp4")
    return config, frames[0], describe(config, frames)


@pytest.fixture(scope="module")
def small(data: Path) -> tuple[Config, pa.Table]:
    """The same with a network of few channels."""
    nodes = "describe.streams=clip@frames=8:step=2:side_px=32:nodes=layer4"
    config = configured("describe.clip_backbone=actionflownet_4", nodes)
    return config, describe(config, decoded(config, data / "clips" / "bikes.mp4"))


def by_hand(config: Config, frames: pa.Table, nodes: tuple[str, ...]) -> list[dict]:
    """Torchvision's own network and preprocessing on each clip, by hooks of ours."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = models.get_model("r3d_18", weights=None).eval()
    transforms = models.video.R3D_18_Weights.KINETICS400_V1.transforms()
    images = np.frombuffer(frames["images"][0].as_py(), np.uint8).reshape(-1, 64, 64, 3)
    window = config.describe.clips[0].window
    places = frames["places"][0].as_py()[config.describe.windows.index(window)]
    found, out = [], {}
    for node in nodes:
        module = network.get_submodule(node)
        module.register_forward_hook(lambda _, __, output, node=node: out.update({node: output}))
    for clip in np.array(places).reshape(-1, 8):
        planes = torch.from_numpy(images[clip]).permute(0, 3, 1, 2).float() / 255
        planes = functional.resize(planes, [32, 32], antialias=True)
        pixels = functional.normalize(planes, transforms.mean, transforms.std)
        with torch.inference_mode():
            network(pixels.transpose(0, 1)[None])
        found.append(dict(out))
    return found


@pytest.mark.slow
def test_a_clip_is_what_the_network_gives_for_its_frames(made) -> None:
    config, frames, rows = made
    streams = described_streams(config)
    names = ["layer1_clip_gap2x8_side32", "layer4_clip_gap2x8_side32"]
    assert list(streams)[1:] == [*names, "layer3_clip_gap2x8_side32_all"]
    hand = by_hand(config, frames, ("layer1", "layer3", "layer4"))
    assert len(hand) == 4
    for name in names:
        stream = streams[name]
        assert (stream.kind, stream.clip is not None) == ("dense", True)
        found = stored_frames(rows, stream)
        for clip, maps in zip(found, hand, strict=True):
            unit = maps[stream.node][0].double()
            unit = (unit / unit.norm(dim=0)).numpy()
            times = unit.shape[1]
            half = -(-times // 2)
            halves = [slice(0, half), slice(times - half, times)] if times > 1 else []
            cells = []
            for part in [slice(0, times), *halves]:
                most = unit[:, part].max(1)
                # A map of one place repeats it.
                most = np.tile(most, (1, 2, 2)) if most.shape[1] == 1 else most
                side = most.shape[1] // 2
                corners = [(i, j) for i in (0, side) for j in (0, side)]
                cells += [most[:, i : i + side, j : j + side].max((1, 2)) for i, j in corners]
                cells.append(most.max((1, 2)))
            expected = np.stack(cells)
            assert clip.shape == expected.shape == (stream.cells, stream.width)
            # Half precision, of values up to 1.
            np.testing.assert_allclose(clip, expected, atol=5e-4)
    every = streams["layer3_clip_gap2x8_side32_all"]
    found = stored_frames(rows, every)
    for clip, maps in zip(found, hand, strict=True):
        values = maps["layer3"][0]
        unit = torch.nn.functional.normalize(values, dim=0).flatten(1).T
        assert clip.shape == unit.shape == (every.cells, every.width)
        np.testing.assert_allclose(clip, unit, atol=5e-4)


@pytest.mark.slow
def test_maps_are_those_of_the_network_to_a_millionth(made) -> None:
    config, frames, _ = made
    images = np.frombuffer(frames["images"][0].as_py(), np.uint8).reshape(-1, 64, 64, 3)
    places = frames["places"][0].as_py()[
        config.describe.windows.index(config.describe.clips[0].window)
    ]
    backbone = clips.build("r3d_18", load.random_filters("video:r3d_18", 1))
    given = torch.from_numpy(images[np.array(places[:8])])[None]
    found = backbone.maps(given, ("layer1", "layer4"), 32)
    (hand, *_) = by_hand(config, frames, ("layer1", "layer4"))
    for node, maps in found.items():
        assert (maps - hand[node]).abs().max() <= 1e-6 * hand[node].abs().max()


def test_the_cut_into_segments_changes_nothing(
    data: Path, small, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole = small
    monkeypatch.setattr("pipelines.video.sampling.SEGMENT_FRAMES", 3)
    stage = DecodeSegments(
        config.sampling, config.picture, config.decode, windows=config.describe.windows
    )
    monkeypatch.setattr(stage.decoder, "call", lambda function, *args, patience: function(*args))
    row = segments(data / "clips" / "bikes.mp4").to_pylist()[0] | {"num_segments": 2}
    cut = pa.Table.from_pylist([row | {"segment": k, "segment_id": f"x#{k:05d}"} for k in range(2)])
    rows = describe(config, list(stage(cut)))
    assert rows["num_frames"].to_pylist() == [3, 1]
    for stream in described_streams(config).values():
        if stream.clip:
            parts = [stored_frames(rows.slice(k, 1), stream) for k in range(2)]
            assert np.array_equal(np.concatenate(parts), stored_frames(whole, stream))


def test_clips_alone_and_mirrored_views(data: Path, small) -> None:
    config = small[0].with_settings(["picture.views=mirror"])
    rows = describe(config, decoded(config, data / "clips" / "bikes.mp4"))
    (stream,) = described_streams(config).values()
    assert stream.views == 2
    found = stored_frames(rows, stream)
    assert np.array_equal(
        found[:, : stream.cells], stored_frames(small[1], described_streams(small[0])[stream.name])
    )
    assert not np.array_equal(found[:, : stream.cells], found[:, stream.cells :])


def test_the_encoder_of_a_trained_actionflownet_is_a_backbone(data: Path, tmp_path: Path) -> None:
    network = ActionFlowNet(3, ActionFlowSettings(frames=4, width=4), 5, seed=3)
    file = tmp_path / ENCODER
    file.write_bytes(network.files()[ENCODER])
    settings = (
        "describe.clip_backbone=actionflownet_4",
        f"describe.clip_weights={file}",
        "describe.streams=clip@frames=4:step=1:side_px=64:rows=all",
    )
    config = configured(*settings)
    (frames,) = decoded(config, data / "clips" / "bikes.mp4")
    rows = describe(config, [frames])
    (stream,) = described_streams(config).values()
    images = np.frombuffer(frames["images"][0].as_py(), np.uint8).reshape(-1, 64, 64, 3)
    places = np.array(frames["places"][0].as_py()[1]).reshape(-1, 4)
    with torch.inference_mode():
        maps = network.eval().stages(torch.from_numpy(images[places]))[0]
    expected = torch.nn.functional.normalize(maps, dim=1).flatten(2).transpose(1, 2)
    np.testing.assert_allclose(stored_frames(rows, stream), expected, atol=1e-3)
    other = configured(*settings, "describe.clip_backbone=actionflownet_8")
    with pytest.raises(ConfigError, match=r"describe.clip_weights: the weights do not fit action"):
        weights.resolve(other.describe).load()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("describe.clip_backbone=r3d_19",),
            "describe.clip_backbone: expected .* known are r3d_18",
        ),
        (
            ("describe.streams=clip@nodes=layer9",),
            "describe.streams: clip: expected nodes of r3d_18",
        ),
        (("describe.streams=clip@nodes=fc",), "expected a node with maps over time and space"),
        (
            ("describe.clip_backbone=mvit_v2_s", "describe.streams=clip@frames=8"),
            "mvit_v2_s does not take 8 frames of 224 px",
        ),
        (
            ("describe.clip_weights=none/there.pth",),
            "describe.clip_weights: cannot read",
        ),
        (
            ("picture.scales=32,64",),
            "clip: expected pictures of one size, got picture.scales=32,64",
        ),
        (
            ("describe.clip_backbone=actionflownet", "describe.clip_weights=KINETICS400_V1"),
            "describe.clip_weights: actionflownet has no published weights",
        ),
    ],
)
def test_what_cannot_be_is_named(settings: tuple[str, ...], message: str) -> None:
    config = configured("describe.streams=clip", *settings)
    with pytest.raises(ConfigError, match=message):
        _ = weights.resolve(config.describe), described_streams(config)


def test_digests_are_of_the_network_of_clips_only_where_it_is_used(tmp_path: Path) -> None:
    def job(*settings: str) -> Job:
        made = example(str(tmp_path), *SETTINGS[:3], *settings)
        made.__dict__["weights"] = weights.resolve(made.config.describe)
        return made

    plain, other = job(), job("describe.clip_backbone=mc3_18", "describe.clip_weights=random:5")
    assert plain.weights.identity == "random squeezenet1_0 0"
    assert plain.descriptors == other.descriptors
    clips = [job("describe.streams=clip", f"describe.clip_weights=random:{k}") for k in (1, 2)]
    assert len({made.descriptors for made in (plain, *clips)}) == 3
    assert "r3d_18 random filters, seed 1" in clips[0].weights.description
