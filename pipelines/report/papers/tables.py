"""Published numbers of the papers, for comparison.

Only printed numbers are here; nothing is read off figures.

DQ: Deep Quantization (FV-VAE). Its Table 2 and Figure 4 are for UCF101, split 1; the figure's
points are not printed, so only what the text says of it is here. VU: Video Understanding with Deep
Networks.
"""

from dataclasses import dataclass, replace

from pipelines.evaluate.results import Estimate
from pipelines.run.job import Job
from pipelines.text_table import aligned


@dataclass(frozen=True)
class Published:
    """One row of a table: a representation, D, and its accuracy as a share of 1."""

    feature: str
    dimension: int
    accuracy: float


DQ_DATA = "UCF101 split 1, VGG-19"
"""Data of DQ Table 2 and of its text on 4,096 dimensions: 101 classes, 25 frames a
video."""

DQ_TABLE_2 = (
    Published("GA", 4096, 0.7491),
    Published("Concatenation", 25088, 0.7589),
    Published("AVE", 512, 0.7325),
    Published("FV", 131072, 0.7885),
    Published("VLAD", 131072, 0.8067),
    Published("BP", 262144, 0.8139),
    Published("FV-VAE^-", 131072, 0.8191),
    Published("FV-VAE", 131072, 0.8345),
)

DQ_SEVEN_LATENTS = Published("FV-VAE", 4096, 0.7837)
"""FV-VAE with 7 latents (DQ 5.3)."""

DQ_NO_CLASS_LOSS = {
    "pool5": Published("FV-VAE^-", 131072, 0.8191),
    "pool5 fine-tuned": Published("FV-VAE^-", 131072, 0.8205),
    "res5c": Published("FV-VAE^-", 524288, 0.8505),
}
"""lambda3 = 0 by network (DQ Table 3); D follows from 256 x C (DQ 5.2)."""

