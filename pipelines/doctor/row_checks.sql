-- Checks of rows: keys, orphans, counts between tables, vectors, scores and metrics.
-- `check.py` says how this file is read, `tables.sql` has the tables.

-- error keys.duplicate: a key names one row
-- remake: files
FROM (SELECT *, '# rows have the key of another one' AS found FROM row_keys)
QUALIFY row_number() OVER (PARTITION BY folder, key ORDER BY file, row) > 1;
SELECT *, '# videos have two rows of one frame' AS found FROM attention WHERE num_rows > num_frames;
-- of: scores
FROM (SELECT *, '# rows have the key of another one' AS found FROM scores)
QUALIFY row_number() OVER (PARTITION BY video_id, encoder, stream, label ORDER BY file, row) > 1;

-- error orphans.rows: every row of today's tables is of a known video and result
-- whole: videos segments
SELECT *, '# rows of no video' AS found FROM segments ANTI JOIN videos USING (video_id, source);
-- whole: segments
SELECT *, '# rows of no segment' AS found
FROM failures ANTI JOIN segments USING (segment_id, source);
-- whole:
SELECT *, '# rows of another codebook' AS found
FROM encodings ANTI JOIN folders USING (folder, encoder, stream, fold);
SELECT *, '# rows of another codebook' AS found
FROM attention ANTI JOIN folders USING (folder, encoder, stream, fold);
-- whole: metrics
-- Of a split or class that their result has not, or of names that no result has.
SELECT *, '# rows of no result' AS found
FROM metrics ANTI JOIN expected ON metrics.key = expected.key
WHERE NOT is_named(encoder) OR NOT is_named(stream) OR (encoder, stream, fusion, metric)
    IN (SELECT (encoder, stream, fusion, metric) FROM expected);
-- of: scores
SELECT *, '# rows of no tested video, or of another result or class' AS found
FROM scores ANTI JOIN known_scores USING (file, row);

-- note orphans.old_source: DESCRIPTORS, ENCODINGS and ATTENTION have rows of today's files only
-- do: kept on purpose, of videos that have changed or are not in this run: readers join on source
-- whole: segments
SELECT *, '# rows' AS found FROM descriptors ANTI JOIN segments USING (segment_id, source);
-- whole: videos
SELECT *, '# rows' AS found FROM encodings ANTI JOIN videos USING (video_id, source);
SELECT *, '# rows' AS found FROM attention ANTI JOIN videos USING (video_id, source);

-- error counts.segments: a video has num_segments rows in SEGMENTS
-- do: delete the folders of VIDEOS and SEGMENTS and {again}: headers are read once more
-- done: index
-- whole: videos segments
SELECT *, '# videos have not num_segments rows in SEGMENTS' AS found
FROM videos LEFT JOIN
    (SELECT video_id, count(DISTINCT segment_id) AS num FROM segments GROUP BY ALL)
    USING (video_id)
WHERE num_segments != coalesce(num, 0);
SELECT *, '# rows whose segment or num_segments is not the video''s' AS found
FROM segments LEFT JOIN
    (SELECT video_id, arg_min(num_segments, (file, row)) AS num FROM videos GROUP BY ALL)
    USING (video_id)
WHERE num_segments != num OR segment < 0 OR segment >= num_segments;

-- error counts.descriptors: every planned segment is ok, partial or failed in DESCRIPTORS
-- do: delete _done-*.json of the folder below marks/ and {again}: the missing segments are described
-- done: describe
-- whole: videos segments descriptors
SELECT * REPLACE ('descriptors' AS folder), '# of ' || (SELECT count(*) FROM segments)
    || ' planned segments have no row' AS found
FROM segments ANTI JOIN descriptors USING (segment_id, source)
    SEMI JOIN videos USING (video_id, source);

