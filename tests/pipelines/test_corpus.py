"""The whole data flow on real video, on the one local cluster of this test process."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from jobs import search
from jobs.fcvid_encode import main
from pipelines.demo.queries import QUERIES
from pipelines.doctor import examine
from pipelines.doctor.record import Record
from pipelines.fit import step as fit_step
from pipelines.ledger import accounts as ledger
from pipelines.run.steps import STEPS
from pipelines.storage.store import Store
from tests.conftest import SECRET
from tests.pipelines.analysts import answers, assert_alike
from tests.pipelines.report.page import assert_stands_alone

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

SMALL = (
    "sampling.num_frames=3",
    "fit.num_frames=40",
    "vlad.num_centroids=4",
    "gmm_fv.num_components=3",
    "gmm_fv.max_iterations=4",
    "fv_vae.hidden=16",
    "fv_vae.num_latents=5",
    "fv_vae.num_steps=6",
    "fv_vae.batch_frames=4",
    "split.num_folds=2",
)
NOTHING = ledger.Outcome(did_work=False, planned=0, ok=0, partial=0, failed=0)
STREAMS = ("features_12_appearance", "features_12_difference")


def run(data: Path, out: Path, *settings: str, extra: tuple[str, ...] = ()) -> int:
    folder = data / "labelled" / "weizmann"
    weights = f"describe.weights={data / 'weights' / 'squeezenet1_0.safetensors'}"
    flags = ["--videos", str(folder), "--labels", str(folder / "labels.csv"), "--out", str(out)]
    flags += ["--recipe", "demo", "--limit", "12", *extra]
    for setting in (weights, *SMALL, *settings):
        flags += ["--set", setting]
    return main(flags)


def rows(out: Path, pattern: str) -> pa.Table:
    """The rows of all visible files."""
    files = [file for file in sorted(out.glob(pattern)) if file.name[0] != "."]
    return pa.concat_tables(pq.read_table(file).replace_schema_metadata(None) for file in files)


def written(out: Path, *tables: str) -> dict[str, int]:
    """{file: time of its last change} of the Parquet files of some tables."""
    return {
        str(file): file.stat().st_mtime_ns
        for table in tables
        for file in out.glob(f"{table}/**/*.parquet")
    }


@pytest.fixture(scope="module")
def finished(local_ray: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    assert run(data, out) == 0
    return out


def test_every_video_has_its_rows(finished: Path) -> None:
    videos = rows(finished, "videos/*/*.parquet")
    segments = rows(finished, "segments/*/*.parquet")
    descriptors = rows(finished, "descriptors/*/*.parquet")
    assert videos.num_rows == segments.num_rows == descriptors.num_rows == 12
    assert set(descriptors["status"].to_pylist()) == {"ok"}
    assert descriptors["num_frames"].to_pylist() == [3] * 12
    for row in descriptors.to_pylist():
        assert len(row[STREAMS[0]]) == 3 * 50
        assert len(row[STREAMS[1]]) == 2 * 50
        assert {len(d) for d in row[STREAMS[0]]} == {512}
        assert {len(d) for d in row[STREAMS[1]]} == {1024}
        assert row["timestamps_s"] == sorted(row["timestamps_s"])
    for encoder in ("ave", "vlad", "gmm_fv", "fv_vae"):
        for stream in STREAMS:
            table = rows(finished, f"encodings/{encoder}-{stream}/*/*.parquet")
            vectors = np.stack(table["vector"].to_numpy())
            assert sorted(table["video_id"].to_pylist()) == sorted(videos["video_id"].to_pylist())
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


BESIDE_TENSORS = ("solutions", "models")
"""Tables that lie beside the classifiers whose story they tell."""


def test_the_folder_of_a_table_is_read_as_it_is(finished: Path) -> None:
    tables = json.loads((finished / "run.json").read_text())["tables"]
    for name, folder in tables.items():
        if name.partition("/")[0] in BESIDE_TENSORS:
            continue
        expected = rows(finished, f"{folder}/*.parquet").num_rows
        files = f"'{finished / folder}/*.parquet'"
        assert duckdb.sql(f"SELECT count(*) FROM {files}").fetchall() == [(expected,)]
        assert polars.read_parquet(finished / folder).height == expected, name
        assert pyarrow.dataset.dataset(finished / folder).count_rows() == expected


@pytest.mark.slow
def test_the_hugging_face_reads_the_folder_of_a_table(finished: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    tables = json.loads((finished / "run.json").read_text())["tables"]
    for name in ("videos", f"encodings/ave-{STREAMS[0]}"):
        found = datasets.load_dataset(
            "parquet", data_dir=str(finished / tables[name]), cache_dir=str(tmp_path)
        )
        assert found["train"].num_rows == 12


def test_a_run_whose_marks_lie_in_its_folders_is_complete(
    finished: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs of before have them there."""
    old = Path(shutil.copytree(finished, tmp_path / "old"))
    for mark in sorted((old / "marks").rglob("*.json")):
        mark.rename(old / mark.relative_to(old / "marks"))
    shutil.rmtree(old / "marks")
    assert examine.examine(Store(str(old))).findings == ()
    before = {str(file): file.stat().st_mtime_ns for file in old.rglob("_done*")}
    with caplog.at_level("INFO"):
        assert run(data, old) == 0
    assert "nothing to do: every step is complete" in caplog.text
    assert {str(file): file.stat().st_mtime_ns for file in old.rglob("_done*")} == before


