"""The papers' numbers are those of the text, and no own number is mistaken for one of theirs."""

import re
from types import SimpleNamespace
from typing import cast

import pyarrow as pa
import pytest

from encoders.registry import ENCODERS
from pipelines.report.collect import _paper_tables
from pipelines.report.papers import full_length, images
from pipelines.report.papers import tables as papers
from pipelines.report.papers.tables import Compared, Comparison, comparison_table, feature_of
from pipelines.run.job import Job
from pipelines.search import published
from pipelines.search.truth import PRESETS
from pipelines.settings.config import Config


def test_table_2_agrees_with_what_the_text_says_of_it():
    rows = {row.feature: row for row in papers.DQ_TABLE_2}
    assert len(rows) == len(papers.DQ_TABLE_2) == 8
    assert all(0 < row.accuracy < 1 for row in rows.values())
    # DQ 5.3: FV-VAE improves on its best competitor, BP, by 2.5 per cent, at half its length.
    assert rows["FV-VAE"].accuracy / rows["BP"].accuracy == pytest.approx(1.025, abs=5e-4)
    assert 2 * rows["FV-VAE"].dimension == rows["BP"].dimension == 512**2
    assert rows["Concatenation"].dimension == 7 * 7 * 512
    assert rows["FV"].dimension == 2 * 128 * 512
    assert rows["VLAD"].dimension == rows["FV-VAE"].dimension == 256 * 512
    assert papers.DQ_SEVEN_LATENTS.dimension == 8 * 512 == rows["GA"].dimension
    ranked = sorted(rows, key=lambda name: -rows[name].accuracy)
    assert ranked[:5] == ["FV-VAE", "FV-VAE^-", "BP", "VLAD", "FV"]
    # DQ 5.3: Concatenation is better than GA and AVE.
    assert ranked[5:] == ["Concatenation", "GA", "AVE"]


def test_other_networks_agree_with_table_2():
    assert papers.DQ_NO_CLASS_LOSS["pool5"] in papers.DQ_TABLE_2
    assert papers.DQ_NO_CLASS_LOSS["res5c"].dimension == 256 * 2048
    stated = " ".join(papers.DQ_FIGURE_4A + papers.DQ_FIGURE_4B)
    known = [*papers.DQ_TABLE_2, papers.DQ_SEVEN_LATENTS, *papers.DQ_NO_CLASS_LOSS.values()]
    with_loss = {"0.8213", "0.8633"}
    said = set(re.findall(r"0\.\d{4}", stated))
    assert with_loss < said
    assert said - with_loss <= {f"{row.accuracy:.4f}" for row in known}


def test_every_encoder_has_its_row():
    features = {feature_of(name, uses_labels=True) for name in ENCODERS}
    without_loss = {feature_of(name, uses_labels=False) for name in ENCODERS}
    assert features | without_loss == {row.feature for row in papers.DQ_TABLE_2}
    assert feature_of("fv_vae", uses_labels=True) == "FV-VAE"
    assert feature_of("fv_vae", uses_labels=False) == "FV-VAE^-"
    assert feature_of("gmm_fv", uses_labels=False) == "FV"
    assert feature_of("ave+vlad", uses_labels=False) is None


OWN = Comparison(
    (
        Compared("fv_vae", "a", "FV-VAE", 32768, 0.5),
        Compared("median", "a", None, 9, None),
        Compared("vlad@num_centroids=8", "a", "VLAD", 4096, 0.25),
        Compared("vlad", "a", "VLAD", 131072, 0.123456),
    ),
    data="60 clips, 6 folds",
    differences="other clips.",
)