-- error counts.frames: status, frames and descriptors of a row agree
SELECT *, '# rows with a status that is none' AS found
FROM descriptors WHERE status NOT IN ('ok', 'partial', 'failed');
SELECT *, '# rows with another number of frame_indices or timestamps_s than num_frames' AS found
FROM descriptors WHERE num_indices != num_frames OR num_times != num_frames;
SELECT *, '# rows with status failed, and frames' AS found
FROM descriptors WHERE status = 'failed' AND num_frames > 0;
SELECT *, '# rows with status failed or partial without error_type, or ok with one' AS found
FROM descriptors WHERE (status = 'ok') != (error_type IS NULL);
SELECT *, '# rows with status ok and missing frames, or partial and none' AS found
FROM descriptors WHERE status != 'failed' AND (status = 'ok') != (num_missing = 0);
SELECT *, '# rows with null in ' || stream || ' though not failed, or not null though failed'
    AS found
FROM stream_rows WHERE (length IS NULL) != (status = 'failed');
-- Of source frames, a video that is too short for the window has none. Of sampled frames, the first
-- ones of a video are in no window; a segment that follows another has one for each.
SELECT *, '# rows with another number of descriptors in ' || stream || ' than its frames have'
    AS found
FROM stream_rows
WHERE CASE WHEN size IS NULL THEN length % greatest(num_frames, 1) != 0
    WHEN has_gap THEN length NOT IN (0, size * num_frames)
    ELSE length % size != 0 OR num_frames - length // size
        NOT BETWEEN 0 AND least(window_frames - 1, num_frames) END;

-- error counts.failures: FAILURES are the failed and partial rows of DESCRIPTORS
-- done: describe
-- whole: segments descriptors failures
-- remake: folder
SELECT * REPLACE ('failures' AS folder),
    '# failed or partial rows of DESCRIPTORS are not listed' AS found
FROM last_attempts ANTI JOIN failures
    USING (segment_id, source, status, attempts, num_missing)
WHERE status IN ('partial', 'failed');
SELECT *, '# rows that no row of DESCRIPTORS gives' AS found
FROM failures SEMI JOIN segments USING (segment_id, source)
    ANTI JOIN (FROM last_attempts WHERE status IN ('partial', 'failed'))
    USING (segment_id, source, status, attempts, num_missing);

-- error counts.encodings: a video has a row per codebook if a segment of it is described
-- done: encode
-- whole: videos segments descriptors
-- remake: missing
SELECT known.* REPLACE (folders.folder AS folder), '# described videos have no row' AS found
FROM folders CROSS JOIN
    (FROM videos SEMI JOIN (FROM described WHERE is_described) USING (video_id, source)) AS known
    ANTI JOIN encodings ON (encodings.folder, encodings.video_id, encodings.source)
        = (folders.folder, known.video_id, known.source)
WHERE table_name = 'encodings' AND folders.folder IN (FROM whole_folders);
-- A video without any row in DESCRIPTORS is a matter of counts.descriptors.
-- remake:
SELECT *, '# rows of videos whose segments have all failed' AS found
FROM encodings SEMI JOIN (FROM described SEMI JOIN videos USING (video_id, source)
    WHERE NOT is_described) USING (video_id, source);

-- error counts.num_descriptors: encodings are the sum of all descriptors of their video
-- whole: videos segments descriptors
-- remake: folder
-- Of videos with a row of each planned segment.
SELECT encodings.*, '# rows whose num_descriptors is not that of DESCRIPTORS' AS found
FROM encodings JOIN
    (SELECT video_id, source, stream, sum(coalesce(length, 0)) AS total
     FROM stream_rows SEMI JOIN last_attempts USING (file, row)
     SEMI JOIN (FROM described SEMI JOIN videos USING (video_id, source, num_segments)
         WHERE is_described) USING (video_id, source)
     GROUP BY ALL) USING (video_id, source, stream)
WHERE num_descriptors != total;

-- error counts.attention: ATTENTION has a row per encoded frame
-- done: encode
-- remake: missing
-- Rows of another codebook are passed over: orphans.rows tells of them.
SELECT encodings.* REPLACE (looks.folder AS folder),
    '# videos have not one row per encoded frame' AS found
