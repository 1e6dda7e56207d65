-- Checks of files: run.json, folders, marks, Parquet files, footers, codebooks and classifiers.
-- `check.py` says how this file is read, `tables.sql` has the tables.

-- error run.record: run.json can be read
-- do: {again}: it writes run.json anew
SELECT 'run.json' AS folder, '' AS file, error AS found FROM run_json WHERE error != '';

-- warning run.version: this version understands the configuration in run.json
-- do: ask the version that made the run; this one checks little that depends on settings
SELECT 'run.json' AS folder, '' AS file, config_error AS found
FROM run_json WHERE config_error != '';

-- error run.folder: the folders of steps that are recorded as done are there
-- do: restore them, or {again}: it makes what is missing
SELECT folder, '' AS file,
    folder || ' has no files, but step ' || step || ' is recorded as done' AS found
FROM folders JOIN steps USING (step)
WHERE is_recorded AND table_name NOT IN ('samples', 'curves')
    AND folder NOT IN (SELECT folder FROM files);

-- warning run.mark: steps that are recorded as done have their marks and their report
-- do: {again}: it makes what is missing of the step, and its mark
SELECT folder, if(regexp_matches(file, '/_done[^/]*$'), 'marks/', '') || file AS file,
    'step ' || step || ' is recorded as done, but its mark is missing' AS found
FROM marks JOIN steps USING (step)
    ANTI JOIN (SELECT regexp_replace(file, '^marks/', '') AS file FROM listing) USING (file)
WHERE is_recorded AND (folder IN (SELECT folder FROM listing) OR folder = 'report');

-- note run.unfinished: every step is done for the settings of the last run
-- do: {again} to finish; the counts of a step that is not done are not checked
-- A run of before had no step final.
SELECT 'run.json' AS folder, '' AS file,
    'not done for today''s settings: ' || string_agg(step, ', ' ORDER BY place) AS found
FROM steps, run_json
WHERE NOT is_done AND (has_labels OR NOT needs_labels) AND error = '' AND config_error = ''
    AND (step != 'final' OR step IN (SELECT step FROM marks))
HAVING count(*) > 0;

-- note run.lock: no run is under way
-- do: where it is alive, ask again when it has ended: what it is writing may look incomplete. Where
-- do: it is dead, {again} with --take-over
SELECT file AS folder, file, holder AS found FROM locks;

-- error file.damaged: every file is as it was written, and as the mark of its folder lists it
-- do: {again}: it removes what is damaged or of no step, and makes what is missing
SELECT coalesce(files.folder, regexp_replace(file, '/[^/]*$', '')) AS folder, file,
    file || ': ' || error AS example, '# files are gone, damaged or of no step' AS found
FROM errors LEFT JOIN files USING (file) WHERE kind = 'damaged';

-- error file.schema: columns, types and order are the declared ones
-- remake: files
SELECT folder, file, file || ': ' || error AS example, '# files are not ' || table_name AS found
FROM files JOIN errors USING (file) JOIN folders USING (folder) WHERE kind = 'misfit';

-- error file.footer: footers say what made a file, the same in all files of a folder
SELECT folder, file, file || ': lacks ' || entry AS example,
    '# entries of footers are missing' AS found
FROM expected_footers JOIN files USING (folder) ANTI JOIN footers USING (file, entry)
    ANTI JOIN errors USING (file);
SELECT folder, file, '# entries of footers are of another maker' AS found,
    format('{}: {}: expected ''{}'', got ''{}''', file, entry, expected.value, footers.value)
        AS example
FROM footers JOIN expected_footers AS expected USING (folder, entry)
WHERE footers.value != expected.value;

-- warning file.name: the name of a file follows from the keys inside
-- do: rows were copied, dropped or added after they were written, or another tool wrote the file;
-- do: readers do not mind, but a task that is tried again would write its rows a second time
SELECT folder, file, file || ': expected ' || keys_name AS example,
    '# names do not follow from the keys inside' AS found
FROM files WHERE keys_name NOT IN ('', parse_filename(file));

-- note file.revisions: one code revision and one configuration made all files
-- do: nothing, where the run went on after a change on purpose; else delete the older files
SELECT 'footers' AS folder, value AS file, value || ': ' || count(*) || ' files' AS example,
    if(entry = 'code', '# code revisions', '# configurations') || ' made files' AS found
FROM footers WHERE entry IN ('code', 'config')
GROUP BY entry, value QUALIFY count(*) OVER (PARTITION BY entry) > 1;

-- note file.leftover: no hidden, temporary or empty files
-- do: a killed run leaves them and readers pass over them: delete them when no run is under way
-- remake: delete
SELECT '' AS folder, file, '# hidden, temporary or empty files, '
    || format('{:,}', (sum(num_bytes) OVER ())::BIGINT) || ' bytes' AS found