@pytest.mark.nightly
def test_streams_at_depth_and_views_go_through_all_steps(
    local_ray: None, data: Path, tmp_path: Path
) -> None:
    streams = "appearance,difference@gap=2:nodes=input/features.5,rank@gap_s=0.04:frames=3"
    settings = (f"describe.streams={streams}", "picture.views=mirror", "encode.encoders=ave,fv_vae")
    settings += ("classify.fusions=",)
    assert run(data, tmp_path, *settings) == 0
    names = {
        "features_12_appearance": 512,
        "features_12_rank_gap0_04sx3": 1024,
        "input_difference_gap2": 6,
        "features_5_difference_gap2": 512,
    }
    for row in rows(tmp_path, "descriptors/*/*.parquet").to_pylist():
        assert (row["status"], row["num_frames"]) == ("ok", 3)
        for name, width in names.items():
            # Two views of 50 cells; the first frame has a window too.
            assert (len(row[name]), len(row[name][0])) == (3 * 2 * 50, width)
    for name in names:
        attention = rows(tmp_path, f"attention/fv_vae-{name}/*/*.parquet")
        assert attention.num_rows == 12 * 3
        assert {len(cells) for cells in attention["cells"].to_pylist()} == {50}
        encodings = rows(tmp_path, f"encodings/fv_vae-{name}/*/*.parquet")
        assert set(encodings["num_descriptors"].to_pylist()) == {300}
    assert set(names) <= set(rows(tmp_path, "metrics/*/*.parquet")["stream"].to_pylist())
    assert examine.examine(Store(str(tmp_path))).findings == ()
    before = written(tmp_path, "descriptors", "encodings", "scores")
    assert run(data, tmp_path, *settings) == 0
    assert written(tmp_path, "descriptors", "encodings", "scores") == before


def test_results_follow_from_the_scores(finished: Path) -> None:
    metrics = rows(finished, "metrics/*/*.parquet").to_pylist()
    scores = rows(finished, f"scores/vlad-{STREAMS[0]}/*/*.parquet").to_pylist()
    best: dict[str, dict] = {}
    for row in scores:
        if row["score"] > best.get(row["video_id"], {"score": -np.inf})["score"]:
            best[row["video_id"]] = row
    expected = np.mean([row["is_true"] for row in best.values()])
    found = [
        row["value"]
        for row in metrics
        if (row["encoder"], row["stream"], row["split"]) == ("vlad", STREAMS[0], "all")
        and row["metric"] == "accuracy"
    ]
    assert found == [pytest.approx(expected)]
    assert {row["stream"] for row in metrics} == {*STREAMS, "+".join(STREAMS), "late_weighted"}