FROM encodings JOIN folders AS books USING (folder)
    JOIN folders AS looks ON (looks.table_name, looks.encoder, looks.stream, looks.fold)
        = ('attention', books.encoder, books.stream, books.fold)
    JOIN streams ON streams.stream = books.stream
    LEFT JOIN (SELECT folder, video_id, source, arg_min(num_frames, (file, row)) AS num
        FROM attention SEMI JOIN folders USING (folder, encoder, stream, fold) GROUP BY ALL) AS seen
        ON (seen.folder, seen.video_id, seen.source)
            = (looks.folder, encodings.video_id, encodings.source)
WHERE coalesce(num, 0) * size != num_descriptors
    AND books.folder IN (FROM whole_folders) AND looks.folder IN (FROM whole_folders);

-- error vectors.not_finite: no NaN and no infinity
-- remake: files
SELECT *, '# rows with NaN or infinity in ' || name AS found FROM vectors WHERE NOT is_finite;
SELECT *, '# videos with NaN or infinity in value or timestamp_s' AS found
FROM attention WHERE NOT is_finite;
-- of: scores
SELECT *, '# scores are NaN or infinite' AS found FROM scores WHERE NOT isfinite(score);

-- error vectors.norm: encodings have norm 1, or 0 without descriptors
-- remake: folder
-- Of D rounded values: float16 has 11 bits, and 2e-8 is the smallest half of its steps.
SELECT encodings.* REPLACE (format('{}: norm {:.6g}, {} descriptors', example, vectors[1].norm,
    num_descriptors) AS example), '# vectors of another norm' AS found
FROM encodings JOIN folders USING (folder)
WHERE has_unit_length AND isfinite(vectors[1].norm) AND vectors[1].norm > 0
    AND (num_descriptors = 0
        OR abs(vectors[1].norm - 1) > if(vector_type = 'halffloat', 2e-3, 1e-5));

-- warning vectors.zero: encodings of described videos are not zero
-- do: expected of differences where nothing moves; else look at the video: are its frames black?
SELECT *, '# vectors' AS found FROM encodings WHERE vectors[1].norm = 0 AND num_descriptors > 0;

-- error attention.sum: a frame's attention is the sum of its cells
SELECT *, '# videos' AS found FROM attention WHERE is_no_sum;

-- error counts.scores: a tested video has a score for every class
-- done: classify
-- remake: folder
-- of: scores
-- Where DESCRIPTORS cannot be read, of the videos that have a score.
SELECT tested.* REPLACE (result.folder AS folder), '# of ' || (SELECT count(*) FROM tested
    WHERE is_described) || ' tested videos lack scores' AS found
FROM result CROSS JOIN tested LEFT JOIN
    (SELECT video, count(DISTINCT class) AS num FROM known_scores GROUP BY ALL) USING (video)
WHERE is_whole AND coalesce(is_described, num > 0)
    AND coalesce(num, 0) < (SELECT count(*) FROM classes);

-- error scores.truth: is_true and fold of SCORES are those of VIDEOS
-- remake: folder
-- of: scores
SELECT *, '# rows whose is_true or fold is not that of VIDEOS' AS found FROM known_scores
WHERE is_true != list_contains(labels, label) OR fold != tested_fold;

-- error metrics.values: METRICS are what SCORES give, to 1e-9
-- whole: metrics
-- remake: folder
SELECT metrics.* REPLACE (concat(example, ': ', coalesce(metrics.value::VARCHAR, 'null'),
    ', not ', coalesce(expected.value::VARCHAR, 'null')) AS example),
    '# values are not what the scores give' AS found
FROM metrics JOIN expected USING (key)
WHERE (metrics.value IS NULL OR isnan(metrics.value)) != (expected.value IS NULL)
    OR abs(metrics.value - expected.value) > 1e-9;

-- error metrics.missing: METRICS have every number of every result
-- done: evaluate
-- whole: metrics
-- remake: folder
SELECT 'metrics' AS folder, '' AS file, place AS row, key AS example, '# rows are missing' AS found
FROM expected ANTI JOIN metrics USING (key);