DQ_FIGURE_4A = (
    "FV-VAE is better than VLAD and FV at each dimension from 2^12 to 2^17.",
    "More dimensions are better in general, but FV falls above 2^15.",
    "With 7 latents (4,096 dimensions) FV-VAE reaches 0.7837, and GA, as long, 0.7491.",
)
DQ_FIGURE_4B = (
    'All curves have the shape of a "^" while lambda3 goes from 1 to 1e5.',
    "With lambda3 = 0 (FV-VAE^-): 0.8191 on pool5 of VGG-19, 0.8205 on pool5 fine-tuned, 0.8505 "
    "on res5c of ResNet-152. With class loss: 0.8345, 0.8213 and 0.8633.",
)
DQ_FIGURE_4C = (
    "Reducing the number of latent variables always achieves the best accuracy, compared with "
    "random Maclaurin features and with PCA of the finished vector.",
)
"""Text of DQ 5.3, 5.4 and Table 3 on Figure 4, whose points are not printed."""


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper: methods and their numbers, as shares of 1.

    Args:
        data: what it is measured on, and how.
        metrics: names of METRICS, one for each number of a row.
        differences: how this program's way differs from the paper's, on the same videos.
    """

    name: str
    data: str
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]
    differences: str


@dataclass(frozen=True)
class BesidePaper:
    """A paper's table, and this run's results in the same metrics.

    Args:
        own: (name, an estimate for each metric), best first.
        data: the own data and protocol, in some words.
    """

    table: PaperTable
    own: tuple[tuple[str, tuple[Estimate, ...]], ...]
    data: str


DQ_TABLE_3 = PaperTable(
    "DQ Table 3",
    "UCF101 split 1, VGG-19 (pool5) and ResNet-152 (res5c)",
    ("accuracy",),
    (
        ("GA, pool5", (0.7491,)),
        ("GA, pool5 fine-tuned", (0.7906,)),
        ("GA, res5c", (0.8157,)),
        ("FV-VAE^-, pool5", (0.8191,)),
        ("FV-VAE^-, pool5 fine-tuned", (0.8205,)),
        ("FV-VAE^-, res5c", (0.8505,)),
        ("FV-VAE, pool5", (0.8345,)),
        ("FV-VAE, pool5 fine-tuned", (0.8213,)),
        ("FV-VAE, res5c", (0.8633,)),
    ),
    "FV-VAE^- is fv_vae@lambda3=0. The fine-tuned network is a classifier of the videos' frames.",
)

DQ_TABLE_4 = PaperTable(
    "DQ Table 4",
    "UCF101, mean of three splits, ten crops of a frame",
    ("accuracy",),
    (
        ("Two-stream ConvNet", (0.881,)),
        ("C3D (3 nets)", (0.852,)),
        ("Factorized ST-ConvNet", (0.881,)),
        ("Two-stream + LSTM", (0.886,)),
        ("Two-stream fusion", (0.925,)),
        ("Long-term temporal ConvNet", (0.917,)),
        ("Key-volume mining CNN", (0.931,)),
        ("TSN (3 modalities)", (0.942,)),
        ("IDT", (0.859,)),
        ("C3D + IDT", (0.904,)),
        ("TDD + IDT", (0.915,)),
        ("Long-term temporal ConvNet + IDT", (0.927,)),
        ("FV-VAE-pool5", (0.839,)),
        ("FV-VAE-pool5 optical flow", (0.895,)),
        ("FV-VAE-res5c", (0.866,)),
        ("FV-VAE-(pool5 + pool5 optical flow)", (0.937,)),
        ("FV-VAE-(res5c + pool5 optical flow)", (0.942,)),
        ("FV-VAE-(res5c + pool5 optical flow) + IDT", (0.952,)),
    ),
    "The paper takes ten crops of a frame and averages three splits; a run here is one split "
    "(jobs.average_splits runs and averages three), with the centre crop unless picture.views=ten, "
    "and with optical flow where describe.streams asks for it. IDT is another method, whose "
    "vectors a run takes by encode.external.",
)

DQ_TABLE_5 = PaperTable(
    "DQ Table 5",
    "ActivityNet 1.3, the 4,926 videos of the validation set, 200 classes",
    ("accuracy", "top_3", "mAP"),
    (
        ("VGG_19-GA", (0.6659, 0.8270, 0.7022)),
        ("ResNet_152-GA", (0.7143, 0.8645, 0.7656)),
        ("C3D-GA", (0.6580, 0.8116, 0.6768)),
        ("IDT", (0.6470, 0.7798, 0.6869)),
        ("FV-VAE-pool5", (0.7251, 0.8568, 0.7725)),
        ("FV-VAE-res5c", (0.7855, 0.9116, 0.8409)),
    ),
    "Videos that can no longer be had are missing here; codebooks and classifiers are those of "
    "this run's settings. Difference streams have no counterpart in the paper's table.",
)

VU_TABLE_5_3 = PaperTable(
    "VU Table 5.3",
    "FCVID, about half of its 91,223 videos for training and half for testing, 239 classes",
    ("mAP",),
    (
        ("Static CNN", (0.638,)),
        ("rDNN (Static CNN + Motion + Audio)", (0.760,)),
        ("ResNet-50 TSN", (0.818,)),
        ("ResNet-50 TDN", (0.837,)),
    ),
    "The paper trains ResNet-50 end to end on the videos, and tests 25 clips in ten crops; here "
    "linear classifiers are trained on encodings of a network that is fixed, from one frame "
    "every few seconds in one crop.",
)

_VU_NETWORKS = (
    "The paper's pictures are 340 x 256 where these are square, and its flow is TV-L1 on a GPU. "
    "Clips are drawn out of the pictures that are kept of a video (docs/networks.md)."
)


def _by_modality(
    *rows: tuple[str, float | None, float | None, float],
) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Return a row for each number that is printed: of RGB, of flow, and of both fused."""
    return tuple(
        (f"{method}, {modality}", (number,))
        for method, *numbers in rows
        for modality, number in zip(("RGB", "flow", "fusion"), numbers, strict=True)
        if number is not None
    )


