"""The papers' tables of image recognition: DQ Table 6, and those of FK.

FK: Fisher Kernel for Deep Neural Activations. Its text has 77.76 for what Table 3(a) prints as
77.56, its +7.07 over Gong et al. is of the row with a spatial pyramid, and its "6 classes" of Table
5 are 7 by the table.
"""

from pipelines.report.papers.tables import PaperTable

CUB_COLUMNS = ("without fine-tuning", "fine-tuned", "boxes", "boxes, fine-tuned")


def _by_scenario(
    *rows: tuple[str, float, float, float, float],
) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Return a row for each number of DQ Table 6, those of one scenario together."""
    return tuple(
        (f"{method}, {scenario}", (numbers[column],))
        for column, scenario in enumerate(CUB_COLUMNS)
        for method, *numbers in rows
    )


DQ_TABLE_6 = PaperTable(
    "DQ Table 6",
    "CUB-200-2011, 200 species, 5,994 training images, VGG-19; boxes: given at training and test",
    ("accuracy",),
    _by_scenario(
        ("GA", 0.610, 0.704, 0.653, 0.764),
        ("FV", 0.708, 0.740, 0.736, 0.771),
        ("VLAD", 0.735, 0.765, 0.751, 0.798),
        ("BP", 0.752, 0.780, 0.769, 0.808),
        ("FV-VAE", 0.793, 0.824, 0.795, 0.836),
    ),
    "A run here is one of the four scenarios. Previous work, with and without boxes, has 0.730 to "
    "0.851 in the paper; it tells parts of birds apart, as these methods do not.",
)

_FK = (
    "Alex is Caffe's AlexNet, whose layers are grouped and normalised; torchvision's is another "
    "network. MPP pools seven scales, 4,410 activations of an image."
)

FK_TABLE_1 = {
    "1 to 4": (270, 1.702, 0.0769),
    "1 to 5": (754, 4.941, 0.1265),
    "1 to 6": (1910, 11.41, 0.2420),
    "1 to 7": (4410, 27.64, 0.4635),
}
"""{scales: (activations of an image, seconds by crops, seconds by one dense pass)}, on a GTX Titan
Black; FK Table 1."""

FK_TABLE_3A = PaperTable(
    "FK Table 3(a)",
    "MIT Indoor 67, 67 classes",
    ("accuracy",),
    (
        ("Alex-FC7", (0.5791,)),
        ("AP10(Alex-FC7)", (0.6090,)),
        ("AP50(Alex-FC7)", (0.6037,)),
        ("NFK(Alex-FC7)", (0.7149,)),
        ("CSF(Alex-FC7)", (0.7224,)),
        ("MPP(Alex-FC7)", (0.7567,)),
        ("MPP(Alex-FC7)+SP", (0.7597,)),
        ("MPP(Alex-FC7,Pool5)", (0.7756,)),
        ("MPP(Alex-FC7)+DSFL", (0.8078,)),
    ),
    f"{_FK} The text has 0.7776 for MPP(Alex-FC7,Pool5). DSFL is another method, whose vectors a "
    "run takes by encode.external.",
)

FK_TABLE_3B = PaperTable(
    "FK Table 3(b)",
    FK_TABLE_3A.data,
    ("accuracy",),
    (
        ("Singh et al. '12, Part+GIST+DPM+SP", (0.4940,)),
        ("Juneja et al. '13, IFK+Bag-of-Parts", (0.6318,)),
        ("Doersch et al. '13, IFK+MidlevelRepresent.", (0.6687,)),
        ("Zuo et al. '14, DSFL", (0.5224,)),
        ("Zuo et al. '14, DSFL+Alex-FC6", (0.7623,)),
        ("Zhou et al. '14, Alex-FC7", (0.6824,)),
        ("Zhou et al. '14, Alex-FC7, printed a second time", (0.7080,)),
        ("Razavian et al. '14, AP(Alex)+PT+TargetAug.", (0.6900,)),
        ("Gong et al. '14, VLAD Concat.(Alex-FC7)", (0.6890,)),
    ),
    "Other methods that the paper compares with.",
)

FK_TABLE_4A = PaperTable(
    "FK Table 4(a)",
    "PASCAL VOC 2007, 20 classes, without boxes and without fine-tuning",
    ("mAP_11",),
    (
        ("Alex-FC7", (0.7236,)),
        ("AP10(Alex-FC7)", (0.7375,)),
        ("AP50(Alex-FC7)", (0.7360,)),
        ("NFK(Alex-FC7)", (0.7496,)),
        ("CSF(Alex-FC7)", (0.7846,)),
        ("MPP(Alex-FC7)", (0.7954,)),
        ("MPP(Alex-FC7)+SP", (0.7929,)),
        ("MPP(CNNS-FC7)", (0.8140,)),
        ("MPP(CNNS-FC7,FC8)", (0.8213,)),
    ),
    f"{_FK} VOC 2007 interpolates AP at 11 points, which the paper does not say of its own.",
)

FK_TABLE_4B = PaperTable(
    "FK Table 4(b)",
    "PASCAL VOC 2007, 20 classes",
    ("mAP_11",),
    (
        ("Perronnin et al. '10, IFK(SIFT+color)", (0.603,)),
        ("He et al. '14, SPPNET-FC7", (0.8010,)),
        ("Wei et al. '14, Multi-label CNN, fine-tuned", (0.8150,)),
        ("Razavian et al. '14, AP(Alex)+PT+TA", (0.7720,)),
        ("Oquab et al. '14, Alex-FC7+MLP, with boxes", (0.7770,)),
        ("Chatfield et al. '14, AP(CNNS-FC7)+TA", (0.7974,)),
        ("Chatfield et al. '14, AP(CNNS-FC7)+TA, fine-tuned", (0.8242,)),
    ),
    "Other methods that the paper compares with. Table 5 prints 0.583 for Perronnin et al.",
)

_VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


def _voc(name: str, numbers: str) -> tuple[str, tuple[float, ...]]:
    """Return a row of FK Table 5, whose numbers are per cent as they are printed."""
    return name, tuple(round(float(number) / 100, 3) for number in numbers.split())


FK_TABLE_5 = PaperTable(
    "FK Table 5",
    "PASCAL VOC 2007, AP of each class",
    (*(f"AP_11 {name}" for name in _VOC), "mAP_11"),
    (
        _voc(
            "Alex-FC7",
            "85.0 79.7 82.8 80.4 39.7 69.3 82.9 81.7 58.7 57.8 68.5 75.9 83.0 72.5 90.6 51.7 71.1 "
            "60.8 85.0 70.5 72.4",
        ),
        _voc(
            "AP10(Alex-FC7)",
            "85.7 80.8 83.3 80.7 40.4 71.5 83.8 82.7 60.7 60.5 70.6 79.0 84.5 75.0 91.3 53.4 70.1 "
            "62.6 86.5 72.1 73.7",
        ),
        _voc(
            "MPP(Alex-FC7)",
            "90.2 86.9 86.6 84.4 54.0 80.0 87.9 86.0 63.4 72.2 75.7 83.1 87.8 83.9 93.0 64.8 75.8 "
            "69.6 89.9 75.9 79.5",
        ),
        _voc(
            "MPP(CNNS-FC7)",
            "90.2 88.6 89.0 84.7 58.2 82.8 88.1 89.0 64.9 77.0 78.4 86.9 89.2 86.7 92.8 61.2 81.3 "
            "70.0 89.8 79.3 81.4",
        ),
        _voc(
            "Perronnin et al. '10",
            "75.7 64.8 52.8 70.6 30.0 64.1 77.5 55.5 55.6 41.8 56.3 41.7 76.3 64.4 82.7 28.3 39.7 "
            "56.6 79.7 51.5 58.3",
        ),
        _voc(
            "Razavian et al. '14",
            "90.1 84.4 86.5 84.1 48.4 73.4 86.7 85.4 61.3 67.6 69.6 84.0 85.4 80.0 92.0 56.9 76.7 "
            "67.3 89.1 74.9 77.2",
        ),
        _voc(
            "Oquab et al. '14",
            "88.5 81.5 87.9 82.0 47.5 75.5 90.1 87.2 61.6 75.7 67.3 85.5 83.5 80.0 95.6 60.8 76.8 "
            "58.0 90.4 77.9 77.7",
        ),
        _voc(
            "Wei et al. '14, fine-tuned",
            "95.1 90.1 92.8 89.9 51.5 80.0 91.7 91.6 57.7 77.8 70.9 89.3 89.3 85.2 93.0 64.0 85.7 "
            "62.7 94.4 78.3 81.5",
        ),
        _voc(
            "Chatfield et al. '14, fine-tuned",
            "95.3 90.4 92.5 89.6 54.4 81.9 91.5 91.9 64.1 76.3 74.9 89.7 92.2 86.9 95.2 60.7 82.9 "
            "68.0 95.5 74.4 82.4",
        ),
    ),
    _FK,
)

FK_TABLE_6A = PaperTable(
    "FK Table 6(a)",
    "Oxford 102 Flowers, 102 classes, without segmentations",
    ("accuracy",),
    (
        ("Alex-FC7", (0.8143,)),
        ("AP10(Alex-FC7)", (0.8340,)),
        ("AP50(Alex-FC7)", (0.8356,)),
        ("NFK(Alex-FC7)", (0.8844,)),
        ("CSF(Alex-FC7)", (0.8935,)),
        ("MPP(Alex-FC7)", (0.9128,)),
        ("MPP(Alex-FC7)+SP", (0.9005,)),
    ),
    _FK,
)

FK_TABLE_6B = PaperTable(
    "FK Table 6(b)",
    "Oxford 102 Flowers, 102 classes",
    ("accuracy",),
    (
        ("Nilsback and Zisserman '08, multiple kernels, with segmentations", (0.777,)),
        ("Angelova and Zhu '13, Seg+DenseHoG+LLC+MaxPooling, with segmentations", (0.807,)),
        ("Murray and Perronnin '14, GMP of IFK(SIFT+color)", (0.815,)),
        ("Fernando et al. '14, Bag-of-FLH, with segmentations", (0.727,)),
        ("Razavian et al. '14, AP(Alex)+PT+TA", (0.868,)),
    ),
    "Other methods that the paper compares with.",
)

TABLES_OF_RECIPES = {
    "cub": (DQ_TABLE_6,),
    "indoor67": (FK_TABLE_3A, FK_TABLE_3B),
    "voc2007": (FK_TABLE_4A, FK_TABLE_4B, FK_TABLE_5),
    "flowers102": (FK_TABLE_6A, FK_TABLE_6B),
}
"""Tables of the papers whose data a recipe is for."""