def test_the_table_keeps_the_papers_order_and_both_sides_apart():
    first, second, empty, header, rule, *rows, last = comparison_table(OWN)
    assert first == "left, DQ Table 2: UCF101 split 1, VGG-19"
    assert second == "right, own: 60 clips, 6 folds"
    assert empty == ""
    assert " ".join(header.split()) == "DQ Table 2 D accuracy | own encoder stream D accuracy"
    assert set(rule) == {"-"}
    assert [row.split() for row in rows] == [
        ["GA", "4,096", "0.7491", "|", "not", "run", "-", "-", "-"],
        ["Concatenation", "25,088", "0.7589", "|", "not", "run", "-", "-", "-"],
        ["AVE", "512", "0.7325", "|", "not", "run", "-", "-", "-"],
        ["FV", "131,072", "0.7885", "|", "not", "run", "-", "-", "-"],
        ["VLAD", "131,072", "0.8067", "|", "vlad@num_centroids=8", "a", "4,096", "0.2500"],
        ["VLAD", "131,072", "0.8067", "|", "vlad", "a", "131,072", "0.1235"],
        ["BP", "262,144", "0.8139", "|", "not", "run", "-", "-", "-"],
        ["FV-VAE^-", "131,072", "0.8191", "|", "not", "run", "-", "-", "-"],
        ["FV-VAE", "131,072", "0.8345", "|", "fv_vae", "a", "32,768", "0.5000"],
        ["-", "-", "-", "|", "median", "a", "9", "-"],
    ]
    assert last == "The two sides are different data and do not measure one thing: other clips."
    assert len({row.index("|") for row in [header, *rows]}) == 1


def test_an_unknown_feature_is_refused():
    with pytest.raises(ValueError, match=r"Compared: expected a feature out of .*, got 'fv_vae'"):
        Compared("fv_vae", "a", "fv_vae", 1, 0.5)


def test_networks_of_the_thesis_agree_with_what_the_text_says_of_them():
    hmdb51, act, fcvid = papers.VU_TABLE_5_1, papers.VU_TABLE_5_2, papers.VU_TABLE_5_3
    numbers = {name: number for table in (hmdb51, act) for name, (number,) in table.rows}
    assert len(hmdb51.rows) == 12 * 3 - 9
    assert len(act.rows) == 5 * 3
    of_hmdb51, of_act, of_fcvid = (dict(table.rows) for table in (hmdb51, act, fcvid))
    # 5.4.3.1: +4.4 % on RGB, 70.4 against 68.5; 5.4.3.2: 75.9 against 72.0, 85.1 against 80.6.
    tdn, tsn = (of_hmdb51[f"ResNet-50 {name}, RGB"][0] for name in ("TDN", "TSN"))
    assert tdn - tsn == pytest.approx(0.044)
    assert of_hmdb51["ResNet-50 TDN, fusion"][0] == 0.704
    assert of_hmdb51["BN-Inception TSN, fusion"][0] == 0.685
    assert (of_act["ResNet-50 TDN, RGB"][0], of_act["ResNet-50 TSN, RGB"][0]) == (0.759, 0.72)
    assert of_act["Actions ~ Transformation, fusion"][0] == 0.806
    assert all(0.4 < number < 0.9 for number in numbers.values())
    # 5.4.3.3: +1.9 %; Table 5.4's last row is Table 5.3's.
    assert of_fcvid["ResNet-50 TDN"][0] - of_fcvid["ResNet-50 TSN"][0] == pytest.approx(0.019)
    assert papers.VU_TABLE_5_4.rows[-1][1] == of_fcvid["ResNet-50 TDN"]


def test_tables_of_full_length_video_agree_with_the_text():
    rows = {table.name: dict(table.rows) for table in full_length.TABLES_OF_RECIPES["sports1m"]}
    assert list(rows) == [f"VU Table 3.{number}" for number in range(1, 6)]
    # VU 3.4.1: 30 frames of the LSTM with (fc) reach 67.5.
    table = rows["VU Table 3.2"]
    assert table["LSTM + GoogLeNet (fc)"] == (0.675, 0.871)
    assert max(rows["VU Table 3.1"], key=rows["VU Table 3.1"].get) == "Conv Pooling"
    # Two tables print the same networks.
    assert rows["VU Table 3.3"]["Conv pooling, 30 frames"] == table["Conv pooling + GoogLeNet"]
    assert rows["VU Table 3.4"]["Conv Pooling on Raw Frames"] == table["Conv pooling + GoogLeNet"]
    # The LSTM is 20 % better than the prior results, conv pooling 18.7 %.
    prior, pooled, lstm = (
        rows["VU Table 3.5"][name][0]
        for name in (
            "Slow Fusion, 15 frames (prior)",
            "Conv Pooling, image and flow, 120 frames",
            "LSTM, image and flow, 30 frames",
        )
    )
    assert lstm / prior == pytest.approx(1.2, abs=5e-3)
    assert pooled / prior == pytest.approx(1.187, abs=5e-3)
    names = [table.name for table in full_length.TABLES_OF_RECIPES["ucf101"]]
    assert names[:4] == ["DQ Table 3", "DQ Table 4", "VU Table 3.6", "VU Table 3.7"]


