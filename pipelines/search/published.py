"""VU's tables of retrieval (chapter 2), for one data set each."""

from pipelines.report.papers.tables import PaperTable

MAP, MAP_COMPRESSED = "retrieval_mAP", "retrieval_mAP_compressed"
"""Names in METRICS: of the whole vectors, and after PCA with whitening."""

_DATA = {
    "holidays": "Holidays, 1,491 images, 500 queries",
    "oxford": "Oxford, 5,062 images, 55 queries",
    "paris": "Paris, 6,412 images, 55 queries",
}

_DIFFERENCES = (
    "The paper's own rows are VLAD with 100 words and intra-normalisation on one layer, at 224 px "
    "and at 448 px, both vectors side by side. Queries are whole images, as here."
)

_TABLE_2_2 = (
    ("BoW 200k-D", (0.540, 0.364, 0.460)),
    ("Improved Fisher", (0.626, 0.414, None)),
    ("LCS+RN", (0.658, 0.517, None)),
    ("VLADintra + RootSIFT", (0.653, 0.558, None)),
    ("CVLAD", (0.827, 0.514, None)),
    ("CNNaug-ss", (0.843, 0.680, 0.795)),
    ("Multi-resolution Spatial Search", (0.897, 0.844, 0.853)),
    ("Neural codes", (0.793, 0.545, None)),
    ("MOP-CNN", (0.802, None, None)),
    ("Ours (VGG-16)", (0.838, 0.649, 0.694)),
    ("Ours (GoogLeNet)", (0.840, 0.581, 0.688)),
)

_TABLE_2_3 = (
    ("VLADintra + SIFT, 128 values", (0.625, 0.448, None)),
    ("FV + T-embedding, 128 values", (0.617, 0.433, None)),
    ("Neural codes, 128 values", (0.789, 0.557, None)),
    ("MOP-CNN, 512 values", (0.784, None, None)),
    ("Spatial Pooling, 256 values", (0.742, 0.533, 0.670)),
    ("Ours (VGG-16), 128 values", (0.816, 0.593, 0.590)),
    ("Ours (GoogLeNet), 128 values", (0.836, 0.558, 0.583)),
)

_Rows = tuple[tuple[str, tuple[float | None, ...]], ...]


def _of(data: str, name: str, metric: str, rows: _Rows) -> PaperTable:
    """Return the column of a data set, of the methods that have a number there."""
    column = list(_DATA).index(data)
    numbers = [(method, values[column]) for method, values in rows]
    return PaperTable(
        f"VU Table {name}",
        _DATA[data],
        (metric,),
        tuple((method, (value,)) for method, value in numbers if value is not None),
        _DIFFERENCES,
    )


TABLES = {
    data: (_of(data, "2.2", MAP, _TABLE_2_2), _of(data, "2.3", MAP_COMPRESSED, _TABLE_2_3))
    for data in _DATA
}
"""{preset of jobs.retrieve: the paper's tables of that data set}."""

VU_FIGURE_2_2 = (
    "One scale: mAP rises with the layer, reaches a peak, and falls towards the last layers. The "
    "best layers of GoogLeNet are Inception 3a on Holidays (0.820, the last layer 0.685), 4a on "
    "Oxford and 4e on Paris.",
    "The finer scale (448 px) is better than the first one, but for VGG-16 on Holidays, and there "
    "higher layers of GoogLeNet do better on Oxford and Paris.",
)
"""Text of VU 2.4.1 and 2.4.2 on Figure 2.2; its points are not printed."""
