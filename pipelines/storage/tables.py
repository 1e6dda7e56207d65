"""Every table of a run, declared once: its step, files, columns, Arrow types, units and key.

All types are plain Arrow types, so that DuckDB, pandas and Polars open the files without Ray. A
vector column is a list of fixed-size lists (descriptors) or one fixed-size list (encodings); its
width is part of the schema of a file, never of the table.
"""

import pyarrow as pa

from pipelines.storage.columns import Column, Table, VectorColumn

ROWS_PER_FILE = {
    "videos": 10_000,
    "descriptors": 16,
    "samples": 1000,
    "encodings": 64,
    "clips": 16,  # about 100 MB of pictures
}
"""Least rows of a file, but for the last one of a task."""


_NAMES = pa.list_(pa.field("element", pa.string()))

_STATUS = (
    Column("status", pa.string(), "ok, partial (some wanted frames are missing) or failed"),
    Column("stage", pa.string(), "where it failed: index, decode or describe", nullable=True),
    Column("error_type", pa.string(), "one of pipelines.video.header.ERROR_TYPES", nullable=True),
    Column("error", pa.string(), "message for people", nullable=True),
)

VIDEOS = Table(
    "videos",
    "index",
    "videos/*/*.parquet",
    "One row per video: labels, split and container facts read from the header alone",
    ("video_id",),
    (
        Column("video_id", pa.string(), "path as the labels give it, relative to the videos"),
        Column("uri", pa.string(), "where the file is"),
        Column("labels", pa.list_(pa.string()), "sorted; empty where there are none"),
        Column("group", pa.string(), "videos that must stay on one side of a split", nullable=True),
        Column("fold", pa.int32(), "fold that tests this video; -1: always training"),
        Column("size_bytes", pa.int64(), "size of the file"),
        Column(
            "source",
            pa.string(),
            "digest of uri, size and modification time or etag, and of the box where there is one: "
            "it changes with them",
        ),
        Column("container", pa.string(), "FFmpeg's name of the container", nullable=True),
        Column("codec", pa.string(), "FFmpeg's name of the codec", nullable=True),
        Column("width_px", pa.int32(), "as shown, after rotation", nullable=True),
        Column("height_px", pa.int32(), "as shown, after rotation", nullable=True),
        Column("rotation_deg", pa.int32(), "counter-clockwise: 0, 90, 180 or 270", nullable=True),
        Column("duration_s", pa.float64(), "null where the header has none", nullable=True),
        Column(
            "fps",
            pa.float64(),
            "average frame rate of the header, in frames a second",
            nullable=True,
        ),
        Column("num_frames_header", pa.int64(), "what the header claims", nullable=True),
        Column("num_segments", pa.int32(), "planned segments, at least 1"),
        *_STATUS,
        Column(
            "listed_by",
            pa.string(),
            "what tells which frames are shown when: packets, or decoding where these do not say; "
            "null in files of before",
            nullable=True,
        ),
        Column(
            "is_mirrored",
            pa.bool_(),
            "whether players mirror the frames, left and right, before they turn them; null in "
            "files of before",
            nullable=True,
        ),
        Column(
            "start_s",
            pa.float64(),
            "where the video begins in its file; null where it is the whole file",
            nullable=True,
        ),
        Column("end_s", pa.float64(), "where it ends in its file", nullable=True),
        Column(
            "box_x",
            pa.float64(),
            "left edge of the part of the picture that is the video, in px of the picture as "
            "shown, with picture.box_margin; null where it is the whole picture",
            nullable=True,
        ),
        Column("box_y", pa.float64(), "its upper edge", nullable=True),
        Column("box_width", pa.float64(), "its width in px", nullable=True),
        Column("box_height", pa.float64(), "its height in px", nullable=True),
        Column(
            "ignored",
            pa.list_(pa.string()),
            "classes that the video neither trains nor tests, sorted; null where labels have no "
            "column ignore",
            nullable=True,
        ),
    ),
)

SEGMENTS = Table(
    "segments",
    "index",
    "segments/*/*.parquet",
    "The plan: one row per segment of at most 64 sampled frames, made before anything is decoded",
    ("segment_id",),
    (
        Column("segment_id", pa.string(), "video_id, '#' and the segment in five digits"),
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("segment", pa.int32(), "0-based, in order of time"),
        Column("num_segments", pa.int32(), "segments of this video"),
        Column("source", pa.string(), "as in VIDEOS: a changed file is described again"),
    ),
)

