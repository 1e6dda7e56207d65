"""Sweeps: which variants they are, and a small one that runs, prints and draws."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import compare_encoders, sweep
from pipelines.errors import ConfigError
from pipelines.settings.config import Config
from pipelines.settings.recipes import recipe
from pipelines.studies.sweep import variants

TINY = (
    "sampling.num_frames=3",
    "fit.num_frames=40",
    "gmm_fv.max_iterations=3",
    "gmm_fv.num_components=2",
    "vlad.num_centroids=2",
    "fv_vae.hidden=16",
    "fv_vae.num_latents=3",
    "fv_vae.num_steps=4",
    "fv_vae.batch_frames=4",
    "bilinear.form=tensor_sketch",
    "bilinear.num_features=64",
)


def flags(data: Path, out: Path, *settings: str) -> list[str]:
    folder = data / "labelled" / "weizmann"
    weights = f"describe.weights={data / 'weights' / 'squeezenet1_0.safetensors'}"
    found = ["--videos", str(folder), "--labels", str(folder / "labels.csv"), "--out", str(out)]
    found += ["--limit", "12"]
    for setting in (weights, *TINY, "classify.fusions=", "evaluate.bootstrap=20", *settings):
        found += ["--set", setting]
    return found


def test_a_dimension_is_met_by_each_encoder() -> None:
    """2^12 to 2^17 of 512 channels: DQ's 7 latents and 8 centroids, up to its 255 and 256."""
    config = recipe("ucf101").with_settings(["describe.streams=appearance"])
    names = variants(config, "dimension", None)
    assert names[:3] == (
        "fv_vae@num_latents=7",
        "vlad@num_centroids=8",
        "gmm_fv@num_components=4",
    )
    assert names[-3:] == (
        "fv_vae@num_latents=255",
        "vlad@num_centroids=256",
        "gmm_fv@num_components=128",
    )
    for name in names:
        assert config.variant(name).settings != getattr(config, config.variant(name).base) or (
            name in names[-3:]
        )


def test_lambda3_is_swept_over_its_decades() -> None:
    names = variants(Config(), "lambda3", None)
    assert [name.partition("=")[2] for name in names] == [
        "0",
        "1",
        "10",
        "100",
        "1000",
        "10000",
        "100000",
    ]


def test_a_vector_is_compressed_in_three_ways_as_far_as_each_goes() -> None:
    config = recipe("weizmann").with_settings(["describe.streams=appearance"])
    names = variants(config, "compression", (32.0, 64.0, 2048.0), num_training=50)
    random = "fv_vae@compress.kind=random_maclaurin:compress.num_features"
    assert names == (
        "fv_vae",
        "fv_vae@compress.kind=pca:compress.num_features=32",
        f"{random}=32",
        f"{random}=64",
        "fv_vae@num_latents=3",
        f"{random}=2048",
    )
    # Compressed vectors are of the codebook of the whole ones.
    assert len({config.variant(name).codebook for name in names}) == 2
    paper = recipe("ucf101").with_settings(["describe.streams=appearance"])
    swept = variants(paper, "compression", None, 9537)
    longest = {
        way: max(int(name[len(way) :]) for name in swept if name.startswith(way))
        for way in (
            "fv_vae@num_latents=",
            f"{random}=",
            "fv_vae@compress.kind=pca:compress.num_features=",
        )
    }
    assert list(longest.values()) == [127, 2**16, 2**13]
    with pytest.raises(
        ConfigError, match=r"--values: expected whole numbers below 32,768, .* got 400000"
    ):
        variants(config, "compression", (4e5,), 50)


def test_a_dimension_without_a_codebook_is_refused() -> None:
    config = recipe("weizmann").with_settings(["describe.streams=appearance"])
    with pytest.raises(ConfigError, match=r"--values: expected multiples of 1024 .*, got 5000"):
        variants(config, "dimension", (5000.0,))


