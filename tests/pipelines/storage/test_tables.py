"""The schemas are frozen here, because analysts' queries depend on them."""

import numpy as np
import pyarrow as pa
import pytest

from pipelines.storage.columns import (
    descriptor_type,
    descriptors_from_arrow,
    descriptors_to_arrow,
    encoding_type,
    vectors_from_arrow,
)
from pipelines.storage.tables import CURVES, DESCRIPTORS, METRICS, TABLES

COLUMNS = {
    "videos": (
        "video_id uri labels group fold size_bytes source container codec width_px height_px "
        "rotation_deg duration_s fps num_frames_header num_segments status stage error_type error "
        "listed_by is_mirrored start_s end_s box_x box_y box_width box_height ignored"
    ),
    "segments": "segment_id video_id segment num_segments source",
    "descriptors": (
        "segment_id video_id segment source num_frames num_missing frame_indices timestamps_s "
        "status stage error_type error attempts decode_s decoder"
    ),
    "failures": (
        "segment_id video_id segment source num_frames num_missing status stage error_type error "
        "attempts decode_s decoder"
    ),
    "samples": "video_id frame",
    "curves": "codebook stream fold quantity step value",
    "encodings": "video_id source encoder stream fold num_descriptors",
    "search": "video_id source encoder stream fold",
    "retrieval": "truth encoder stream compression query ap",
    "attention": "video_id source encoder stream fold frame_index timestamp_s value",
    "scores": "video_id encoder stream fold label is_true score",
    "solutions": (
        "encoder stream fold label form loss c num_positive num_negative primal dual gap rounds "
        "is_solved seconds"
    ),
    "fusions": "encoder stream fold part_encoder part_stream weight slope intercept",
    "metrics": (
        "encoder stream fusion weights protocol split metric class value ci_low ci_high sd"
        " num_videos num_positives parts"
    ),
    "models": (
        "encoder stream fusion fold part_encoders part_streams weights slope intercept"
        " num_calibration"
    ),
    "network_scores": "video_id source scores",
    "scores_over_time": (
        "video_id encoder stream fold frame_index timestamp_s label labels scores"
    ),
    "confidence": "uri encoder stream class score cells values",
    "predictions": "video_id class score probability rank",
    "frames": "segment_id video_id source status error frame_indices pictures",
    "clips": (
        "clip_id video_id source status error frame_indices pictures flow num_flows"
        " error_type timestamps_s attempts"
    ),
    "networks": "codebook stream fold quantity step value",
    "clip_scores": "video_id encoder stream fold clip subnetwork frame_indices labels scores",
    "cams": (
        "video_id encoder stream fold subnetwork place frame_indices label labels picture values"
    ),
    "flows": (
        "video_id encoder stream fold place frame_index is_extrapolated error_px length_px"
        " picture flow truth"
    ),
}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_columns_are_frozen_and_explained(table) -> None:
    assert [column.name for column in table.columns] == COLUMNS[table.name].split()
    assert set(table.key) <= set(table.schema().names)
    assert all(column.meaning for column in (*table.columns, *table.vectors))


def test_build_refuses_what_is_not_declared() -> None:
    row = dict.fromkeys(CURVES.schema().names, 1) | {
        "codebook": "a",
        "stream": "b",
        "quantity": "c",
    }
    assert CURVES.build([row]).schema == CURVES.schema()
    with pytest.raises(ValueError, match="expected columns"):
        CURVES.build([row | {"extra": 1}])
    with pytest.raises(ValueError, match=r"curves.value: expected no nulls, got 1"):
        CURVES.build([row | {"value": None}])


def test_nulls_are_allowed_where_the_meaning_says_so() -> None:
    row = dict.fromkeys(METRICS.schema().names) | {
        "encoder": "ave",
        "stream": "s",
        "fusion": "none",
        "protocol": "given, 1 fold",
        "split": "all",
        "metric": "mAP",
        "num_videos": 7,
    }
    assert METRICS.build([row])["value"].null_count == 1


def test_descriptors_survive_slicing_and_nulls() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.random((4, 3), np.float32).astype(np.float16), None, np.zeros((0, 3), np.float16)]
    rows.append(rng.random((2, 3), np.float32).astype(np.float16))
    column = descriptors_to_arrow(rows, 3)
    assert column.type == descriptor_type(3)
    table = pa.table({"x": column}).slice(1)
    for place, expected in enumerate(rows[1:]):
        found = descriptors_from_arrow(table["x"][place])
        if expected is None:
            assert found is None
        else:
            np.testing.assert_array_equal(found, expected)


def test_vectors_of_a_slice_are_only_its_own() -> None:
    values = np.arange(12, dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), type=encoding_type(3, "float32"))
    np.testing.assert_array_equal(vectors_from_arrow(column.slice(1, 2)), values.reshape(4, 3)[1:3])


def test_a_descriptor_file_holds_plain_lists() -> None:
    schema = DESCRIPTORS.schema(pool5_appearance=descriptor_type(512))
    assert str(schema.field("pool5_appearance").type) == (
        "list<element: fixed_size_list<element: halffloat>[512]>"
    )
    assert schema.metadata is None