DESCRIPTORS = Table(
    "descriptors",
    "describe",
    "descriptors/*/*.parquet",
    "One row per segment; one column per stream with the descriptors of its frames. Rows of a "
    "file that has changed since stay: join SEGMENTS on segment_id and source. A segment that "
    "failed and was tried again (--retry-failed) has a row for each time: the one with most "
    "attempts counts",
    ("segment_id", "attempts"),
    (
        Column("segment_id", pa.string(), "key of SEGMENTS"),
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("segment", pa.int32(), "0-based, in order of time"),
        Column("source", pa.string(), "as in VIDEOS when it was described"),
        Column("num_frames", pa.int32(), "frames described"),
        Column(
            "num_missing",
            pa.int32(),
            "wanted frames that could not be decoded, or not what a stream reads beside them",
        ),
        Column(
            "frame_indices", pa.list_(pa.int64()), "place in the video, counted in shown frames"
        ),
        Column("timestamps_s", pa.list_(pa.float64()), "when each frame is shown"),
        *_STATUS,
        Column("attempts", pa.int32(), "times the segment was tried"),
        Column("decode_s", pa.float64(), "time that decoding took"),
        Column(
            "decoder",
            pa.string(),
            "decoder and its version, and of how many recordings the file is joined, if it is",
            nullable=True,
        ),
    ),
    (
        VectorColumn(
            "<stream>",
            "list of float16[C]",
            "one column per stream, such as pool5_appearance: the descriptors, frame by frame, "
            "each frame view by view (picture.views), each view cell by cell of the pyramid; null "
            "if failed. It holds the last frames of the row: a difference of sampled frames has "
            "none for the first frame of a video, one of source frames none where the video is "
            "shorter than its gap",
        ),
    ),
)

FAILURES = Table(
    "failures",
    "describe",
    "failures/*/*.parquet",
    "The failed and partial rows of DESCRIPTORS, without vectors",
    ("segment_id",),
    tuple(c for c in DESCRIPTORS.columns if c.name not in ("frame_indices", "timestamps_s")),
)

SAMPLES = Table(
    "samples",
    "fit",
    "samples/<stream>/*/*.parquet",
    "Frames drawn for the codebooks of one stream",
    ("video_id", "frame"),
    (
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("frame", pa.int64(), "frame of the video (the last one of a difference)"),
    ),
    (
        VectorColumn(
            "descriptors",
            "list of float16[C]",
            "of the frame, view by view, each cell by cell of the pyramid",
        ),
    ),
)

CURVES = Table(
    "curves",
    "fit",
    "codebooks/<encoder>-<stream>/*/curves.parquet",
    "Training curves of the codebooks",
    ("codebook", "stream", "fold", "quantity", "step"),
    (
        Column("codebook", pa.string(), "encoder"),
        Column("stream", pa.string(), "stream it was fitted on"),
        Column("fold", pa.int32(), "fold left out; -1: fitted once"),
        Column(
            "quantity",
            pa.string(),
            "of fv_vae: total, reconstruction, regularisation, classification; of gmm_fv: "
            "mean_log_likelihood",
        ),
        Column("step", pa.int64(), "training step or EM iteration"),
        Column("value", pa.float64(), "nats, the mean over descriptors"),
    ),
)

ENCODINGS = Table(
    "encodings",
    "encode",
    "encodings/<encoder>-<stream>/*/*.parquet",
    "One row per video and encoder: the normalised vector of the whole video. Rows of a file that "
    "has changed since stay: join VIDEOS on video_id and source",
    ("video_id", "encoder", "stream", "fold"),
    (
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("source", pa.string(), "as in VIDEOS when it was described"),
        Column("encoder", pa.string(), "registry name or variant"),
        Column("stream", pa.string(), "column of DESCRIPTORS it was made from"),
        Column(
            "fold", pa.int32(), "fold the codebook was fitted without; -1: one codebook for all"
        ),
        Column("num_descriptors", pa.int64(), "descriptors summed; 0 gives a zero vector"),
    ),
    (VectorColumn("vector", "float32[D] or float16[D]", "the encoding (encode.dtype)"),),
)

