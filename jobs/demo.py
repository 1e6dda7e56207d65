"""Run the main job on a small corpus that it makes itself, or on your own videos."""

import argparse
import logging
import sys
from pathlib import Path

from encoders.backbones import load
from jobs import fcvid_encode
from pipelines import logs
from pipelines.demo.corpus import make_demo_corpus
from pipelines.settings.recipes import recipe

log = logging.getLogger("video_fisher")

QUERIES = """
Ask the tables yourself: run `duckdb` (or python -c 'import duckdb; duckdb.sql(...).show()') \
and paste

-- which encoder, stream and fusion is best? run.json names the folders of today's settings
SET VARIABLE metrics = (SELECT '{out}/' || tables['metrics'] || '/*.parquet'
    FROM read_json('{out}/run.json', columns = {{tables: 'MAP(VARCHAR, VARCHAR)'}}));
SELECT encoder, stream, fusion, max(value) FILTER (metric = 'accuracy') AS accuracy,
       max(value) FILTER (metric = 'mAP') AS mAP
FROM read_parquet(getvariable('metrics')) WHERE split = 'all' GROUP BY ALL ORDER BY accuracy DESC;

-- what is in the corpus, as the headers say?
SELECT codec, width_px, height_px, round(fps, 2) AS fps, count(*) AS videos,
       round(sum(duration_s), 1) AS seconds
FROM '{out}/videos/*/*.parquet' GROUP BY ALL ORDER BY videos DESC;

-- which videos does FV-VAE on frame differences get most wrong?
SELECT video_id, labels[1] AS truth, label AS predicted, round(score, 2) AS score
FROM '{out}/scores/fv_vae-{stream}/*/*.parquet' JOIN '{out}/videos/*/*.parquet' USING (video_id)
WHERE NOT is_true QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY score DESC) = 1
ORDER BY score DESC LIMIT 5;
"""


def main(argv: list[str] | None = None) -> int:
    """Make the corpus, find weights and run the job; return its exit code."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--videos", help="folder of your own videos; needs --labels")
    parser.add_argument("--labels", help="CSV with their labels: path,label[,group][,split]")
    parser.add_argument(
        "--weights",
        help="file or URI of SqueezeNet 1.0 weights, a state dict (default: download them)",
    )
    parser.add_argument(
        "--out", default="demo_out", help="folder for all output (default: demo_out)"
    )
    arguments = parser.parse_args(argv)
    if bool(arguments.videos) != bool(arguments.labels):
        parser.error("VIDEOS and LABELS go together")
    logs.configure()
    out = Path(arguments.out)
    if arguments.videos:
        videos, labels = arguments.videos, arguments.labels
    else:
        labels = str(make_demo_corpus(out / "corpus", on_video=_progress))
        videos = str(out / "corpus")
    run = out / "run"
    code = fcvid_encode.main(
        [
            *("--videos", videos, "--labels", labels, "--out", str(run), "--recipe", "demo"),
            *("--set", f"describe.weights={_weights(arguments.weights)}"),
        ]
    )
    if code != 2:
        print(QUERIES.format(out=run, stream="features_12_difference"))
    return code


def _weights(given: str | None) -> str:
    """Return the given weights, else the published ones, else random ones, with a warning in the
    log and the report."""
    if given:
        return given
    describe = recipe("demo").describe
    try:
        load.load_published(describe.backbone, describe.weights)
    except load.WeightsError as error:
        log.warning("%s", error)
        log.warning(
            "The demo goes on with seeded RANDOM filters: what follows shows the pipeline, not "
            "the accuracy of the method. With weights: make demo WEIGHTS=FILE"
        )
        return "random:0"
    return describe.weights


def _progress(done: int, total: int) -> None:
    if done % 24 == 0 or done == total:
        log.info("demo corpus: %d/%d videos", done, total)


if __name__ == "__main__":
    sys.exit(main())
