-- What several checks ask for, made of the tables of a run that has been read.

-- The codebooks of today's encodings.
CREATE VIEW used_codebooks AS
    SELECT DISTINCT value AS digest FROM footers
    WHERE starts_with(folder, 'encodings/') AND entry = 'codebook'
    -- Vectors that were given have no codebook.
    AND NOT ends_with(folder, '-external_global');
-- Entries of each folder's footers, and the value where all have the same. Recipe, configuration
-- and code may differ: a run that goes on after a change leaves files of both in one folder.
CREATE VIEW expected_footers AS
    SELECT folder, unnest(['recipe', 'config', 'code', 'weights', 'backbone', 'decoder',
        'sampling']) AS entry, NULL AS value FROM folders
    UNION ALL SELECT folder, 'format', getvariable('format_version') FROM folders
    UNION ALL SELECT folder, 'step', step FROM folders
    UNION ALL SELECT folder, entry, value FROM folders CROSS JOIN
        -- What made most files of DESCRIPTORS, and so all that is made from them.
        (SELECT entry, mode(value) AS value FROM footers
         WHERE folder = 'descriptors' AND entry IN ('weights', 'backbone', 'decoder', 'sampling')
         GROUP BY ALL)
        WHERE step != 'index' OR entry = 'sampling'
    UNION ALL SELECT folder, 'codebook', min(value) FILTER (entry = 'codebook')
        FROM folders LEFT JOIN footers USING (folder)
        WHERE table_name IN ('encodings', 'attention') GROUP BY ALL
    UNION ALL SELECT folder, 'codebook', parse_filename(path)
        FROM folders WHERE table_name = 'curves';

-- The row of DESCRIPTORS that counts, of each planned segment.
CREATE TABLE last_attempts AS
    FROM descriptors SEMI JOIN segments USING (segment_id, source)
    QUALIFY row_number()
        OVER (PARTITION BY segment_id, source ORDER BY attempts DESC, file, row) = 1;
-- Videos with such a row.
CREATE TABLE described AS
    SELECT video_id, source, count(*) AS num_segments, bool_or(status != 'failed') AS is_described
    FROM last_attempts GROUP BY ALL;
-- Rows of DESCRIPTORS, one for each stream.
CREATE VIEW stream_rows AS
    FROM (SELECT * EXCLUDE (vectors, vector), vector.name AS stream, vector.length AS length
        FROM (SELECT *, unnest(vectors) AS vector FROM descriptors))
    LEFT JOIN streams USING (stream);

-- Tested videos and their classes, numbered from 0 on; is_described is null where that is unknown.
CREATE TABLE classes AS
    SELECT label, row_number() OVER (ORDER BY label) - 1 AS class
    FROM (SELECT DISTINCT unnest(labels) AS label FROM videos);
CREATE TABLE tested AS
    SELECT *, row_number() OVER (ORDER BY video_id) - 1 AS video,
        if((SELECT count(*) FROM whole_folders WHERE folder IN ('segments', 'descriptors')) = 2,
            video_id IN (SELECT video_id FROM described WHERE is_described), NULL) AS is_described
    FROM (FROM videos WHERE len(labels) > 0 AND fold >= 0
        QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY file, row) = 1);

-- The result whose rows are in the table `scores`, and those of them that belong to it.
CREATE TABLE result (folder VARCHAR, is_whole BOOLEAN);
CREATE VIEW known_scores AS
    SELECT scores.*, video, class, labels, tested.fold AS tested_fold
    FROM scores SEMI JOIN folders USING (folder, encoder, stream)
    JOIN tested ON tested.video_id = scores.video_id JOIN classes USING (label);

-- Rows that METRICS should have, and names of encoders and streams; a fusion has them with +.
CREATE TABLE expected (encoder VARCHAR, stream VARCHAR, fusion VARCHAR, split VARCHAR,
    metric VARCHAR, class VARCHAR, value DOUBLE, place BIGINT,
    key VARCHAR AS (concat_ws(', ', encoder, stream, fusion, split, metric, class)));
CREATE TABLE names (name VARCHAR);
CREATE MACRO is_named(text) AS
    list_has_all((SELECT list(name) FROM names), string_split(text, '+')) OR text IN (FROM names);