SEARCH = Table(
    "search",
    "search",
    "search/<encoder>-<stream>/*/*.parquet",
    "One row per video: its vector as `jobs.search` compares it, after PCA with whitening (VU "
    "2.3.3). A folder is made by the first search of an encoder and stream, and again when videos "
    "or encodings have changed",
    ("video_id", "encoder", "stream", "fold"),
    (
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("source", pa.string(), "as in VIDEOS when it was described"),
        Column("encoder", pa.string(), "as in ENCODINGS"),
        Column("stream", pa.string(), "as in ENCODINGS"),
        Column("fold", pa.int32(), "as in ENCODINGS"),
    ),
    (
        VectorColumn(
            "vector", "float32[P]", "length 1: the inner product of two is their similarity"
        ),
    ),
)

RETRIEVAL = Table(
    "retrieval",
    "retrieve",
    "retrieval/<encoder>-<stream>/*/*.parquet",
    "One row per query of a retrieval benchmark, by `jobs.retrieve` (VU 2.4), which also writes "
    "their mAP as rows of METRICS into retrieval_metrics/",
    ("truth", "encoder", "stream", "compression", "query"),
    (
        Column("truth", pa.string(), "name of --truth without its suffix, or of the preset"),
        Column("encoder", pa.string(), "as in METRICS"),
        Column("stream", pa.string(), "as in METRICS"),
        Column(
            "compression",
            pa.string(),
            "none: L2 distance of whole vectors; pca_whitening: the vectors of SEARCH",
        ),
        Column("query", pa.string(), "key of VIDEOS"),
        Column(
            "ap",
            pa.float64(),
            "area under the precision-recall curve; answers without an encoding count as never "
            "found, and 0 is also a query without one",
        ),
    ),
)

ATTENTION = Table(
    "attention",
    "encode",
    "attention/<encoder>-<stream>/*/*.parquet",
    "One row per frame: how much each cell of the pyramid counts in the encoding (DQ appendix B). "
    "Rows of a file that has changed since stay: join VIDEOS on video_id and source",
    ("video_id", "encoder", "stream", "fold", "frame_index"),
    (
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("source", pa.string(), "as in VIDEOS when it was described"),
        Column("encoder", pa.string(), "registry name or variant"),
        Column("stream", pa.string(), "column of DESCRIPTORS"),
        Column("fold", pa.int32(), "as in ENCODINGS"),
        Column("frame_index", pa.int64(), "frame of the video (the last one of a difference)"),
        Column("timestamp_s", pa.float64(), "when the frame is shown"),
        Column(
            "value",
            pa.float32(),
            "temporal attention: the sum of the cells; without a unit, to be compared within a "
            "video",
        ),
    ),
    (
        VectorColumn(
            "cells",
            "float32[T]",
            "spatial attention of the centre view, cell by cell of the pyramid",
        ),
    ),
)

FRAMES = Table(
    "frames",
    "finetune",
    "frames/*/*.parquet",
    "One row per segment of a training video: the pictures that the backbone is trained on",
    ("segment_id",),
    (
        Column("segment_id", pa.string(), "key of SEGMENTS"),
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("source", pa.string(), "as in VIDEOS when it was decoded"),
        Column("status", pa.string(), "ok, partial (some wanted frames are missing) or failed"),
        Column("error", pa.string(), "message for people", nullable=True),
        Column("frame_indices", pa.list_(pa.int64()), "which frames, ascending; empty if failed"),
        Column(
            "pictures",
            pa.large_binary(),
            "RGB, uint8 [frames, crop_px, crop_px, 3]: not compressed, because the network is to "
            "be trained on exactly the pixels that it will describe",
        ),
    ),
)

