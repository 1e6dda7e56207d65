"""VU's tables of networks on full-length video and on motion (chapters 3 and 4), and all tables by
recipe."""

from pipelines.report.papers import images, tables
from pipelines.report.papers.tables import PaperTable

_SPORTS = "Sports-1M, 1.1 million videos of which some have several classes, 487 classes"
_UCF = "UCF101, mean of three splits, 101 classes"

_WAYS = (
    "The paper trains AlexNet and GoogLeNet with what stands behind them, and averages 240 random "
    "clips of a video; with network.input=maps the backbone is fixed, as in Table 3.2's (fc), and "
    "network.test_clips are averaged. Accuracy here is Hit@1, clip_accuracy that of single clips. "
)

VU_TABLE_3_1 = PaperTable(
    "VU Table 3.1",
    f"{_SPORTS}; 120 frames, AlexNet",
    ("clip_accuracy", "accuracy", "top_5"),
    (
        ("Conv Pooling", (0.687, 0.711, 0.893)),
        ("Late Pooling", (0.651, 0.675, 0.872)),
        ("Slow Pooling", (0.671, 0.697, 0.884)),
        ("Local Pooling", (0.681, 0.704, 0.889)),
        ("Time-Domain Convolution", (0.642, 0.672, 0.872)),
    ),
    _WAYS,
)

VU_TABLE_3_2 = PaperTable(
    "VU Table 3.2",
    f"{_SPORTS}; 30 frames",
    ("accuracy", "top_5"),
    (
        ("AlexNet single frame", (0.636, 0.847)),
        ("GoogLeNet single frame", (0.649, 0.866)),
        ("LSTM + AlexNet (fc)", (0.627, 0.836)),
        ("LSTM + GoogLeNet (fc)", (0.675, 0.871)),
        ("Conv pooling + AlexNet", (0.704, 0.890)),
        ("Conv pooling + GoogLeNet", (0.717, 0.904)),
    ),
    _WAYS,
)

VU_TABLE_3_3 = PaperTable(
    "VU Table 3.3",
    f"{_SPORTS}; GoogLeNet",
    ("accuracy", "top_5"),
    (
        ("LSTM, 30 frames", (0.721, 0.904)),
        ("Conv pooling, 30 frames", (0.717, 0.904)),
        ("Conv pooling, 120 frames", (0.723, 0.908)),
    ),
    f"{_WAYS}Hit@1 of single clips of conv pooling: 0.660 with 30 frames, 0.708 with 120. Table "
    "3.4 prints 0.906 as the LSTM's Hit@5.",
)

VU_TABLE_3_4 = PaperTable(
    "VU Table 3.4",
    f"{_SPORTS}; 30 frames, GoogLeNet",
    ("accuracy", "top_5"),
    (
        ("LSTM on Optical Flow", (0.597, 0.814)),
        ("LSTM on Raw Frames", (0.721, 0.906)),
        ("LSTM on Raw Frames + LSTM on Optical Flow", (0.731, 0.905)),
        ("30 frame Optical Flow", (0.445, 0.704)),
        ("Conv Pooling on Raw Frames", (0.717, 0.904)),
        ("Conv Pooling on Raw Frames + on Optical Flow", (0.718, 0.904)),
    ),
    _WAYS,
)

VU_TABLE_3_5 = PaperTable(
    "VU Table 3.5",
    _SPORTS,
    ("accuracy", "top_5"),
    (
        ("Single Frame (prior)", (0.593, 0.777)),
        ("Slow Fusion, 15 frames (prior)", (0.609, 0.802)),
        ("Conv Pooling, image and flow, 120 frames", (0.724, 0.908)),
        ("LSTM, image and flow, 30 frames", (0.731, 0.905)),
    ),
    f"{_WAYS}Hit@1 of single clips: 0.411, 0.419, 0.708, and none of the LSTM.",
)

VU_TABLE_3_6 = PaperTable(
    "VU Table 3.6",
    _UCF,
    ("accuracy",),
    (
        ("Single Frame Model", (0.733,)),
        ("Conv Pooling (30 frames), 30 fps", (0.808,)),
        ("Conv Pooling (30 frames), 6 fps", (0.820,)),
        ("Conv Pooling (120 frames), 30 fps", (0.826,)),
        ("Conv Pooling (120 frames), 6 fps", (0.826,)),
    ),
    f"{_WAYS}The paper's networks are those trained on Sports-1M.",
)

