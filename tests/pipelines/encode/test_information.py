"""Fisher information of all frames of the training videos, against a loop over them in float64."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from encoders.codebooks.sample import FitSample
from encoders.descriptors.streams import Stream
from encoders.fv_vae.information import INFORMATION, estimated
from encoders.registry import fit_encoder
from encoders.settings import FvVaeSettings
from encoders.stream_specs import Scale
from encoders.tensor_files import save_tensors
from pipelines.encode.information import SumInformation
from pipelines.encode.stage import load_encoder
from pipelines.run.codebook import Codebook
from pipelines.storage.columns import descriptors_to_arrow
from pipelines.storage.store import Store

C, L, CELLS = 6, 2, 5
SCALES = (Scale(7, 1, 1, 1), Scale(14, 4, 2, 2))
STREAM = Stream("pool_dense", "pool", "dense", CELLS, C, scales=SCALES)
FRAMES = {"a": (3, 2), "b": (4,), "c": (1, 5)}
"""{video: frames of each of its segments}."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A file of segments, of which `videos` says whose they are."""
    store = Store(str(tmp_path_factory.mktemp("run")))
    draw = np.random.default_rng(0)
    counts = [count for segments in FRAMES.values() for count in segments]
    rows = [np.abs(draw.normal(1, 0.5, (n * CELLS, C))).astype(np.float16) for n in counts]
    indices = [list(range(count)) for count in counts]
    table = pa.table({"frame_indices": indices, STREAM.name: descriptors_to_arrow(rows, C)})
    store.publish_table("d/x.parquet", table, {}, rows_per_group=2)
    return store


def videos() -> pa.Table:
    ends = np.cumsum([len(segments) for segments in FRAMES.values()])
    rows = [list(range(end - len(s), end)) for end, s in zip(ends, FRAMES.values(), strict=True)]
    files = [["d/x.parquet"] * len(own) for own in rows]
    return pa.table({"video_id": list(FRAMES), "source": list("111"), "files": files, "rows": rows})


def book(store: Store, **changes: object) -> Codebook:
    """A fitted codebook, whose name says what it reads."""
    settings = FvVaeSettings(
        hidden=(), num_latents=L, num_steps=2, information_frames="all", **changes
    )
    sample = FitSample(
        frames=torch.rand(8, CELLS, C, generator=torch.Generator().manual_seed(1)) + 0.5,
        video=torch.arange(8) // 2,
        scales=SCALES,
    )
    name = "-".join(map(str, changes))
    made = Codebook("fv_vae", "fv_vae", STREAM.name, -1, settings, f"x{name}", (1,), "none")
    for file, content in fit_encoder("fv_vae", sample, settings, "none").files().items():
        store.publish(f"{made.folder}/{file}", content)
    return made


def looped(store: Store, made: Codebook, first: int) -> dict[str, np.ndarray]:
    """The information by a loop over all descriptors from cell `first` of each frame on."""
    settings = dataclasses.replace(made.settings, information_frames="sample", information="none")
    core = load_encoder(dataclasses.replace(made, settings=settings), store, "cpu").core
    net = {name: tensor.double().numpy() for name, tensor in core.tensors().items()}
    with store.open_parquet("d/x.parquet") as file:
        cells = [np.array(row, np.float64) for row in file.read()[STREAM.name].to_pylist()]
    squares, a, b, count = np.zeros((C, L + 1)), np.zeros((C, C)), np.zeros((L + 1, L + 1)), 0
    for places in videos()["rows"].to_pylist():
        gradients = []
        for x in np.concatenate(
            [cells[p].reshape(-1, CELLS, C)[:, first:] for p in places]
        ).reshape(-1, C):
            code = np.append(net["encoder.0.weight"] @ x + net["encoder.0.bias"], 1)
            mean = net["decoder.weight"] @ code[:-1] + net["decoder.bias"]
            delta = (mean - x) / net["var_x"] * (mean > 0)
            gradients.append(np.outer(delta, code))
            a, b, count = a + np.outer(delta, delta), b + np.outer(code, code), count + 1
        squares += np.mean(gradients, 0) ** 2
    found = {"mean_square": squares / len(FRAMES), "a": a / count, "b": b / count}
    kinds = {"mean_square": "diagonal", "a": "kronecker", "b": "kronecker"}
    return {f"{kinds[name]}.{name}": value for name, value in found.items()}


@pytest.mark.parametrize(
    ("changes", "first"), [({}, 0), ({"sides": (14,)}, 1)], ids=["all", "sides"]
)
def test_sums_of_all_frames_are_those_of_a_loop_in_whatever_order(
    store: Store, changes: dict, first: int
) -> None:
    """Segments of a video are one video; sizes that a codebook does not read do not count. What
    encodes has this information, and not that of the sample."""
    made = book(store, **changes)
    stage = SumInformation(store, [made], {STREAM.name: STREAM})
    batches = [stage(videos().take([2])), stage(videos().take([1, 0]))]
    totals = {
        kind: torch.stack(
            [torch.tensor(batch[f"{kind}/{made.column}"][0].as_py()) for batch in batches]
        ).sum(0)
        for kind in INFORMATION
    }
    found = estimated(totals, C)
    expected = looped(store, made, first)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=2e-4, atol=1e-6)
    store.publish(made.information, save_tensors(found, "information", {}))
    core = load_encoder(made, store, "cpu").core
    used = core.tensors()["information.mean_square"]
    np.testing.assert_allclose(used.numpy(), expected["diagonal.mean_square"], rtol=2e-4, atol=1e-6)