CLIPS = Table(
    "clips",
    "train",
    "clips/*/*.parquet",
    "One row per video: the pictures that networks are trained and tested on, where "
    "network.networks asks for some. Rows of a file that has changed since stay: join VIDEOS on "
    "video_id and source",
    ("clip_id", "attempts"),
    (
        Column("clip_id", pa.string(), "video_id, '#' and the place in the video in five digits"),
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("source", pa.string(), "as in VIDEOS when it was decoded"),
        Column("status", pa.string(), "ok, partial (some wanted frames are missing) or failed"),
        Column("error", pa.string(), "message for people", nullable=True),
        Column(
            "frame_indices",
            pa.list_(pa.int64()),
            "which frames, ascending, for actionflownet within each run; empty if failed",
        ),
        Column(
            "pictures",
            pa.large_binary(),
            "RGB, uint8 [frames, side_px, side_px, 3]; not compressed; empty with network.stream",
        ),
        Column(
            "flow",
            pa.large_binary(),
            "uint8 [frames, side_px, side_px, 2 flow_stack], u and v of each flow, 127.5 where "
            "nothing moves; of the last frames, as a stream of flow; for actionflownet a stack of "
            "the flows inside each run; null where none is asked for",
            nullable=True,
        ),
        Column("num_flows", pa.int32(), "stacks in column flow"),
        Column("error_type", pa.string(), "kind of the failure", nullable=True),
        Column(
            "timestamps_s",
            pa.list_(pa.float64()),
            "when each frame is shown, after the first frame of the video",
            nullable=True,
        ),
        Column(
            "attempts",
            pa.int32(),
            "times that it was tried: after --retry-failed a failed one has several rows",
            nullable=True,
        ),
    ),
)

NETWORKS = Table(
    "networks",
    "train",
    "networks/<network>-<stream>/*/*.parquet",
    "Training curves of networks, beside their weights: those of each backbone as describe.weights "
    "takes them, and the classifiers",
    ("codebook", "stream", "fold", "quantity", "step"),
    (
        Column("codebook", pa.string(), "name of network.networks"),
        Column("stream", pa.string(), "rgb or flow"),
        Column("fold", pa.int32(), "fold left out"),
        Column("quantity", pa.string(), "total, or the loss of a subnetwork: image, difference"),
        Column("step", pa.int64(), "training step"),
        Column("value", pa.float64(), "nats, the mean over the clips of the step"),
    ),
)

CLIP_SCORES = Table(
    "clip_scores",
    "classify",
    "clip_scores/<network>-<stream>/*/*.parquet",
    "One row per tested video, clip and subnetwork of a network, whose mean over clips and "
    "subnetworks is the score in SCORES; of an LSTM that of its weighted reading",
    ("video_id", "encoder", "stream", "clip", "subnetwork"),
    (
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("encoder", pa.string(), "name of network.networks"),
        Column("stream", pa.string(), "rgb or flow"),
        Column("fold", pa.int32(), "fold that was left out in training"),
        Column("clip", pa.int32(), "0-based"),
        Column(
            "subnetwork",
            pa.string(),
            "image or difference; of an LSTM its readings last, max, sum and weighted",
        ),
        Column("frame_indices", pa.list_(pa.int64()), "its frames"),
        Column("labels", pa.list_(pa.string()), "the classes, sorted"),
        Column(
            "scores",
            pa.list_(pa.float32()),
            "of each class: before the softmax, the mean over the crops",
        ),
    ),
)

SCORES_OVER_TIME = Table(
    "scores_over_time",
    "classify",
    "scores_over_time/<network>-<stream>/*/*.parquet",
    "One row per tested video and frame that a network on full-length video is given, where "
    "network.over_time asks for it: the scores of the clip that ends with this frame",
    ("video_id", "encoder", "stream", "frame_index"),
    (
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("encoder", pa.string(), "name of network.networks"),
        Column("stream", pa.string(), "rgb or flow"),
        Column("fold", pa.int32(), "fold that was left out in training"),
        Column("frame_index", pa.int64(), "place in the video, counted in shown frames"),
        Column("timestamp_s", pa.float64(), "when the frame is shown"),
        Column("label", pa.string(), "the class with the highest score"),
        Column("labels", pa.list_(pa.string()), "the classes, sorted"),
        Column("scores", pa.list_(pa.float32()), "of each class, before the softmax"),
    ),
)

CAMS = Table(
    "cams",
    "classify",
    "cams/<network>-<stream>/*/*.parquet",
    "Class activation maps of some tested videos (VU 5.4.5): one row per map of a clip of "
    "pictures. Of actionflownet: one map of what the class loses where a square is black "
    "(VU 4.4.3.1)",
    ("video_id", "encoder", "stream", "subnetwork", "place"),
    (
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("encoder", pa.string(), "name of network.networks"),
        Column("stream", pa.string(), "rgb"),
        Column("fold", pa.int32(), "fold that was left out in training"),
        Column("subnetwork", pa.string(), "image, difference or occlusion"),
        Column("place", pa.int32(), "of the frame, or of the pair of frames, in the clip; 0-based"),
        Column("frame_indices", pa.list_(pa.int64()), "the frame, or both; first and last one"),
        Column("label", pa.string(), "the class with the highest score, whose map it is"),
        Column("labels", pa.list_(pa.string()), "the video's own classes"),
        Column(
            "picture",
            pa.large_binary(),
            "JPEG of the frame, of the mean of both, or the middle one",
        ),
        Column(
            "values",
            pa.list_(pa.float32()),
            "of a square map, row by row: their mean is the subnetwork's score of the frame; or "
            "(p - p_hidden) / p for a square of a quarter of the side, in steps of a sixteenth",
        ),
    ),
)