def test_files_carry_their_provenance(finished: Path) -> None:
    file = next(finished.glob("descriptors/*/*.parquet"))
    footer = pq.read_metadata(file).metadata
    assert footer[b"video_fisher.recipe"] == b"demo"
    assert len(footer[b"video_fisher.weights"]) == 64
    assert b"squeezenet1_0" in footer[b"video_fisher.backbone"]
    assert b"num_frames=3" in footer[b"video_fisher.sampling"]
    record = json.loads((finished / "run.json").read_text())
    assert set(record["steps"]) == set(STEPS) - {"train"}  # no network is asked for
    assert record["config"]["vlad"]["num_centroids"] == 4


def test_the_report_is_one_page_with_the_results(finished: Path) -> None:
    page = (finished / "report" / "index.html").read_text()
    assert "squeezenet1_0.safetensors" in page
    assert "fv_vae" in page
    assert page.count("data:image/jpeg;base64,") >= 8
    assert "fitted once, on descriptors of all" in page


READERS = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'ray':
            raise ImportError('blocked: ' + name)
sys.meta_path.insert(0, Block())
import duckdb, glob, pandas, polars, pyarrow.parquet
out = sys.argv[1]
patterns = ['videos/*', 'segments/*', 'descriptors/*', 'failures/*', 'samples/*/*', 'codebooks/*/*',
            'encodings/*/*', 'attention/*/*', 'scores/*/*', 'metrics/*']
for pattern in patterns:
    files = sorted(glob.glob(f'{out}/{pattern}/*.parquet'))
    assert files, pattern
    for file in files:
        count = pyarrow.parquet.read_metadata(file).num_rows
        relation = duckdb.read_parquet(file)
        assert len(relation.fetchall()) == count, file
        types = ' '.join(map(str, relation.types))
        assert 'BLOB' not in types, (file, types)
        frame = polars.read_parquet(file)
        assert frame.height == count, file
        assert not any(isinstance(t, (polars.Binary, polars.Object)) for t in frame.dtypes), file
        assert len(pandas.read_parquet(file)) == count, file
        assert frame.columns == relation.columns == list(pandas.read_parquet(file).columns)
print('read')
"""


def test_duckdb_pandas_and_polars_read_every_table_without_ray(finished: Path) -> None:
    command = [sys.executable, "-c", READERS, str(finished)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "read", done.stderr


def test_the_queries_that_the_demo_prints_run_as_pasted(finished: Path) -> None:
    text = QUERIES.format(out=finished, stream=STREAMS[1])
    statements = text[text.index("-- ") :].split(";")[:-1]
    assert len(statements) == 4
    # The first says where METRICS are, the others ask.
    duckdb.execute(statements[0])
    for statement in statements[1:]:
        found = duckdb.sql(statement).fetchall()
        assert 0 < len(found) <= 30


def test_three_tools_answer_the_analysts_questions_alike(finished: Path) -> None:
    assert_alike(answers(finished, {"pool5_": "features_12_"}))


def searched(capsys: pytest.CaptureFixture[str], finished: Path, query: object) -> dict:
    flags = ["--out", str(finished), "--query", str(query), "--encoder", "vlad", "--json"]
    assert search.main(flags) == 0
    return json.loads(capsys.readouterr().out)


def test_a_search_finds_the_same_by_id_by_file_and_by_copy(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file is decoded, described and encoded as the run did it; itself is no result, a copy's
    origin is."""
    video = rows(finished, "videos/*/*.parquet").to_pylist()[0]
    by_id = searched(capsys, finished, video["video_id"])
    file = Path(video["uri"])
    by_file = searched(capsys, finished, f"{file.parent}/../{file.parent.name}/{file.name}")
    copy = tmp_path / "another name.avi"
    copy.write_bytes(Path(video["uri"]).read_bytes())
    by_copy = searched(capsys, finished, copy)
    assert (by_id["query"], by_file["query"]) == (video["video_id"], video["uri"])
    assert [len(found["results"]) for found in (by_id, by_file, by_copy)] == [10, 10, 10]
    similarity = {r["video_id"]: r["similarity"] for r in by_id["results"]}
    assert video["video_id"] not in similarity
    assert {r["video_id"]: r["similarity"] for r in by_file["results"]} == pytest.approx(
        similarity, abs=1e-4
    )
    first = by_copy["results"][0]
    assert (first["video_id"], first["labels"]) == (video["video_id"], video["labels"])
    assert first["similarity"] == pytest.approx(1)
    page = Path(by_id["page"]).read_text()
    assert page.count("data:image/jpeg;base64,") == 11 * 3
    assert_stands_alone(page)
    copy.write_bytes(Path(video["uri"]).read_bytes()[:3000])
    assert search.main(["--out", str(finished), "--query", str(copy)]) == 2
    assert "cannot be decoded (" in capsys.readouterr().err
    assert examine.examine(Store(str(finished))).findings == ()


