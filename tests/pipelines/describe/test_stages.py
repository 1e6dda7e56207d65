"""The Ray callables as plain objects, without Ray."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from encoders.backbones import load
from encoders.codebooks.sample import FitSample
from encoders.descriptors.streams import appearance, positions
from encoders.encodings.pooling import Average, Concatenation, GlobalActivation
from encoders.encodings.vlad import Vlad
from encoders.fv_vae.encoder import FvVae
from encoders.fv_vae.network import FvVaeNet
from encoders.registry import fit_encoder
from encoders.settings import CODEBOOK, FvVaeSettings
from pipelines.describe.segments import stored_frames
from pipelines.describe.stage import CPU_FRAMES, DescribeFrames, described_streams, precision
from pipelines.encode.stage import EncodeVideos
from pipelines.fit.sample import Draw, SampleFrames, ranked
from pipelines.run.codebook import Codebook, attention_of, encodings_of, sample_of
from pipelines.settings.config import Config
from pipelines.settings.sections import Decode, Encode
from pipelines.storage.columns import descriptors_from_arrow
from pipelines.storage.store import Store
from pipelines.storage.tables import ATTENTION, ENCODINGS, VIDEOS
from pipelines.video.stages import DecodeSegments, ProbeVideos, plan_segments

SETTINGS = (
    "describe.backbone=squeezenet1_0",
    "describe.nodes=features.5,ga",
    "describe.streams=appearance,difference,positions",
    "describe.weights=random:0",
    "sampling.policy=fps",
    "sampling.fps=3",
    "picture.resize_px=72",
    "picture.crop_px=64",
)
CONFIG = Config().with_settings(list(SETTINGS))
STREAMS = described_streams(CONFIG)
APPEARANCE, DIFFERENCE, POSITIONS, GLOBAL = STREAMS


def difference(maps: torch.Tensor) -> torch.Tensor:
    change = maps[1:] - maps[:-1]
    parts = torch.cat([change.clamp_min(0), (-change).clamp_min(0)], 1)
    return appearance(parts, "per_position")


def manifest(*files: Path) -> pa.Table:
    rows = [
        {
            "video_id": file.name,
            "uri": str(file),
            "size_bytes": file.stat().st_size if file.exists() else 0,
            "source": "1",
            "labels": ["x"],
            "group": None,
            "fold": -1,
        }
        for file in files
    ]
    names = ["video_id", "uri", "labels", "group", "fold", "size_bytes", "source"]
    return pa.Table.from_pylist(rows, schema=pa.schema([VIDEOS.schema().field(n) for n in names]))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(str(tmp_path_factory.mktemp("run")))
    store.publish("weights.safetensors", load.random_filters("squeezenet1_0", 0))
    return store


@pytest.fixture(scope="module")
def decoded(data: Path) -> tuple[pa.Table, list[pa.Table]]:
    """VIDEOS of a 30 s clip, which has two segments at 3 fps, and of two that fail; their
    frames."""
    clips = data / "clips"
    files = (clips / "big_buck_bunny_0_30.webm", clips / "audio_only.mp4", clips / "gone.mp4")
    videos = ProbeVideos(CONFIG.sampling, Decode())(manifest(*files))
    segments = plan_segments(videos)
    for name in ("uri", "status", "stage", "error_type", "error"):
        column = dict(zip(videos["video_id"].to_pylist(), videos[name].to_pylist(), strict=True))
        values = [column[video] for video in segments["video_id"].to_pylist()]
        segments = segments.append_column(name, pa.array(values, pa.string()))
    windows = CONFIG.describe.windows
    decode = DecodeSegments(CONFIG.sampling, CONFIG.picture, Decode(), windows=windows)
    return videos, list(decode(segments))


@pytest.fixture(scope="module")
def described(store: Store, decoded: tuple[pa.Table, list[pa.Table]]) -> pa.Table:
    stage = DescribeFrames(
        lambda: store.read("weights.safetensors"), CONFIG, STREAMS, num_threads=1
    )
    return stage(pa.concat_tables(decoded[1]))


def test_a_segment_whose_descriptors_are_no_numbers_fails_by_name_and_alone(
    decoded: tuple[pa.Table, list[pa.Table]], caplog: pytest.LogCaptureFixture
) -> None:
    """First filters so strong that float16 cannot hold what they make of any picture but a grey
    one."""
    state = safetensors.torch.load(load.random_filters("squeezenet1_0", 0))
    state["features.0.weight"] *= 1e7
    weights = load.pack(state)
    bright, plain = decoded[1][:2]
    grey = bytes((124, 116, 104)) * (len(plain["images"][0].as_py()) // 3)
    images = pa.array([grey], pa.large_binary())
    plain = plain.set_column(plain.column_names.index("images"), "images", images)
    stage = DescribeFrames(lambda: weights, CONFIG, STREAMS, num_threads=1)
    failed, whole = stage(pa.concat_tables([bright, plain])).to_pylist()
    reason = [failed[name] for name in ("status", "stage", "error_type", "num_frames")]
    assert reason == ["failed", "describe", "not_finite", 0]
    assert GLOBAL in failed["error"]
    assert failed[APPEARANCE] is None
    assert failed["frame_indices"] == failed["timestamps_s"] == []
    assert (whole["status"], whole["num_frames"]) == ("ok", 26)
    assert np.isfinite(np.array(whole[GLOBAL], np.float16)).all()
    assert "segment=big_buck_bunny_0_30.webm#00000" in vars(caplog.records[-1])["about"]


def test_every_planned_segment_has_a_row(
    decoded: tuple[pa.Table, list[pa.Table]], described: pa.Table
) -> None:
    videos, _ = decoded
    assert videos["status"].to_pylist() == ["ok", "failed", "failed"]
    assert videos["error_type"].to_pylist() == [None, "no_video_stream", "not_found"]
    assert videos["num_segments"].to_pylist() == [2, 1, 1]
    rows = described.drop_columns(list(STREAMS)).to_pylist()
    assert [row["segment_id"] for row in rows] == [
        "big_buck_bunny_0_30.webm#00000",
        "big_buck_bunny_0_30.webm#00001",
        "audio_only.mp4#00000",
        "gone.mp4#00000",
    ]
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "failed"]
    assert [row["stage"] for row in rows[2:]] == ["index", "index"]
    assert [row["num_frames"] for row in rows] == [64, 26, 0, 0]
    assert not described[APPEARANCE][2].is_valid


@pytest.mark.parametrize("is_compiled", [False, True])
def test_what_stands_beside_a_segment_changes_nothing(
    store: Store,
    decoded: tuple[pa.Table, list[pa.Table]],
    described: pa.Table,
    is_compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes, compiled = [], []
    monkeypatch.setattr("torch.compile", lambda network: compiled.append(network) or network)
    config = CONFIG.with_settings([f"describe.compile={str(is_compiled).lower()}"])
    stage = DescribeFrames(
        lambda: store.read("weights.safetensors"), config, STREAMS, num_threads=1
    )
    stage.backbones[None].network.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    parts = [stage(part) for part in decoded[1][::-1]]
    assert pa.concat_tables(parts[::-1]).equals(described)
    assert set(sizes) == ({CPU_FRAMES} if is_compiled else {CPU_FRAMES, 27 % CPU_FRAMES})
    assert compiled == [stage.backbones[None].network] * is_compiled


@pytest.mark.parametrize("maps_bytes", [2**18, 2**30])
def test_segments_together_have_each_its_own_descriptors(
    store: Store,
    decoded: tuple[pa.Table, list[pa.Table]],
    described: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
    maps_bytes: int,
) -> None:
    """As a GPU describes them."""
    monkeypatch.setattr("pipelines.describe.stage.MAPS_BYTES", maps_bytes)
    stage = DescribeFrames(
        lambda: store.read("weights.safetensors"), CONFIG, STREAMS, num_threads=1
    )
    batch = pa.concat_tables(decoded[1])
    order = [2, 1, 3, 0]
    together = stage._described(batch.take(order))
    assert together.drop_columns(list(STREAMS)).equals(
        described.take(order).drop_columns(list(STREAMS))
    )
    for stream in STREAMS:
        for row, place in enumerate(order):
            found, expected = (
                descriptors_from_arrow(table[stream][k])
                for table, k in ((together, row), (described, place))
            )
            assert (found is None) == (expected is None) == (place > 1)
            if found is not None:
                np.testing.assert_allclose(found, expected, atol=2e-3)


def test_half_precision_is_near(
    store: Store, decoded: tuple[pa.Table, list[pa.Table]], described: pa.Table
) -> None:
    assert precision("auto", "cpu") == torch.float32
    assert precision("auto", "cuda") == torch.bfloat16
    config = CONFIG.with_settings(["describe.precision=bfloat16"])
    stage = DescribeFrames(
        lambda: store.read("weights.safetensors"), config, STREAMS, num_threads=1
    )
    rows = stage(decoded[1][1])
    near = descriptors_from_arrow(rows[APPEARANCE][0]).astype(np.float64)
    exact = descriptors_from_arrow(described[APPEARANCE][1]).astype(np.float64)
    assert np.linalg.norm(near - exact) < 0.02 * np.linalg.norm(exact)


def test_nothing_depends_on_where_a_video_was_cut(
    store: Store, decoded: tuple[pa.Table, list[pa.Table]], described: pa.Table
) -> None:
    """Two segments together hold the descriptors of the whole video, differences over the cut
    too."""
    first, second = decoded[1][:2]
    assert second["num_images"].to_pylist() == [27]
    frames = [
        np.frombuffer(t["images"][0].as_py(), np.uint8).reshape(-1, 64, 64, 3)
        for t in (first, second)
    ]
    np.testing.assert_array_equal(frames[0][-1], frames[1][0])
    whole = torch.from_numpy(np.concatenate([frames[0], frames[1][1:]]))
    backbone = load.build("squeezenet1_0", CONFIG.describe.nodes, store.read("weights.safetensors"))
    maps = backbone.maps(whole)
    for column, expected in (
        (APPEARANCE, appearance(maps["features.5"], "per_position")),
        (DIFFERENCE, difference(maps["features.5"])),
        (POSITIONS, positions(maps["features.5"], "per_position")),
        (GLOBAL, maps["ga"].flatten(1).unsqueeze(1)),
    ):
        found = np.concatenate([descriptors_from_arrow(described[column][i]) for i in (0, 1)])
        np.testing.assert_allclose(found, expected.flatten(0, 1).numpy(), atol=2e-3)


@pytest.fixture(scope="module")
def placed(store: Store, described: pa.Table) -> pa.Table:
    """Where the segments of the good video are, in two files."""
    store.publish_table("d/a.parquet", described.slice(1, 1), {})
    store.publish_table("d/b.parquet", described.slice(0, 1), {})
    return pa.table(
        {
            "video_id": ["big_buck_bunny_0_30.webm"],
            "source": ["1"],
            "files": [["d/b.parquet", "d/a.parquet"]],
            "rows": [[0, 0]],
        }
    )


def codebook(encoder: str, stream: str, settings: object = None) -> Codebook:
    base = encoder.partition("@")[0]
    return Codebook(encoder, base, stream, -1, settings, "abc", (1,), "signed_sqrt_l2")


def encode(store: Store, books: list[Codebook], placed: pa.Table) -> pa.Table:
    attentive = [book for book in books if book.base == "fv_vae"]
    return pa.concat_tables(EncodeVideos(store, books, attentive, STREAMS, Encode())(placed))


@pytest.mark.slow
@pytest.mark.parametrize("batch_videos", [1, 2, 8])
def test_what_stands_beside_a_video_changes_none_of_its_bits(
    store: Store, described: pa.Table, placed: pa.Table, batch_videos: int
) -> None:
    """Nor how many videos an encoder is given together."""
    books = [codebook("ave", APPEARANCE), codebook("vlad", APPEARANCE)]
    width = STREAMS[APPEARANCE].width
    centroids = torch.from_numpy(np.random.default_rng(0).standard_normal((4, width))).float()
    for book, encoder in zip(books, (Average(width), Vlad(centroids)), strict=True):
        store.publish(f"{book.folder}/{CODEBOOK}", encoder.to_bytes())
    files, rows = placed["files"][0].as_py(), placed["rows"][0].as_py()
    parts = [[0, 1], [1], [0], [1, 0], [0, 1]]
    videos = pa.table(
        {
            "video_id": list("abcde"),
            "source": ["1"] * 5,
            "files": [[files[k] for k in part] for part in parts],
            "rows": [[rows[k] for k in part] for part in parts],
        }
    )
    stage = EncodeVideos(store, books, [], STREAMS, Encode(batch_videos=batch_videos))
    together = list(stage(videos))
    assert [len(table) for table in together] == [
        min(batch_videos, 5 - k) for k in range(0, 5, batch_videos)
    ]
    alone = [table for k in range(5) for table in stage(videos.slice(k, 1))]
    assert pa.concat_tables(together).equals(pa.concat_tables(alone))


def everything(described: pa.Table, stream: str) -> torch.Tensor:
    parts = [descriptors_from_arrow(described[stream][i]) for i in (0, 1)]
    return torch.from_numpy(np.concatenate(parts)).float()


@pytest.mark.parametrize(
    ("stream", "encoder"),
    [
        (DIFFERENCE, Average(512)),
        (GLOBAL, GlobalActivation(1000)),
        (POSITIONS, Concatenation(STREAMS[POSITIONS].cells * 256)),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_video_is_encoded_from_all_its_segments(
    store: Store, described: pa.Table, placed: pa.Table, stream: str, encoder: Average
) -> None:
    book = codebook(encoder.name, stream)
    store.publish(f"{book.folder}/{CODEBOOK}", encoder.to_bytes())
    table = encodings_of(encode(store, [book], placed), book)
    descriptors = everything(described, stream)
    frames = 89 if stream == DIFFERENCE else 90
    assert table["num_descriptors"].to_pylist() == [len(descriptors)]
    assert len(descriptors) == frames * STREAMS[stream].cells
    assert table.schema.names == [*ENCODINGS.schema().names, "vector"]
    expected = encoder.encode(descriptors.view(-1, encoder.descriptor_dim))
    np.testing.assert_allclose(table["vector"][0].as_py(), expected, rtol=1e-5, atol=1e-7)


def published_fv_vae(store: Store, settings: FvVaeSettings, name: str) -> tuple[Codebook, FvVae]:
    """An untrained one of differences."""
    fitted = FvVae.from_net(FvVaeNet(STREAMS[DIFFERENCE].width, 0, settings))
    eye = {"a": torch.eye(fitted.descriptor_dim).double(), "b": torch.eye(5).double()}
    fitted.statistics = {f"kronecker.{name}": value for name, value in eye.items()}
    book = codebook(name, DIFFERENCE, settings)
    for file, content in fitted.files().items():
        store.publish(f"{book.folder}/{file}", content)
    return book, fitted


def test_attention_has_a_row_for_every_frame(
    store: Store, described: pa.Table, placed: pa.Table
) -> None:
    settings = FvVaeSettings(num_latents=4, hidden=(), information="kronecker")
    book, fitted = published_fv_vae(store, settings, "fv_vae@num_latents=4")
    cells = everything(described, DIFFERENCE).view(-1, 50, fitted.descriptor_dim)
    rows = encode(store, [book], placed)
    table = attention_of(rows, book, STREAMS[DIFFERENCE].cells)
    assert table.schema.names == [*ATTENTION.schema().names, "cells"]
    assert table.num_rows == 89
    assert set(table["encoder"].to_pylist()) == {"fv_vae@num_latents=4"}
    expected = fitted.attention(cells).numpy()
    np.testing.assert_allclose(np.stack(table["cells"].to_numpy()), expected, rtol=1e-4)
    np.testing.assert_allclose(table["value"].to_numpy(), expected.sum(1), rtol=1e-4)
    # A difference is shown with the later of its two frames.
    indices = [i for part in described["frame_indices"].to_pylist()[:2] for i in part]
    assert table["frame_index"].to_pylist() == indices[1:]
    times = [t for part in described["timestamps_s"].to_pylist()[:2] for t in part]
    assert table["timestamp_s"].to_pylist() == times[1:]
    assert encodings_of(rows, book)["encoder"].to_pylist() == ["fv_vae@num_latents=4"]


def test_rows_of_a_table_copy_nothing_of_the_others() -> None:
    """The rows of all tables arrive together: a vector copied for each frame, or one stream's
    descriptors for each other stream, is more memory than a worker has."""
    num_frames, width = 50, 2**18
    vectors = pa.array(np.zeros(2 * width, np.float32))
    book = codebook("vlad", APPEARANCE)
    rows = pa.table(
        {
            "video_id": ["a", "b"],
            "source": ["1", "1"],
            "frame": [0, 1],
            f"{APPEARANCE}/num_descriptors": [num_frames, num_frames],
            f"{APPEARANCE}/frame_indices": [list(range(num_frames))] * 2,
            f"{APPEARANCE}/timestamps_s": [[0.0] * num_frames] * 2,
            f"attention/{book.column}": [[1.0] * num_frames] * 2,
            APPEARANCE: [[1.0], None],
            "vectors": pa.FixedSizeListArray.from_arrays(vectors, width),
        }
    )
    default = pa.default_memory_pool()
    for make in (lambda: attention_of(rows, book, 1), lambda: sample_of(rows, APPEARANCE)):
        pool = pa.proxy_memory_pool(default)
        pa.set_memory_pool(pool)
        try:
            # The table itself must not outlive its pool.
            assert make().num_rows in (1, 2 * num_frames)
        finally:
            pa.set_memory_pool(default)
        assert pool.max_memory() < rows["vectors"].nbytes / 10


def test_a_video_without_differences_has_a_zero_vector_and_no_attention_rows(
    store: Store, described: pa.Table
) -> None:
    """One frame is no error (METHODS 2); beside a longer video in the same batch."""
    short = described.slice(0, 1).to_pylist()[0]
    short |= {"frame_indices": [0], "timestamps_s": [0.0], DIFFERENCE: []}
    short[APPEARANCE] = short[APPEARANCE][:50]
    table = pa.Table.from_pylist([short], schema=described.schema)
    store.publish_table("short/a.parquet", table, {})
    store.publish_table("short/b.parquet", described.slice(1, 1), {})
    places = {"video_id": ["s", "l"], "source": ["1", "1"], "rows": [[0], [0]]}
    places["files"] = [["short/a.parquet"], ["short/b.parquet"]]
    settings = FvVaeSettings(num_latents=4, hidden=(), information="none")
    book, _ = published_fv_vae(store, settings, "fv_vae@short=1")
    rows = encode(store, [book], pa.table(places))
    vectors = encodings_of(rows, book)["vector"].to_pylist()
    assert not any(vectors[0])
    assert np.linalg.norm(vectors[1]) == pytest.approx(1, abs=1e-5)
    attention = attention_of(rows, book, STREAMS[DIFFERENCE].cells)
    assert set(attention["video_id"].to_pylist()) == {"l"}
    assert attention["frame_index"].to_pylist() == described["frame_indices"][1].as_py()


@pytest.mark.parametrize("stream", [APPEARANCE, DIFFERENCE])
def test_a_video_is_cut_in_time_wherever_its_segments_end(
    store: Store, described: pa.Table, placed: pa.Table, stream: str
) -> None:
    """Halves of the time between its first and last frame, beside a codebook that is not cut."""
    encoder = Average(STREAMS[stream].width)
    cut, whole = codebook(f"ave@{stream}", stream), codebook("ave", stream)
    cut = replace(cut, temporal_pyramid=(1, 2))
    for book in (cut, whole):
        store.publish(f"{book.folder}/{CODEBOOK}", encoder.to_bytes())
    rows = encode(store, [cut, whole], placed)
    times_s = np.array([t for part in described["timestamps_s"].to_pylist()[:2] for t in part])
    frames = everything(described, stream).view(-1, 50, encoder.descriptor_dim)
    is_late = (times_s >= (times_s[0] + times_s[-1]) / 2)[len(times_s) - len(frames) :]
    assert 0 < is_late.sum() < len(frames)
    assert not is_late[:64].all()
    parts = [encoder.encode(x.flatten(0, 1)) for x in (frames, frames[~is_late], frames[is_late])]
    vector = np.array(encodings_of(rows, cut)["vector"][0].as_py())
    np.testing.assert_allclose(vector, torch.cat(parts) / 3**0.5, atol=1e-6)
    alone = encodings_of(rows, whole)["vector"][0].as_py()
    np.testing.assert_allclose(alone, parts[0], atol=1e-6)


def test_a_codebook_for_each_level_is_used_and_attends(
    store: Store, described: pa.Table, placed: pa.Table
) -> None:
    """As stored and loaded; attention has the cells of the pyramid."""
    frames = everything(described, DIFFERENCE).view(-1, 50, STREAMS[DIFFERENCE].width)
    settings = FvVaeSettings(
        num_latents=3, hidden=(), num_steps=2, per_level=True, position_weight=0.5
    )
    sample = FitSample(
        frames=frames[:20],
        video=torch.arange(20) // 5,
        levels=CONFIG.describe.spp_levels,
    )
    fitted = fit_encoder("fv_vae", sample, settings, "signed_sqrt_l2")
    book = codebook("fv_vae@per_level=true", DIFFERENCE, settings)
    for file, content in fitted.files().items():
        store.publish(f"{book.folder}/{file}", content)
    rows = encode(store, [book], placed)
    vector = encodings_of(rows, book)["vector"][0].as_py()
    np.testing.assert_allclose(vector, fitted.encode(frames.flatten(1)), atol=1e-4)
    table = attention_of(rows, book, STREAMS[DIFFERENCE].cells)
    found = np.stack(table["cells"].to_numpy())
    np.testing.assert_allclose(found, fitted.attention(frames).numpy(), rtol=1e-4)


def test_the_sample_is_the_same_however_it_is_read(
    store: Store, described: pa.Table, placed: pa.Table
) -> None:
    width = described.schema.field(DIFFERENCE).type.value_type.list_size
    places = [
        {"video_id": "big_buck_bunny_0_30.webm", "file": f"d/{name}.parquet", "row": 0, "rank": 1}
        for name in ("a", "b")
    ]

    def draw(rate: float, seed: int, rows: list[dict]) -> list[int]:
        both = {name: STREAMS[name] for name in (APPEARANCE, DIFFERENCE)}
        draws = dict.fromkeys(both, Draw(rate))
        made = SampleFrames(store, both, draws, seed)(pa.Table.from_pylist(rows))
        appearances, table = (sample_of(made, name) for name in both)
        first = {0} if made["frame"].to_pylist().count(0) else set()
        assert set(appearances["frame"].to_pylist()) == set(table["frame"].to_pylist()) | first
        for descriptors in table["descriptors"]:
            assert descriptors_from_arrow(descriptors).shape == (50, width)
        return sorted(table["frame"].to_pylist())

    half = draw(0.5, 0, places)
    assert half == draw(0.5, 0, places[::-1])
    assert half != draw(0.5, 1, places)
    assert set(half) <= set(draw(0.8, 0, places))
    assert 25 < len(half) < 65
    assert len(draw(1.0, 0, places)) == 89


def test_a_video_of_the_corpus_has_a_frame_in_the_sample(
    store: Store, described: pa.Table, placed: pa.Table
) -> None:
    """At the smallest rate as well: in each stream its frame with the smallest number, which a
    larger rate keeps too. Of too many videos the first by rank have one."""
    both = {name: STREAMS[name] for name in (APPEARANCE, DIFFERENCE)}
    row = {"file": "d/a.parquet", "row": 0}
    rows = [row | {"video_id": f"v{n}", "rank": n} for n in range(6)]

    def draw(rate: float, videos: int, seed: int = 0) -> list[tuple[str, int]]:
        draws = {APPEARANCE: Draw(0.0, 5), DIFFERENCE: Draw(rate, videos)}
        made = SampleFrames(store, both, draws, seed)(pa.Table.from_pylist(rows))
        assert sorted(sample_of(made, APPEARANCE)["video_id"].to_pylist()) == [
            f"v{n}" for n in range(5)
        ]
        own = sample_of(made, DIFFERENCE)
        return list(zip(own["video_id"].to_pylist(), own["frame"].to_pylist(), strict=True))

    alone = draw(0.0, 3)
    assert sorted(video for video, _ in alone) == ["v0", "v1", "v2"]
    assert 0 not in dict(alone).values()
    assert set(alone) | set(draw(0.2, 0)) <= set(draw(0.2, 6))
    assert len({video for video, _ in draw(0.2, 6)}) == 6


def test_a_draw_has_about_as_many_frames_as_are_asked_for() -> None:
    assert Draw.of_each_video(20, 110, 10) == (0.1, 10)
    assert Draw.of_each_video(20, 110, 30) == (0.0, 20)
    assert Draw.of_each_video(500, 30, 30) == (0.0, 30)
    assert Draw.of_each_video(500, 130, 30).rate > 1


def test_one_random_segment_of_each_video_is_ranked_in_whatever_order_it_is_read() -> None:
    segments = [(f"v{n % 7}", n // 7) for n in range(100)]
    columns = ("video_id", "segment")
    table = pa.table({c: [s[k] for s in segments] for k, c in enumerate(columns)})
    found = ranked(table, 3)
    chosen = found.filter(pc.less(found["rank"], 7))
    assert sorted(chosen["rank"].to_pylist()) == list(range(7))
    assert sorted(chosen["video_id"].to_pylist()) == [f"v{n}" for n in range(7)]
    assert len(set(chosen["segment"].to_pylist())) > 2
    assert ranked(table.take(np.arange(100)[::-1]), 3) == found
    assert ranked(table, 4) != found


def test_descriptors_are_read_where_a_frame_is_drawn_alone(
    store: Store, described: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the bytes of a run; of a large corpus most segments give the sample nothing."""
    copies = pa.concat_tables([described.slice(0, 1).drop_columns([POSITIONS, GLOBAL])] * 40)
    store.publish_table("d/many.parquet", copies, {}, rows_per_group=2)
    places = [
        {"video_id": f"v{k}", "file": "d/many.parquet", "row": k, "rank": 40} for k in range(40)
    ]
    read, really = [], pq.ParquetFile.read_row_group

    def noted(self: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        read.extend((name, group) for name in columns)
        return really(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    both = {name: STREAMS[name] for name in (APPEARANCE, DIFFERENCE)}
    draws = dict.fromkeys(both, Draw(0.003))
    made = SampleFrames(store, both, draws, 0)(pa.Table.from_pylist(places))
    drawn = {int(name[1:]) // 2 for name in made["video_id"].to_pylist()}
    assert 0 < len(drawn) < 15
    assert sorted(read) == sorted(
        [("frame_indices", group) for group in range(20)]
        + [(name, group) for name in both for group in drawn]
    )
    frames = dict(zip(described["frame_indices"][0].as_py(), range(64), strict=True))
    stored = stored_frames(described.slice(0, 1), STREAMS[APPEARANCE])
    for frame, maps in zip(made["frame"].to_pylist(), made[APPEARANCE], strict=True):
        found = maps.values.flatten().to_numpy(zero_copy_only=False)
        assert np.array_equal(found, stored[frames[frame]].ravel())
