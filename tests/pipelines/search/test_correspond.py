"""Pictures of correspondence: nearest rows against loops, and images whose cells have colours of
their own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoders.descriptors.streams import Stream
from jobs.correspond import main
from pipelines.errors import ConfigError
from pipelines.search import correspond
from pipelines.search.correspond import Layer, Picture, Rows, painted, read_patches, read_rows
from pipelines.search.correspond_page import render
from pipelines.settings.config import Config
from pipelines.storage.columns import descriptor_type, descriptors_to_arrow
from pipelines.storage.store import Store
from pipelines.storage.tables import DESCRIPTORS, VIDEOS
from pipelines.video.stages import plan_segments
from tests.pipelines.report.page import HOSTILE, assert_stands_alone, assert_structure

SIDE = 4
PX = 224 // SIDE
STREAM = "features_5_dense"


def test_nearest_rows_are_those_of_a_loop() -> None:
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(60, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = Rows(vectors, ["a", "b", "c", "d", "e"], np.arange(0, 61, 12), side=2)
    span = rows.span("c")
    assert span == (24, 36)
    found = rows.nearest(np.arange(*span), span, 7)
    for row, nearest in zip(range(*span), found, strict=True):
        distance = np.linalg.norm(vectors - vectors[row], axis=1)
        expected = [i for i in np.argsort(distance) if not 24 <= i < 36][:7]
        assert nearest.tolist() == expected
    assert rows.place(31) == ("c", 1, 3)
    assert rows.nearest(np.array([0]), (0, 58), 7).shape == (1, 2)


def test_patches_are_painted_row_by_row() -> None:
    patches = [np.full((2, 2, 3), 10.0 * cell) for cell in range(9)]
    picture = painted(3, patches)
    assert picture.shape == (6, 6, 3)
    assert picture[::2, ::2, 0].tolist() == [[0, 10, 20], [30, 40, 50], [60, 70, 80]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images of 4 x 4 cells of the same 16 colours in orders of their own; the descriptor of
    a cell is that of its colour, and a little of the image's own."""
    folder = tmp_path_factory.mktemp("correspond")
    draw = np.random.default_rng(1)
    colours = draw.permutation(np.arange(16) * 16)[:, None] + np.array([0, 5, 10])
    codes = np.eye(16)
    store = Store(str(folder / "run"))
    facts = dict.fromkeys(VIDEOS.schema().names)
    facts |= {"labels": [], "fold": 0, "size_bytes": 1, "num_segments": 1, "status": "ok"}
    videos, descriptors = [], []
    for image in range(7):
        order = np.arange(16) if image == 0 else draw.permutation(16)
        pixels = colours[order].reshape(SIDE, SIDE, 3).repeat(PX, 0).repeat(PX, 1)
        file = folder / f"{image}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        videos.append(facts | {"video_id": file.name, "uri": str(file), "source": f"s{image}"})
        own = 3 * codes[order] + 0.01 * image * draw.uniform(size=(16, 16))
        descriptors.append(own.astype(np.float32))
    table = VIDEOS.build(videos)
    store.publish_table("videos/a/part.parquet", table, {})
    plan = plan_segments(table)
    store.publish_table("segments/a/part.parquet", plan, {})
    rows = [
        dict.fromkeys(DESCRIPTORS.schema().names)
        | {name: row[name] for name in ("segment_id", "video_id", "segment", "source")}
        | {"num_frames": 1, "num_missing": 0, "frame_indices": [0], "timestamps_s": [0.0]}
        | {"status": "ok", "attempts": 1, "decode_s": 0.0, "decoder": "pillow"}
        for row in plan.to_pylist()
    ]
    described = DESCRIPTORS.build(rows).append_column(STREAM, descriptors_to_arrow(descriptors, 16))
    assert described.schema.field(STREAM).type == descriptor_type(16)
    store.publish_table("descriptors/a/part.parquet", described, {})
    config = Config().with_settings(
        [
            *("describe.backbone=squeezenet1_0", "describe.nodes=features.5"),
            *("describe.streams=dense", "encode.encoders=ave"),
            *("picture.resize_px=224", "sampling.policy=uniform"),
        ]
    )
    tables = {name: f"{name}/a" for name in ("videos", "segments", "descriptors")}
    store.publish_json("run.json", {"config": config.to_json(), "tables": tables, "steps": {}})
    return folder / "run"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream has as many cells as the images, in place of the network's."""
    stream = Stream(STREAM, "features.5", "dense", SIDE**2, 16)
    monkeypatch.setattr(correspond, "described_streams", lambda config: {STREAM: stream})