FLOWS = Table(
    "flows",
    "classify",
    "flows/<network>-<stream>/*/*.parquet",
    "Optical flow that actionflownet estimates of tested videos (VU 4.4.3.2): one row per flow of "
    "a clip's centre crop, beside the flow of the pictures that training takes for true",
    ("video_id", "encoder", "stream", "place"),
    (
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("encoder", pa.string(), "name of network.networks"),
        Column("stream", pa.string(), "rgb"),
        Column("fold", pa.int32(), "fold that was left out in training"),
        Column("place", pa.int32(), "of the frame in the clip; 0-based"),
        Column("frame_index", pa.int64(), "the frame in the video that the flow begins at"),
        Column(
            "is_extrapolated",
            pa.bool_(),
            "the flow leads to a frame that the network was not given",
        ),
        Column("error_px", pa.float32(), "mean end-point error, at a quarter of the crop's side"),
        Column("length_px", pa.float32(), "mean length of the pictures' flow: error of no flow"),
        Column("picture", pa.large_binary(), "JPEG of the frame; of few videos", nullable=True),
        Column(
            "flow",
            pa.large_binary(),
            "PNG of the estimate: the hue is its direction, the fullness its length",
            nullable=True,
        ),
        Column("truth", pa.large_binary(), "PNG of the pictures' flow, so coloured", nullable=True),
    ),
)

SCORES = Table(
    "scores",
    "classify",
    "scores/<encoder>-<stream>/*/*.parquet",
    "One row per tested video and class, of whatever classifies: a one-vs-rest SVM, a network, a "
    "fusion",
    ("video_id", "encoder", "stream", "label"),
    (
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("encoder", pa.string(), "name of encode.encoders; of a combination, or the group's"),
        Column("stream", pa.string(), "column of DESCRIPTORS; of a combination the rule"),
        Column("fold", pa.int32(), "fold that was left out in training"),
        Column("label", pa.string(), "class"),
        Column(
            "is_true",
            pa.bool_(),
            "whether the video has this label; null where it does not count for it (column ignore "
            "of the labels)",
            nullable=True,
        ),
        Column(
            "score",
            pa.float64(),
            "the higher, the likelier the class; of an SVM the signed distance from the class's "
            "hyperplane, w x + b, of a network the mean before the softmax over clips, crops and "
            "subnetworks; not calibrated, without a unit",
        ),
    ),
)

SOLUTIONS = Table(
    "solutions",
    "classify",
    "classifiers/<encoder>-<stream>/*/solutions-*.parquet",
    "One row per class and fold: how its SVM was solved. The files are beside the classifiers",
    ("encoder", "stream", "fold", "label"),
    (
        Column("encoder", pa.string(), "name of encode.encoders; of a combination, or the group's"),
        Column("stream", pa.string(), "column of DESCRIPTORS; of a combination the rule"),
        Column("fold", pa.int32(), "fold that was left out when the SVM was trained"),
        Column("label", pa.string(), "class"),
        Column("form", pa.string(), "gram or primal (classify.form)"),
        Column("loss", pa.string(), "hinge or squared_hinge"),
        Column("c", pa.float64(), "cost of a training video: the given one, or the chosen one"),
        Column("num_positive", pa.int64(), "training videos with the class"),
        Column("num_negative", pa.int64(), "training videos without it"),
        Column(
            "primal",
            pa.float64(),
            "objective of the published weights; null where all training videos have the class, "
            "or none",
            nullable=True,
        ),
        Column("dual", pa.float64(), "a lower bound of any weights' objective", nullable=True),
        Column(
            "gap",
            pa.float64(),
            "(primal - dual) / primal: by at most so much the objective could be lower",
            nullable=True,
        ),
        Column("rounds", pa.int32(), "Newton steps"),
        Column("is_solved", pa.bool_(), "whether the gap is within classify.tolerance"),
        Column("seconds", pa.float64(), "time of all classes that were solved together"),
    ),
)