FROM listing
WHERE parse_filename(file)[1] = '.' OR starts_with(file, 'train/')
    OR (parse_filename(file)[1] = '_' AND NOT starts_with(parse_filename(file), '_done'))
    OR (num_bytes = 0 AND NOT ends_with(file, '.parquet'));

-- note folder.older: no folders of older settings or inputs, but those of records in runs/
-- do: kept, so that going back to a setting is free; delete them to save room
-- Codebooks are told by what today's encodings say, so only where these are done.
SELECT '' AS folder, old.folder AS file, '# folders of other settings or inputs, '
    || format('{:,}', (sum(num_bytes) OVER ())::BIGINT) || ' bytes' AS found
FROM (SELECT folder, sum(num_bytes) AS num_bytes FROM listing GROUP BY ALL) AS old
WHERE contains(folder, '/')
    AND folder NOT IN (SELECT path FROM folders WHERE table_name != 'curves')
    AND NOT EXISTS (FROM kept
        WHERE old.folder = kept.folder OR starts_with(old.folder, kept.folder || '/'))
    AND NOT EXISTS (FROM folders WHERE starts_with(old.folder, path || '/'))
    AND split_part(folder, '/', 1) IN (SELECT split_part(path, '/', 1) FROM folders)
    AND split_part(folder, '/', 1) != 'samples'
    AND (NOT starts_with(folder, 'codebooks/')
        OR ((SELECT is_done FROM steps WHERE step = 'encode')
            AND (SELECT count(*) FROM folders WHERE table_name = 'encodings')
                = (SELECT count(DISTINCT folder) FROM files WHERE starts_with(folder, 'encodings/'))
            AND parse_filename(folder) NOT IN (FROM used_codebooks)));

-- error tensors.not_finite: codebooks, classifiers and weights hold no NaN or infinity
-- remake: files
SELECT folder, file, name || ' in ' || file AS example, '# tensors hold NaN or infinity' AS found
FROM tensors JOIN listing USING (file) WHERE NOT is_finite;

-- error codebook.missing: codebooks of today's encodings are there
-- do: {again}: it fits them anew
SELECT 'codebooks' AS folder, digest AS file, '# codebooks that encodings name are gone' AS found
FROM used_codebooks, steps WHERE step = 'encode' AND is_recorded AND NOT EXISTS (FROM listing
    WHERE regexp_matches(file, '^codebooks/[^/]+/' || digest || '/'));

-- note folder.unfinished: codebooks and samples are finished
-- do: {again}: it makes them anew
SELECT DISTINCT '' AS folder, folder AS file, '# codebooks or samples have no mark' AS found
FROM listing WHERE split_part(folder, '/', 1) IN ('codebooks', 'samples')
    AND folder || '/_done.json' NOT IN (SELECT regexp_replace(file, '^marks/', '') FROM listing);

-- error vectors.width: vectors are as the configuration and their classifiers want them
SELECT folder, file, format('{} is {} wide, expected {}', name, columns.width,
    if(name = 'cells', cells, streams.width)) AS found
FROM columns JOIN folders USING (folder)
    JOIN streams ON streams.stream = if(name = 'cells', folders.stream, name)
WHERE table_name IN ('descriptors', 'attention')
    AND columns.width != if(name = 'cells', cells, streams.width);
SELECT folder, file, '# files have wider vectors than others of the folder' AS found
FROM columns QUALIFY width != min(width) OVER (PARTITION BY folder, name);
SELECT files.folder, file, stream || ' in ' || file AS example,
    '# streams of the configuration are missing' AS found
FROM files CROSS JOIN streams ANTI JOIN errors USING (file)
WHERE folder = 'descriptors' AND (file, stream) NOT IN (SELECT (file, name) FROM columns);
SELECT folder, file, '# files have vectors of another type than encode.dtype' AS found
FROM columns JOIN folders USING (folder) WHERE type != vector_type;
-- Classifiers that compress vectors first want another width.
SELECT folders.folder, tensors.file, '# classifiers want vectors of another width' AS found
FROM folders JOIN folders AS solutions
        ON (solutions.table_name, solutions.encoder, solutions.stream)
        = ('solutions', folders.encoder, folders.stream)
    JOIN tensors ON starts_with(tensors.file, solutions.path || '/')
WHERE folders.table_name = 'encodings' AND tensors.name = 'weights'
    AND (folders.fold < 0 OR contains(file, format('/fold-{:05d}.', folders.fold)))
    AND tensors.width != (SELECT min(width) FROM columns WHERE columns.folder = folders.folder)
    AND NOT EXISTS (FROM listing WHERE starts_with(file, solutions.path || '/compression-'));

-- error storage.answer: the storage gives every file that it lists
-- do: delete nothing, nobody knows whether these files are damaged; ask again when the storage
-- do: answers, or with the rights and credentials that it wants
SELECT DISTINCT '' AS folder, file, error AS example, '# files were not given' AS found
FROM errors WHERE kind = 'unanswered';