@pytest.mark.usefixtures("small")
def test_images_of_own_colours_are_repainted_as_they_are(run: Path) -> None:
    _, (layer,) = correspond.correspond(str(run), [STREAM], ["0.png", "3.png"], 5)
    assert [picture.video_id for picture in layer.pictures] == ["0.png", "3.png"]
    for picture in layer.pictures:
        truth = np.asarray(Image.open(run.parent / picture.video_id))
        assert (picture.pixels == truth).all()
        # Each colour is once in each of the six other images.
        for repainted in picture.repainted.values():
            assert (repainted == truth).all()
    assert (layer.side, layer.patch_px, layer.num_images) == (SIDE, PX, 7)
    assert len(layer.clusters) == 5
    for cluster in layer.clusters:
        # The six nearest have the colour of the sampled one, the others have not.
        own = [(patch == cluster[0]).all() for patch in cluster[1:]]
        assert own == [True] * 6 + [False] * 4


@pytest.mark.usefixtures("small")
def test_what_does_not_fit_is_left_out_but_for_the_named(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correspond, "ROWS_BYTES", 3 * 16 * 16 * 4)
    saved = correspond.SavedRun.open(str(run))
    stream = correspond.described_streams(saved.config)[STREAM]
    rows, num_left_out = read_rows(saved, stream, ["5.png"])
    assert (len(rows.video_ids), num_left_out) == (4, 3)
    assert rows.video_ids[0] == "5.png"


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_file_that_is_gone_is_grey(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = correspond.SavedRun.open(str(run))
    rows, _ = read_rows(saved, correspond.described_streams(saved.config)[STREAM], [])
    (run.parent / "6.png").rename(run.parent / "elsewhere.png")
    try:
        first, last = rows.span("6.png")
        patches = read_patches(saved, rows, [first, rows.span("2.png")[0]])
    finally:
        (run.parent / "elsewhere.png").rename(run.parent / "6.png")
    assert (patches[first] == 127.5).all()
    assert last - first == 16
    assert "1 of 2 images cannot be read any more" in caplog.text


@pytest.mark.usefixtures("small")
def test_wrong_flags_are_one_line(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"--stream x: .* of positions, which are features_5_den"):
        correspond.correspond(str(run), ["x"], [], 1)
    with pytest.raises(ConfigError, match=r"--image 9.png: .* with descriptors; did you mean '"):
        correspond.correspond(str(run), [], ["9.png"], 1)


@pytest.mark.usefixtures("small")
def test_the_command_writes_a_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(run), "--clusters", "2"]) == 0
    page = Path(capsys.readouterr().out.strip().removeprefix("page: ")).read_text()
    assert_stands_alone(page)
    assert_structure(page)
    assert page.count("data:image/jpeg") == 4 * 3 + 2
    assert main(["--out", str(run), "--clusters", "-1"]) == 2
    assert "error: --clusters" in capsys.readouterr().err


def test_hostile_names_are_shown_as_text() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    picture = Picture(HOSTILE, pixels, {1: pixels, 5: pixels})
    cluster = np.zeros((11, 4, 4, 3), np.float32)
    assert_stands_alone(render([Layer(HOSTILE, 2, 4, (picture,), (cluster,), 9, 0)]))