def test_table_3_agrees_with_table_2_and_with_the_runs_without_class_loss() -> None:
    rows, table_2 = dict(papers.DQ_TABLE_3.rows), {r.feature: r for r in papers.DQ_TABLE_2}
    assert len(rows) == 9
    for feature in ("GA", "FV-VAE^-", "FV-VAE"):
        assert rows[f"{feature}, pool5"] == (table_2[feature].accuracy,)
    for network, row in papers.DQ_NO_CLASS_LOSS.items():
        assert rows[f"FV-VAE^-, {network}"] == (row.accuracy,)
    # 5.3: fine-tuning helps GA and FV-VAE^-, and harms FV-VAE.
    for feature, is_better in (("GA", True), ("FV-VAE^-", True), ("FV-VAE", False)):
        tuned, plain = rows[f"{feature}, pool5 fine-tuned"], rows[f"{feature}, pool5"]
        assert (tuned > plain) is is_better


def test_table_6_of_birds() -> None:
    rows = dict(images.DQ_TABLE_6.rows)
    assert len(rows) == 5 * 4
    for scenario in ("without fine-tuning", "fine-tuned", "boxes", "boxes, fine-tuned"):
        order = [rows[f"{name}, {scenario}"] for name in ("GA", "FV", "VLAD", "BP", "FV-VAE")]
        assert order == sorted(order)
    assert rows["FV-VAE, boxes, fine-tuned"] == (0.836,)


def test_tables_of_fisher_kernels_agree_with_what_the_text_says_of_them() -> None:
    indoor, voc, flowers = (
        {name.partition("(Alex-FC7)")[0]: number for name, (number,) in table.rows}
        for table in (images.FK_TABLE_3A, images.FK_TABLE_4A, images.FK_TABLE_6A)
    )
    of_indoor = dict(images.FK_TABLE_3A.rows)
    mpp = [
        dict(table.rows)["MPP(Alex-FC7)"][0]
        for table in (images.FK_TABLE_3A, images.FK_TABLE_4A, images.FK_TABLE_6A)
    ]
    # 4.4: MPP gains +4.18, +4.58 and 2.84 over NFK.
    gains = [m - t["NFK"] for m, t in zip(mpp, (indoor, voc, flowers), strict=True)]
    assert gains == pytest.approx([0.0418, 0.0458, 0.0284])
    # Average pooling improves by +1.39 to +3.
    averaged = [t["AP10"] - t["Alex-FC7"] for t in (indoor, voc, flowers)]
    assert min(averaged) == pytest.approx(0.0139)
    assert max(averaged) == pytest.approx(0.03, abs=2e-4)
    # +7.07 over Gong et al. is of the row with a spatial pyramid.
    gong = dict(images.FK_TABLE_3B.rows)["Gong et al. '14, VLAD Concat.(Alex-FC7)"][0]
    assert of_indoor["MPP(Alex-FC7)+SP"][0] - gong == pytest.approx(0.0707)
    # +1.84 and +2.34 over the two methods with the same network.
    others = dict(images.FK_TABLE_4B.rows)
    assert mpp[1] - others["Oquab et al. '14, Alex-FC7+MLP, with boxes"][0] == pytest.approx(0.0184)
    assert mpp[1] - others["Razavian et al. '14, AP(Alex)+PT+TA"][0] == pytest.approx(0.0234)


def test_classes_of_voc_agree_with_their_means() -> None:
    assert len(images.FK_TABLE_5.metrics) == 21
    means = dict(images.FK_TABLE_4A.rows) | dict(images.FK_TABLE_4B.rows)
    for name, numbers in images.FK_TABLE_5.rows:
        assert len(numbers) == 21, name
        assert sum(numbers[:20]) / 20 == pytest.approx(numbers[20], abs=7e-4), name
        if name in means:
            assert numbers[20] == pytest.approx(means[name][0], abs=6e-4)
    # The text says "best in 6 classes among 20", small objects among them; by the table it is 7.
    own = [n for n, _ in images.FK_TABLE_5.rows if n.startswith("MPP")]
    best = [
        max(images.FK_TABLE_5.rows, key=lambda row, k=k: row[1][k])[0] in own for k in range(20)
    ]
    names = [metric.removeprefix("AP_11 ") for metric in images.FK_TABLE_5.metrics[:20]]
    first = {name for name, is_own in zip(names, best, strict=True) if is_own}
    assert {"bottle", "pottedplant", "tvmonitor"} <= first
    assert len(first) == 7