FUSIONS = Table(
    "fusions",
    "classify",
    "fusions/<encoder>-<stream>/*/*.parquet",
    "One row per fused result with SCORES of its own, fold and part: what the part counts, chosen "
    "on the fold's training videos alone",
    ("encoder", "stream", "fold", "part_encoder", "part_stream"),
    (
        Column("encoder", pa.string(), "as in SCORES: the encoder, or the name of the group"),
        Column("stream", pa.string(), "as in SCORES: the rule (classify.fusions)"),
        Column("fold", pa.int32(), "fold whose videos are scored so"),
        Column("part_encoder", pa.string(), "encoder of the part"),
        Column("part_stream", pa.string(), "stream of the part"),
        Column(
            "weight",
            pa.float64(),
            "of the part's kernel or of its scores; those of a fold sum to 1, and 0 means left out",
        ),
        Column(
            "slope",
            pa.float64(),
            "of the sigmoid of a rule that made probabilities of scores; null since that rule went",
            nullable=True,
        ),
        Column("intercept", pa.float64(), "of that sigmoid", nullable=True),
    ),
)

METRICS = Table(
    "metrics",
    "evaluate",
    "metrics/*/*.parquet",
    "Long form: one row per number, with what it is of",
    ("encoder", "stream", "fusion", "split", "metric", "class"),
    (
        Column("encoder", pa.string(), "registry name or variant; the fused ones joined by '+'"),
        Column("stream", pa.string(), "column of DESCRIPTORS; the fused ones joined by '+'"),
        Column(
            "fusion",
            pa.string(),
            "none, or how scores were fused: given (weights of the configuration, else equal "
            "ones), two_stream (appearance 1, motion 1.5, which is differences, rank pooling and "
            "flow, each in equal shares of its streams; after L1 normalisation; VU 5.3.3), chosen "
            "(weights that are best on the other folds); or the rule of a combination "
            "(classify.fusions), whose encoder and stream are those of its SCORES",
        ),
        Column(
            "weights",
            pa.list_(pa.field("element", pa.float64())),
            "of the fused parts, encoder by encoder and stream by stream, sum 1; where folds have "
            "different ones, their mean over videos (split all) or over folds (split mean)",
            nullable=True,
        ),
        Column("protocol", pa.string(), "how videos were split: kind, column of the labels, folds"),
        Column(
            "split",
            pa.string(),
            "all (tested videos of all folds together), fold:k, mean (over the folds), or the "
            "name of a split",
        ),
        Column(
            "metric",
            pa.string(),
            "accuracy (Hit@1), top_K (Hit@K: one of the video's classes is among the first K), "
            "balanced_accuracy, AP (all points), AP_11 (11-point interpolated, VOC 2007), and mAP "
            "and mAP_11, their means over the classes with a positive; of a fusion also "
            "accuracy_gain and mAP_gain, the number less that of its part with the highest "
            "accuracy (with several labels a video: mAP), with intervals of the same draws for "
            "both; of a network also clip_accuracy (Hit@1 of single clips), and "
            "clip_accuracy_NAME, accuracy_NAME and top_K_NAME by its subnetwork or reading NAME; "
            "of `jobs.retrieve` retrieval_mAP and retrieval_mAP_compressed, over queries",
        ),
        Column("class", pa.string(), "class of an AP", nullable=True),
        Column("value", pa.float64(), "null where a class has no positive", nullable=True),
        Column(
            "ci_low",
            pa.float64(),
            "lower end of the 95 % bootstrap interval over tested videos; of split all alone",
            nullable=True,
        ),
        Column("ci_high", pa.float64(), "its upper end", nullable=True),
        Column(
            "sd", pa.float64(), "standard deviation of what a mean is of (n - 1)", nullable=True
        ),
        Column("num_videos", pa.int64(), "tested videos that the number is of"),
        Column("num_positives", pa.int64(), "those that have the class of an AP", nullable=True),
        Column(
            "parts",
            _NAMES,
            "ENCODER-STREAM of each fused part, in the order of weights; null of a result that is "
            "not fused, and in files of before",
            nullable=True,
        ),
    ),
)

