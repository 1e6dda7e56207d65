"""The papers' numbers are those of the text, and no own number is mistaken for one of theirs."""

import re

import pytest

from encoders.registry import ENCODERS
from pipelines.report import full_length, papers
from pipelines.report.papers import Compared, Comparison, comparison_table, feature_of


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
    assert names == ["DQ Table 4", "VU Table 3.6", "VU Table 3.7"]
