"""Queries of a run's tables that the demonstration prints, for DuckDB."""

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