MODELS = Table(
    "models",
    "final",
    "models/*/*.parquet",
    "One row per result that new videos can be classified by, and set of classifiers: what "
    "`jobs.predict` adds up. The final classifiers are beside it, and how they were solved",
    ("encoder", "stream", "fusion", "fold"),
    (
        Column("encoder", pa.string(), "as in METRICS"),
        Column("stream", pa.string(), "as in METRICS"),
        Column("fusion", pa.string(), "as in METRICS"),
        Column(
            "fold",
            pa.int32(),
            "-2: final classifiers, of all labelled videos; else those that this fold was left out "
            "of (classify.keep_folds)",
        ),
        Column("part_encoders", _NAMES, "encoder of each part whose scores are added"),
        Column("part_streams", _NAMES, "stream of each part"),
        Column(
            "weights",
            pa.list_(pa.field("element", pa.float64())),
            "of each part, sum 1; of final classifiers the mean over the folds",
        ),
        Column(
            "slope",
            pa.float64(),
            "probability = 1 / (1 + exp(-(slope score + intercept))), fitted to the SCORES of all "
            "tested videos, one for all classes (Platt 1999)",
        ),
        Column("intercept", pa.float64(), "of that sigmoid"),
        Column("num_calibration", pa.int64(), "tested videos that it was fitted to"),
    ),
)

NETWORK_SCORES = Table(
    "network_scores",
    "predict",
    "network_scores/*/*.parquet",
    "One row per new video, in the work folder of `jobs.predict`: its scores by the networks of a "
    "result, the mean over those of all folds",
    ("video_id",),
    (
        Column("video_id", pa.string(), "key of VIDEOS"),
        Column("source", pa.string(), "as in VIDEOS when it was decoded"),
        Column("scores", pa.list_(pa.float64()), "of each class, in the order of their names"),
    ),
)

PREDICTIONS = Table(
    "predictions",
    "predict",
    "predictions/*/*.parquet",
    "One row per new video and class, by `jobs.predict`, which writes them into one file (--to)",
    ("video_id", "class"),
    (
        Column("video_id", pa.string(), "path of the video, relative to the folder of --videos"),
        Column("class", pa.string(), "class that the run was trained on"),
        Column("score", pa.float64(), "as in SCORES: the higher, the likelier the class"),
        Column(
            "probability",
            pa.float64(),
            "of the class by itself, by the sigmoid of MODELS: those of a video need not sum to 1",
        ),
        Column("rank", pa.int32(), "1 for the video's highest score, of equals the first class"),
    ),
)

CONFIDENCE = Table(
    "confidence",
    "confidence",
    "confidence/*.parquet",
    "One row per picture and class, by `jobs.confidence`, which writes a file beside its PNG: what "
    "the positions of the picture's maps say of the class, each by itself (FK 4.5)",
    ("uri", "encoder", "stream", "class"),
    (
        Column("uri", pa.string(), "the picture"),
        Column("encoder", pa.string(), "as in METRICS"),
        Column("stream", pa.string(), "as in METRICS"),
        Column("class", pa.string(), "class that the run was trained on"),
        Column("score", pa.float64(), "of the whole picture, as in SCORES"),
        Column("cells", pa.int32(), "cells along a side of the grid over what the network saw"),
        Column(
            "values",
            pa.list_(pa.float64()),
            "of the grid, row by row: mean score of the positions that see a cell; NaN where none "
            "does",
        ),
    ),
)

TABLES = (
    VIDEOS,
    SEGMENTS,
    DESCRIPTORS,
    FAILURES,
    SAMPLES,
    CURVES,
    ENCODINGS,
    SEARCH,
    RETRIEVAL,
    ATTENTION,
    SCORES,
    SOLUTIONS,
    FUSIONS,
    METRICS,
    MODELS,
    NETWORK_SCORES,
    PREDICTIONS,
    FRAMES,
    CLIPS,
    NETWORKS,
    CLIP_SCORES,
    CAMS,
    SCORES_OVER_TIME,
    CONFIDENCE,
    FLOWS,
)

NAMED_BY_KEYS = (VIDEOS, SEGMENTS, DESCRIPTORS, SAMPLES, ENCODINGS, ATTENTION, FRAMES, CLIPS)
"""Tables whose files `pipelines.cluster.sink` writes, each under its `file_name`."""
