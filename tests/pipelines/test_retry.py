"""--retry-failed: exactly the failed segments again, and then everything that depends on them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.fcvid_encode import main
from pipelines.storage.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.timeout(400)]

SMALL = ("sampling.num_frames=3",)
DECORD = ("--retry-failed", "decord", "--set", "decode.accept_old_codecs=true")


def run(data: Path, out: Path, *extra: str) -> int:
    """Five small videos and a larger one, without labels, to descriptors."""
    folder = data / "labelled" / "weizmann"
    files = [*sorted((folder / "bend").iterdir())[:5], data / "clips" / "dog_eating_854132.mp4"]
    manifest = out.parent / "manifest.csv"
    manifest.write_text("path\n" + "".join(f"{file}\n" for file in files))
    flags = ["--videos", str(manifest), "--out", str(out), "--recipe", "demo"]
    flags += ["--steps", "index,describe"]
    weights = f"describe.weights={data / 'weights' / 'squeezenet1_0.safetensors'}"
    for setting in (weights, *SMALL, "encode.encoders=vlad", "describe.streams=appearance"):
        flags += ["--set", setting]
    return main([*flags, *extra])


def tables(out: Path) -> dict[str, pa.Table]:
    """The tables of today's run, sorted, without what differs from run to run."""
    store = Store(str(out))
    found = {}
    for name, folder in store.read_json("run.json")["tables"].items():
        if store.files(folder):
            table = store.read_table(folder)
            keep = [n for n in table.column_names if n not in ("decode_s", "attempts")]
            key = "segment_id" if "segment_id" in keep else "video_id"
            found[name] = table.select(keep).sort_by(key)
    return found


def later(out: Path) -> str:
    """What codebooks, and so encodings, are named by."""
    record = Store(str(out)).read_json("run.json")["tables"]
    (folder,) = {folder for name, folder in record.items() if name.startswith("encodings/")}
    return folder


def took(out: Path) -> dict[tuple[str, int], float]:
    """How long each attempt of each segment took to decode; a second time would not be exactly as
    long."""
    table = pa.concat_tables(pq.read_table(f) for f in out.glob("descriptors/*/*.parquet"))
    return {(r["segment_id"], r["attempts"]): r["decode_s"] for r in table.to_pylist()}


def test_a_retry_ends_as_if_nothing_had_failed(
    local_ray: None, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert run(data, tmp_path / "a" / "run") == 0
    out = tmp_path / "b" / "run"
    # A budget that the larger video breaks; budgets are no part of what names the outputs.
    assert run(data, out, "--set", "decode.max_frame_px=200000") == 0
    failures = pq.read_table(next(out.glob("failures/*/*.parquet"))).to_pylist()
    assert [row["error_type"] for row in failures] == ["frame_too_large"]
    assert [row["attempts"] for row in failures] == [1]
    first = took(out)

    with_failure = later(out)
    # Without the flag a failed segment stays as it is.
    with caplog.at_level("INFO"):
        assert run(data, out) == 0
    assert "nothing to do" in caplog.text

    assert run(data, out, "--retry-failed") == 0
    again = took(out)
    assert {attempt: again[attempt] for attempt in first} == first
    assert len(again) == len(first) + 1
    expected, found = tables(tmp_path / "a" / "run"), tables(out)
    assert expected.keys() == found.keys() == {"videos", "segments", "descriptors", "failures"}
    # What follows is named as in the undisturbed run, and not as in the one with a failure.
    assert later(tmp_path / "a" / "run") == later(out) != with_failure
    assert found["failures"].num_rows == 0
    newest = found.pop("descriptors").filter(pa.compute.field("status") == "ok")
    assert newest.equals(expected.pop("descriptors"))
    for name, table in expected.items():
        assert found[name].equals(table), name

    # Once more there is nothing to try, and nothing is done.
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*") if f.is_file()}
    caplog.clear()
    with caplog.at_level("INFO"):
        assert run(data, out, "--retry-failed") == 0
    assert "no segment has failed" in caplog.text
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*") if f.is_file()} == before


def test_a_retry_with_the_other_decoder_is_recorded_and_bounded(
    local_ray: None, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    strict = ("--set", "decode.max_frame_px=200000")
    assert run(data, out, *strict) == 0
    # It fails again: one more attempt, the rest left alone.
    assert run(data, out, *DECORD, *strict) == 0
    rows = pa.concat_tables(pq.read_table(f) for f in out.glob("descriptors/*/*.parquet"))
    attempts = sorted(zip(rows["status"].to_pylist(), rows["attempts"].to_pylist(), strict=True))
    assert attempts == [("failed", 1), ("failed", 2), *[("ok", 1)] * 5]
    failures = [pq.read_table(f).to_pylist() for f in out.glob("failures/*/*.parquet")]
    assert [row["attempts"] for row in failures[0]] == [2]
    assert run(data, out, *DECORD) == 0
    rows = pa.concat_tables(pq.read_table(f) for f in out.glob("descriptors/*/*.parquet"))
    recovered = [row for row in rows.to_pylist() if row["attempts"] == 3]
    assert [row["status"] for row in recovered] == ["ok"]
    assert recovered[0]["decoder"].startswith("decord ")
    others = [row for row in rows.to_pylist() if row["attempts"] == 1 and row["status"] == "ok"]
    assert len(others) == 5
    assert all(row["decoder"].startswith("pyav ") for row in others)


def test_a_retry_needs_the_steps_that_try(data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert run(data, out, "--retry-failed", "--steps", "describe") == 2
    assert "error:" in capsys.readouterr().err