VU_TABLE_5_1 = PaperTable(
    "VU Table 5.1",
    "HMDB51, mean of three splits, 51 classes",
    ("accuracy",),
    _by_modality(
        ("Two Stream", 0.405, 0.546, 0.594),
        ("Two Stream (VGG)", 0.422, 0.550, 0.585),
        ("F_ST CN (SCI fusion)", None, None, 0.591),
        ("Actions ~ Transformation", 0.441, 0.571, 0.620),
        ("TDD + FV", 0.500, 0.549, 0.632),
        ("Key Volume Mining", None, None, 0.633),
        ("LTC", None, 0.590, 0.648),
        ("Two-stream Fusion", None, None, 0.654),
        ("ST-ResNet", None, None, 0.664),
        ("BN-Inception TSN", 0.510, 0.642, 0.685),
        ("ResNet-50 TSN", 0.511, 0.646, 0.696),
        ("ResNet-50 TDN", 0.555, 0.648, 0.704),
    ),
    f"{_VU_NETWORKS} A run here is one split (jobs.average_splits runs and averages three).",
)

VU_TABLE_5_2 = PaperTable(
    "VU Table 5.2",
    "ACT, first task: 7,260 training videos, 3,974 for testing, 43 classes",
    ("accuracy",),
    _by_modality(
        ("Two Stream", 0.668, 0.714, 0.787),
        ("LSTM + Two Stream", 0.687, 0.721, 0.786),
        ("Actions ~ Transformation", 0.695, 0.737, 0.806),
        ("ResNet-50 TSN", 0.720, 0.761, 0.843),
        ("ResNet-50 TDN", 0.759, 0.770, 0.851),
    ),
    _VU_NETWORKS,
)

VU_TABLE_5_4 = PaperTable(
    "VU Table 5.4",
    VU_TABLE_5_3.data,
    ("mAP",),
    (
        ("input", (0.827,)),
        ("input - conv1", (0.829,)),
        ("input - res2", (0.833,)),
        ("input - res3", (0.838,)),
        ("input - res4", (0.837,)),
    ),
    f"{_VU_NETWORKS} The rows are tdn@layers=input, tdn@layers=input/conv1 and so on; Table 5.3 "
    "has the last one, 0.837.",
)

TABLES_OF_RECIPES = {
    "ucf101": (DQ_TABLE_3, DQ_TABLE_4),
    "activitynet": (DQ_TABLE_5,),
    "fcvid": (VU_TABLE_5_3,),
    "tsn": (replace(VU_TABLE_5_3, differences=_VU_NETWORKS),),
    "tdn": (replace(VU_TABLE_5_3, differences=_VU_NETWORKS), VU_TABLE_5_4),
    "hmdb51": (VU_TABLE_5_1,),
    "act": (VU_TABLE_5_2,),
}
"""Tables of the paper whose protocol a recipe follows; DQ Table 2 has a `Comparison` of its own."""

_FEATURES = {
    "ga": "GA",
    "concat": "Concatenation",
    "ave": "AVE",
    "gmm_fv": "FV",
    "vlad": "VLAD",
    "bilinear": "BP",
    "fv_vae": "FV-VAE",
}


def feature_of(encoder: str, uses_labels: bool) -> str | None:
    """Return the row of DQ Table 2 that a registry name corresponds to; None where there is none.

    Args:
        encoder: registry name, without settings.
        uses_labels: whether its codebook does; an FV-VAE's without (lambda3 = 0) is FV-VAE^-.
    """
    if encoder == "fv_vae" and not uses_labels:
        return "FV-VAE^-"
    return _FEATURES.get(encoder)