VU_TABLE_3_7 = PaperTable(
    "VU Table 3.7",
    _UCF,
    ("accuracy",),
    (
        ("IDTF", (0.879,)),
        ("Slow Fusion CNN", (0.654,)),
        ("Single Frame CNN Model (Images)", (0.730,)),
        ("Single Frame CNN Model (Optical Flow)", (0.739,)),
        ("Two-Stream CNN (Averaging)", (0.869,)),
        ("Two-Stream CNN (SVM Fusion)", (0.880,)),
        ("Our Single Frame Model", (0.733,)),
        ("Conv Pooling of Image Frames + Optical Flow (30 Frames)", (0.876,)),
        ("Conv Pooling of Image Frames + Optical Flow (120 Frames)", (0.882,)),
        ("LSTM with 30 Frame Unroll (Optical Flow + Image Frames)", (0.886,)),
    ),
    f"{_WAYS}The paper's networks are those trained on Sports-1M.",
)

_MOTION = (
    "All of the paper's networks see RGB alone; ActionFlowNet learns optical flow beside the "
    "classes. A run here is one split."
)

_TABLE_4_1 = (
    ("Scratch, two frames", 0.513, 0.239),
    ("FlowNet fine-tune, two frames", 0.660, 0.291),
    ("Stacked, two frames", 0.696, 0.424),
    ("ActionFlowNet-2F (UCF101)", 0.700, 0.424),
    ("ActionFlowNet-2F (FlyingChairs + UCF101)", 0.710, 0.426),
    ("ImageNet pretrained ResNet-18", 0.807, 0.471),
    ("Multi-frame FlowNet fine-tune", 0.808, 0.506),
    ("ActionFlowNet (UCF101)", 0.839, 0.564),
    ("Sports-1M pretrained C3D", 0.823, 0.535),
    ("Kinetics pretrained I3D", 0.956, 0.748),
)

VU_TABLE_4_1 = {
    data: PaperTable(
        "VU Table 4.1",
        f"{name}, split 1",
        ("accuracy",),
        tuple((method, (numbers[column],)) for method, *numbers in _TABLE_4_1),
        _MOTION,
    )
    for column, (data, name) in enumerate((("ucf101", "UCF101"), ("hmdb51", "HMDB51")))
}
"""{recipe: the column of its data set}."""

VU_TABLE_4_2 = PaperTable(
    "VU Table 4.2",
    "UCF101, split 1, without pretraining on large labelled data sets",
    ("accuracy",),
    (
        ("ResNet-18 Scratch", (0.513,)),
        ("VGG-M-2048 Scratch", (0.529,)),
        ("Sequential Verification", (0.509,)),
        ("VGAN", (0.521,)),
        ("O3N", (0.603,)),
        ("OPN", (0.598,)),
        ("FlowNet fine-tuned", (0.660,)),
        ("ActionFlowNet-2F", (0.700,)),
        ("ActionFlowNet", (0.839,)),
    ),
    _MOTION,
)

VU_TABLE_4_3 = PaperTable(
    "VU Table 4.3",
    "UCF101, split 1; end-point errors on Sintel",
    ("accuracy",),
    (
        ("Stacked on FlyingChairs, end-point error 9.12 px", (0.517,)),
        ("Stacked on UCF101, 11.84 px", (0.696,)),
        ("ResNet on EpicFlow, 6.29 px", (0.777,)),
    ),
    f"{_MOTION} Better flow is not always better recognition: that is what the table shows.",
)

TABLES_OF_RECIPES = {
    **tables.TABLES_OF_RECIPES,
    **images.TABLES_OF_RECIPES,
    "sports1m": (VU_TABLE_3_1, VU_TABLE_3_2, VU_TABLE_3_3, VU_TABLE_3_4, VU_TABLE_3_5),
    "ucf101": (
        *tables.TABLES_OF_RECIPES["ucf101"],
        *(VU_TABLE_3_6, VU_TABLE_3_7, VU_TABLE_4_1["ucf101"], VU_TABLE_4_2, VU_TABLE_4_3),
    ),
    "hmdb51": (*tables.TABLES_OF_RECIPES["hmdb51"], VU_TABLE_4_1["hmdb51"]),
    "actionflownet": (VU_TABLE_4_1["ucf101"], VU_TABLE_4_2, VU_TABLE_4_3),
}
"""Tables of the papers whose protocol a recipe follows."""