def test_a_second_run_does_nothing_and_says_so(
    finished: Path, data: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("a cluster was asked for")

    monkeypatch.setattr("pipelines.cluster.connect.connect", refuse)
    before = {f: f.stat().st_mtime_ns for f in finished.rglob("*") if f.is_file()}
    with caplog.at_level("INFO"):
        assert run(data, finished) == 0
    assert "nothing to do: every step is complete" in caplog.text
    assert {f: f.stat().st_mtime_ns for f in finished.rglob("*") if f.is_file()} == before


def test_a_codebook_setting_refits_and_encodes_but_does_not_decode(
    finished: Path, data: Path
) -> None:
    kept = written(
        finished, "videos", "descriptors", "samples", "encodings/ave-*", "codebooks/ave-*"
    )
    assert run(data, finished, "vlad.num_centroids=5", "classify.fusions=") == 0
    after = written(
        finished, "videos", "descriptors", "samples", "encodings/ave-*", "codebooks/ave-*"
    )
    assert after == kept
    widths = {
        len(rows(finished, f"{folder.relative_to(finished)}/*.parquet")["vector"][0])
        for folder in finished.glob(f"encodings/vlad-{STREAMS[0]}/*")
    }
    assert widths == {4 * 512, 5 * 512}


def test_variants_share_what_they_can(finished: Path, data: Path) -> None:
    """Another information and another input of the classifier train no codebook again."""
    kept = written(finished, "codebooks", "descriptors", "samples")
    names = (
        *("fv_vae", "fv_vae@information=kronecker:damping=0.1"),
        *("vlad@compress.kind=pca:compress.num_features=3", "vlad"),
    )
    before = set(finished.glob("encodings/*/*"))
    settings = (f"encode.encoders={','.join(names)}", "classify.fusions=")
    assert run(data, finished, *settings, "classify.keep_folds=true") == 0
    assert written(finished, "codebooks", "descriptors", "samples") == kept
    made = set(finished.glob("encodings/*/*")) - before
    assert {folder.parent.name for folder in made} == {f"fv_vae-{stream}" for stream in STREAMS}
    metrics = rows(finished, "metrics/*/*.parquet").to_pylist()
    results = {(row["encoder"], row["stream"]) for row in metrics}
    assert {(name, stream) for name in names for stream in STREAMS} <= results
    folder = finished / "codebooks" / f"fv_vae-{STREAMS[0]}"
    assert next(folder.glob("*/information.safetensors")).stat().st_size > 512 * 512 * 8
    widths = {
        safetensors.numpy.load_file(file)["weights"].shape[1]
        for file in finished.glob("classifiers/vlad_compress*/*/fold-*.safetensors")
    }
    assert widths == {3}
    assert run(data, finished) == 0


def test_attention_says_where_and_when(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())["tables"]
    table = rows(finished, f"{record[f'attention/fv_vae-{STREAMS[1]}']}/*.parquet")
    assert table.num_rows == 12 * 2
    cells = np.stack(table["cells"].to_numpy())
    assert cells.shape == (24, 50)
    assert (cells >= 0).all()
    np.testing.assert_allclose(table["value"].to_numpy(), cells.sum(1), rtol=1e-5)
    page = (finished / "report" / "index.html").read_text()
    assert "Attention" in page


def test_what_is_missing_is_made_again_and_nothing_else(finished: Path, data: Path) -> None:
    """As after a crash: the rows that are visible stay, the others come back with the same
    values."""
    folder = next(finished.glob("descriptors/*"))
    before = rows(finished, "descriptors/*/*.parquet").sort_by("segment_id")
    table = pq.read_table(next(folder.glob("*.parquet")))
    for file in folder.iterdir():
        file.unlink()
    shutil.rmtree(finished / "marks" / folder.relative_to(finished))
    kept = table.slice(0, 5)
    pq.write_table(kept, folder / "kept.parquet")
    (folder / ".hidden.parquet").write_bytes(b"half a file")
    assert run(data, finished, extra=("--steps", "index,describe")) == 0
    after = rows(finished, "descriptors/*/*.parquet").sort_by("segment_id")
    same = [n for n in before.column_names if n != "decode_s"]
    assert after.num_rows == 12
    assert after.select(same).equals(before.select(same))
    # A segment that is decoded a second time does not take exactly as long.
    took = dict(zip(*(after[name].to_pylist() for name in ("segment_id", "decode_s")), strict=True))
    assert [took[row["segment_id"]] for row in kept.to_pylist()] == kept["decode_s"].to_pylist()
    # All rows are put together, as they are in an undisturbed run.
    (file,) = folder.glob("[!._]*.parquet")
    assert pq.read_metadata(file).num_rows == 12


def test_a_run_killed_between_two_tables_writes_no_row_twice(finished: Path, data: Path) -> None:
    """Several tables come out of one write task; here one of them lost rows that the others
    have."""
    record = json.loads((finished / "run.json").read_text())["tables"]
    shortened = [finished / record["videos"], finished / record[f"encodings/ave-{STREAMS[0]}"]]
    for folder in shortened:
        table = pa.concat_tables(pq.read_table(file) for file in folder.glob("*.parquet"))
        for file in folder.iterdir():
            file.unlink()
        shutil.rmtree(finished / "marks" / folder.relative_to(finished))
        kept = table.slice(0, 5)
    pq.write_table(kept, folder / "kept.parquet")
    for mark in finished.glob("marks/encodings/*/*/_done-*.json"):
        mark.unlink()
    assert run(data, finished, extra=("--steps", "index,describe,fit,encode")) == 0
    whole = [record["segments"], record["videos"]]
    whole += [folder for name, folder in record.items() if name.startswith("encodings/")]
    assert len(whole) == 2 + 8
    for folder in whole:
        table = rows(finished, f"{folder}/*.parquet")
        key = "segment_id" if "segment_id" in table.column_names else "video_id"
        assert table.num_rows == len(set(table[key].to_pylist())) == 12, folder


def test_an_interrupted_sample_is_drawn_again(
    finished: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []
    monkeypatch.setattr("pipelines.corpus.run", lambda job, *_: jobs.append(job) or NOTHING)
    monkeypatch.setattr("pipelines.corpus.closing_lines", lambda *_: [])
    assert run(data, finished) == 0
    seen_by_doctor = Record(jobs[0].store)
    for step in ("index", "describe", "encode", "classify", "evaluate"):
        assert seen_by_doctor.marks(step) == jobs[0].marks(step)
    folder = jobs[0].sample(STREAMS[0])
    before = jobs[0].store.read_table(folder)
    jobs[0].store.publish_table(f"{folder}/partial.parquet", before.slice(0, 3), {})
    (finished / "marks" / folder / "_done.json").unlink()
    fit_step._sample(jobs[0])
    order = [("video_id", "ascending"), ("frame", "ascending")]
    assert jobs[0].store.read_table(folder).sort_by(order).equals(before.sort_by(order))


def test_codebooks_are_the_same_side_by_side(finished: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "codebooks")
    assert run(data, out, "fit.codebooks_at_once=2", extra=("--steps", "fit")) == 0
    made = sorted(out.glob("codebooks/*/*/*.safetensors"))
    assert {file.parent.parent.name for file in made} == {
        f"{name}-{stream}" for name in ("ave", "vlad", "gmm_fv", "fv_vae") for stream in STREAMS
    }
    for file in made:
        assert file.read_bytes() == (finished / file.relative_to(out)).read_bytes(), file
    assert not (out / "train").exists()


@pytest.mark.nightly
def test_labels_in_the_loss_give_a_codebook_per_fold(finished: Path, data: Path) -> None:
    """On two teams of two Ray Train workers, which gloo connects."""
    settings = ("encode.encoders=fv_vae,gmm_fv", "describe.streams=appearance", "fv_vae.lambda3=1")
    settings += ("fit.num_workers=2", "fit.codebooks_at_once=2", "classify.fusions=")
    out = finished.parent / "folds"
    assert run(data, out, *settings) == 0
    assert len(list(out.glob("codebooks/fv_vae-*/*/codebook.safetensors"))) == 2
    assert len(list(out.glob("encodings/fv_vae-*/*"))) == 2
    assert "fitted once per fold" in (out / "report" / "index.html").read_text()
    assert examine.examine(Store(str(out))).findings == ()


def test_object_storage_gives_the_same_rows_as_a_folder(
    finished: Path, data: Path, s3_bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Videos, labels, weights and output on S3; names with a space, a quote and an umlaut among
    them."""
    import boto3

    odd = "bend/d\u00e4ria's bend.avi"
    source = data / "labelled" / "weizmann"
    files = {odd: source / "bend" / "daria_bend.avi"}
    for name in ("bend/ido_bend.avi", "walk/daria_walk.avi", "walk/ido_walk.avi"):
        files[name] = source / name
    client = boto3.client("s3")
    for name, file in files.items():
        client.upload_file(str(file), "bucket", f"videos/{name}")
    labels = "path,label\n" + "".join(f'"{name}",{name[:4]}\n' for name in files)
    client.put_object(Bucket="bucket", Key="labels.csv", Body=labels.encode())
    weights = data / "weights" / "squeezenet1_0.safetensors"
    client.upload_file(str(weights), "bucket", "weights.safetensors")
    flags = ["--videos", f"{s3_bucket}/videos", "--labels", f"{s3_bucket}/labels.csv"]
    flags += ["--out", f"{s3_bucket}/run", "--recipe", "demo"]
    weights = f"describe.weights={s3_bucket}/weights.safetensors"
    short = ("encode.encoders=vlad,fv_vae", "fv_vae.num_steps=2", "fit.checkpoint_s=0.01")
    short += ("classify.fusions=",)
    for setting in (weights, *SMALL, *short):
        flags += ["--set", setting]
    with caplog.at_level("DEBUG"):
        assert main(flags) == 0
    store = Store(f"{s3_bucket}/run")
    folder = store.read_json("run.json")["tables"]["descriptors"]
    found = {row["video_id"]: row for row in store.read_table(folder).to_pylist()}
    assert set(found) == set(files)
    local = {row["video_id"]: row for row in rows(finished, "descriptors/*/*.parquet").to_pylist()}
    expected = local["bend/daria_bend.avi"]
    for column in ("timestamps_s", "frame_indices", *STREAMS):
        assert found[odd][column] == expected[column]
    assert not examine.examine(store).has_errors
    assert b"</html>" in store.read("report/index.html")
    names = [
        entry["Key"] for entry in client.list_objects_v2(Bucket="bucket", Prefix="run/")["Contents"]
    ]
    assert any("codebook.safetensors" in name for name in names)
    assert not any("lock" in name for name in names)
    for name in names:
        content = client.get_object(Bucket="bucket", Key=name)["Body"].read()
        assert SECRET.encode() not in content
        if name.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(content))
            texts = [c for c in table.schema.names if table.schema.field(c).type == pa.string()]
            assert SECRET not in str(table.select(texts).to_pydict())
    assert SECRET not in "".join(r.getMessage() for r in caplog.records if r.name[:4] != "boto")


FAILED = {
    "audio_only.mp4": "no_video_stream",
    "audio_only_xhe_aac.mp4": "no_video_stream",
    "audio_with_cover_art.mp3": "no_video_stream",
    "nasa_13013.mp4.audio.mp3": "no_video_stream",
    "bipbop_cbcs_video_init.mp4": "no_frames",
    "bipbop_nonfragment_header.mp4": "no_frames",
    "invalid_userdata.mp4": "no_frames",
    "chunk_out_of_range.mp4": "not_a_video",
    "zero_bytes.webm": "empty_file",
    "test_case_1185230.mp4": "damaged",
    # Eight pictures come out of it, all predicted from a key frame that is mostly plain green.
    "no_timescale.mp4": "damaged",
}
PARTIAL = {"decord_corrupted.mp4"}


def test_bad_input_costs_its_own_row_only(local_ray: None, data: Path, tmp_path: Path) -> None:
    files = sorted([*(data / "clips").iterdir(), *(data / "corrupt").iterdir()])
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path\n" + "\n".join(str(file) for file in files) + "\n")
    flags = ["--videos", str(manifest), "--out", str(tmp_path / "out"), "--recipe", "demo"]
    flags += ["--set", "describe.weights=random:0", "--set", "sampling.num_frames=4"]
    flags += ["--set", "describe.streams=difference", "--steps", "index,describe"]
    assert main(flags) == 0
    table = rows(tmp_path / "out", "descriptors/*/*.parquet").to_pylist()
    found = {Path(row["video_id"]).name: row for row in table}
    assert len(table) == len(found) == len(files) == 82
    assert {n: r["error_type"] for n, r in found.items() if r["status"] == "failed"} == FAILED
    assert {n for n, r in found.items() if r["status"] == "partial"} == PARTIAL
    for name, row in found.items():
        if row["status"] == "ok":
            assert row["num_missing"] == 0 < row["num_frames"] == len(row["frame_indices"]), name
            assert len(row[STREAMS[1]]) == 50 * (row["num_frames"] - 1), name
        else:
            assert row["error"], name
            assert row["stage"] in ("index", "decode"), name
    failures = rows(tmp_path / "out", "failures/*/*.parquet")
    assert failures.num_rows == len(FAILED) + len(PARTIAL)
    # The same run with a stricter limit has nothing to do, and says what it thinks of the failures.
    assert main([*flags, "--set", "run.max_failed_fraction=0.05"]) == 3


def one_video(data: Path, folder: Path, number: int = 0) -> list[str]:
    """Flags of a run on one video, which is put into `folder`."""
    corpus_folder = data / "labelled" / "weizmann"
    video = sorted(corpus_folder.rglob("*.avi"))[number]
    (folder / "videos").mkdir(exist_ok=True)
    shutil.copy2(video, folder / "videos" / "a.avi")
    settings = [f"describe.weights={data / 'weights' / 'squeezenet1_0.safetensors'}", *SMALL]
    flags = ["--videos", str(folder / "videos"), "--out", str(folder / "out"), "--recipe", "demo"]
    for setting in (*settings, "cluster.placement=together"):
        flags += ["--set", setting]
    return flags


@pytest.mark.nightly
def test_a_file_that_is_put_back_is_described_again_where_its_rows_were_replaced(
    local_ray: None, data: Path, tmp_path: Path
) -> None:
    """Files of DESCRIPTORS are named by ids: here the rows of the changed video take the place of
    those before."""
    found = []
    for number in (0, 1, 0):
        flags = one_video(data, tmp_path, number)
        assert main([*flags, "--steps", "index,describe"]) == 0
        (row,) = rows(tmp_path / "out", "descriptors/*/*.parquet").to_pylist()
        found.append((row["source"], row["status"]))
    assert found[0] == found[2] != found[1]
    assert {status for _, status in found} == {"ok"}


def test_a_stream_of_which_no_video_has_anything_is_a_message(
    local_ray: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*one_video(data, tmp_path), "--steps", "index,describe,fit"]
    flags += ["--set", "describe.streams=appearance,difference@gap_s=100"]
    assert main([*flags, "--set", "encode.encoders=vlad"]) == 1
    printed = capsys.readouterr().err
    assert "expected descriptors of features_12_difference_gap100s, found none" in printed
    assert "Traceback" not in printed