def test_wrong_values_are_one_message(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    wrong = ["--sweep", "lambda3", "--values", "1,x", *flags(data, Path("/nowhere"))]
    assert sweep.main(wrong) == 2
    assert "--values: expected numbers joined by commas, got '1,x'" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_sweep_writes_metrics_and_draws_its_curves(
    local_ray: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = ["--sweep", "dimension", "--values", "1024,2048"]
    # A split into two: its test videos play no part in a sweep.
    split = ("split.kind=random", "split.num_folds=2")
    assert sweep.main([*values, *flags(data, tmp_path, *split)]) == 0
    metrics = pq.read_table(next(tmp_path.glob("metrics/*/*.parquet"))).to_pylist()
    found = {row["encoder"]: row["num_videos"] for row in metrics if row["split"] == "all"}
    singles = {name: count for name, count in found.items() if "+" not in name}
    assert set(singles) == {
        f"{name}"
        for name in (
            *("fv_vae@num_latents=1", "fv_vae@num_latents=3"),
            *("vlad@num_centroids=2", "vlad@num_centroids=4"),
            *("gmm_fv@num_components=1", "gmm_fv@num_components=2"),
        )
    }
    videos = pq.read_table(next(tmp_path.glob("videos/*/*.parquet")))
    assert videos.num_rows < 12
    widths = {
        pq.read_schema(file).field("vector").type.list_size
        for file in tmp_path.glob("encodings/*/*/*.parquet")
    }
    assert widths == {1024, 2048}
    printed = capsys.readouterr().out
    assert "best: " in printed
    page = (tmp_path / "report" / "sweep-dimension.html").read_text()
    assert "python -m jobs.sweep --sweep dimension" in page


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_compressions_share_one_codebook_and_draw_three_curves(
    local_ray: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = ["--sweep", "compression", "--values", "3,64,1024"]
    assert sweep.main([*values, *flags(data, tmp_path, "split.num_folds=2")]) == 0
    lines = capsys.readouterr().out.splitlines()
    points = {
        (" ".join(line.split()[:-8]), line.split()[-5]) for line in lines if "of fv_vae" in line
    }
    assert ("PCA of fv_vae", "3") in points
    assert ("random Maclaurin of fv_vae", "1,024") in points
    assert ("fewer latents of fv_vae", "1,024") in points
    assert ("fewer latents of fv_vae", "2,048") in points
    assert len(list(tmp_path.glob("encodings/fv_vae-*/*"))) == 2
    page = (tmp_path / "report" / "sweep-compression.html").read_text()
    assert "always achieves the best accuracy" in page


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_comparison_stands_beside_the_papers(
    local_ray: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("split.kind=group_kfold", "split.num_folds=2")
    assert compare_encoders.main(flags(data, tmp_path, *settings)) == 0
    printed = capsys.readouterr().out
    features = ["GA", "Concatenation", "AVE", "FV", "VLAD", "BP", "FV-VAE^-", "FV-VAE"]
    rows = [
        line.split() for line in printed.splitlines() if line.split()[:1] in [[f] for f in features]
    ]
    assert [row[0] for row in rows] == features
    assert [row[4] for row in rows] == [
        *("ga", "concat", "ave", "gmm_fv", "vlad", "bilinear", "fv_vae@lambda3=0", "fv_vae")
    ]
    assert rows[-1][:3] == ["FV-VAE", "131,072", "0.8345"]
    dims = {
        file.parent.parent.name: pq.read_schema(file).field("vector").type.list_size
        for file in tmp_path.glob("encodings/*/*/*.parquet")
    }
    assert dims == {
        "ga-ga_global": 1000,
        "concat-features_12_positions": 13 * 13 * 512,
        "ave-features_12_positions": 512,
        "ave-features_12_appearance": 512,
        "gmm_fv-features_12_appearance": 2 * 2 * 512,
        "vlad-features_12_appearance": 2 * 512,
        "bilinear-features_12_appearance": 64,
        "fv_vae-features_12_appearance": 4 * 512,
    }