@dataclass(frozen=True)
class Compared:
    """A result of this run, and the `feature` of DQ Table 2 to compare it with; None where there is
    none."""

    encoder: str
    stream: str
    feature: str | None
    dimension: int | None
    accuracy: float | None

    def __post_init__(self) -> None:
        known = [row.feature for row in DQ_TABLE_2]
        if self.feature is not None and self.feature not in known:
            raise ValueError(
                f"Compared: expected a feature out of {known} or None, got {self.feature!r}; "
                "take it from feature_of"
            )


@dataclass(frozen=True)
class Comparison:
    """Results of this run beside DQ Table 2.

    Args:
        rows: own results, in any order.
        data: the own data set and protocol, in some words: "Weizmann, 6 folds by person".
        differences: what data, network and protocol differ in, as a sentence.
    """

    rows: tuple[Compared, ...]
    data: str
    differences: str

    def ordered(self) -> list[tuple[Compared | None, Published | None]]:
        """Return pairs in the order of the paper's table, and last the results that have no row
        there."""
        pairs: list[tuple[Compared | None, Published | None]] = []
        for published in DQ_TABLE_2:
            matching = [row for row in self.rows if row.feature == published.feature]
            pairs += [(row, published) for row in matching or [None]]
        return pairs + [(row, None) for row in self.rows if row.feature is None]


_HEADER = ("DQ Table 2", "D", "accuracy", "|", "own encoder", "stream", "D", "accuracy")


def comparison_table(comparison: Comparison) -> list[str]:
    """Return lines for a terminal: DQ Table 2 on the left, this run's results on the right."""
    rows: list[tuple[str, ...]] = [_HEADER]
    for compared, published in comparison.ordered():
        left = (
            (published.feature, f"{published.dimension:,}", f"{published.accuracy:.4f}")
            if published
            else ("-", "-", "-")
        )
        right = (
            (
                compared.encoder,
                compared.stream,
                _number(compared.dimension, ","),
                _number(compared.accuracy, ".4f"),
            )
            if compared
            else ("not run", "-", "-", "-")
        )
        rows.append((*left, "|", *right))
    lines = aligned(rows, left=(0, 3, 4, 5))
    return [
        f"left, DQ Table 2: {DQ_DATA}",
        f"right, own: {comparison.data}",
        "",
        lines[0],
        "-" * max(map(len, lines)),
        *lines[1:],
        f"The two sides are different data and do not measure one thing: {comparison.differences}",
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


COMPARED = ("appearance", "positions", "global")
"""Kinds of stream that DQ Table 2 is about: single frames. Its AVE is the mean over positions."""


def comparison(job: Job) -> Comparison:
    """Return the run's single results, from METRICS."""
    accuracy = {
        (row["encoder"], row["stream"]): row["value"]
        for row in job.store.read_table(job.metrics).to_pylist()
        if (row["split"], row["metric"]) == ("all", "accuracy")
    }
    config = job.config
    folds = f"{job.split}, {job.num_folds} fold(s)"
    return Comparison(
        rows=tuple(
            Compared(
                encoder=name,
                stream=stream,
                feature=_feature(job, name, stream),
                dimension=job.output_dim(name, stream),
                accuracy=accuracy[name, stream],
            )
            for name, stream in job.pairs()
            if stream in job.described and job.described[stream].kind in COMPARED
        ),
        data=f"{job.manifest.num_rows} videos, split {folds}; {config.describe.backbone}",
        differences=(
            f"other videos, classes and splits, {config.describe.backbone} "
            f"({', '.join(config.describe.nodes)}; {job.weights.description}) instead of VGG-19 "
            "pool5, codebooks of the size that this corpus carries."
        ),
    )


def _feature(job: Job, name: str, stream: str) -> str | None:
    variant = job.variants[name]
    if variant.base == "ave" and job.described[stream].kind != "positions":
        return None
    return feature_of(variant.base, variant.uses_labels)


def text(job: Job) -> list[str]:
    """Return the table for a terminal."""
    return comparison_table(comparison(job))