def test_dense_passes_are_as_much_faster_as_the_table_says() -> None:
    ratios = [crops / dense for _, crops, dense in images.FK_TABLE_1.values()]
    assert [round(ratio) for ratio in ratios] == [22, 39, 47, 60]


def test_tables_of_motion_agree_with_the_text() -> None:
    ucf101, hmdb51 = (dict(full_length.VU_TABLE_4_1[name].rows) for name in ("ucf101", "hmdb51"))
    name = "ActionFlowNet (UCF101)"
    # 4.4.3: 1.6 % and 2.9 % over C3D, 71.0 against 80.7 and 42.6 against 47.1.
    assert ucf101[name][0] - ucf101["Sports-1M pretrained C3D"][0] == pytest.approx(0.016)
    assert hmdb51[name][0] - hmdb51["Sports-1M pretrained C3D"][0] == pytest.approx(0.029)
    two = "ActionFlowNet-2F (FlyingChairs + UCF101)"
    resnet = "ImageNet pretrained ResNet-18"
    assert (ucf101[two][0], ucf101[resnet][0]) == (0.71, 0.807)
    assert (hmdb51[two][0], hmdb51[resnet][0]) == (0.426, 0.471)
    rows = dict(full_length.VU_TABLE_4_2.rows)
    assert rows["ActionFlowNet"][0] - rows["O3N"][0] == pytest.approx(0.236)
    assert rows["ResNet-18 Scratch"] == ucf101["Scratch, two frames"]
    flows = dict(full_length.VU_TABLE_4_3.rows)
    assert flows["Stacked on UCF101, 11.84 px"] == ucf101["Stacked, two frames"]


def test_tables_of_retrieval_agree_with_each_other() -> None:
    assert published.TABLES.keys() == PRESETS.keys()
    for data, (whole, compressed) in published.TABLES.items():
        best = max(name for name, _ in whole.rows if name.startswith("Ours"))
        assert best == "Ours (VGG-16)"
        for network in ("VGG-16", "GoogLeNet"):
            full = dict(whole.rows)[f"Ours ({network})"]
            short = dict(compressed.rows)[f"Ours ({network}), 128 values"]
            # "minimal performance loss" (2.4.4), but on Paris.
            assert 0 < full[0] - short[0] < (0.12 if data == "paris" else 0.06)
    assert len(published.TABLES["holidays"][0].rows) == 11
    assert len(published.TABLES["paris"][1].rows) == 3


def test_own_classes_stand_beside_those_of_the_table() -> None:
    facts = {"encoder": "vlad", "stream": "a", "fusion": "none", "split": "all"}
    facts |= {"ci_low": None, "ci_high": None, "num_videos": 4}
    rows = [
        facts | {"metric": metric, "class": name, "value": value}
        for metric, name, value in (
            *(("accuracy", None, 0.5), ("mAP", None, 0.6), ("mAP_11", None, 0.7)),
            *(("AP_11", "bird", 0.25), ("AP", "bird", 0.125)),
        )
    ]
    job = SimpleNamespace(
        config=Config(recipe="voc2007"),
        manifest=pa.table({"labels": [["bird"], ["boat"]]}),
        protocol="given, 1 fold",
        weights=SimpleNamespace(description="w"),
    )
    *_, beside = _paper_tables(cast(Job, job), rows, multi_label=True)
    assert beside.table is images.FK_TABLE_5
    ((name, estimates),) = beside.own
    assert name == "vlad on a"
    shown = {m: e.value for m, e in zip(beside.table.metrics, estimates, strict=True)}
    assert (shown["AP_11 bird"], shown["AP_11 boat"], shown["mAP_11"]) == (0.25, None, 0.7)
