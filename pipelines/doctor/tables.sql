-- The tables of the doctor's database beside those of a run's rows, which `database.py` makes.
-- `folder` is a folder's name in run.json; of others it is the folder itself.

-- Filled by `scan.py`: run.json, the lock, and every file.
CREATE TABLE run_json (error VARCHAR, config_error VARCHAR, has_labels BOOLEAN);
CREATE TABLE locks (file VARCHAR, holder VARCHAR);
-- Folders of the configurations in runs/, and their pages.
CREATE TABLE kept (folder VARCHAR);
CREATE TABLE listing (file VARCHAR, folder VARCHAR, num_bytes BIGINT);
-- What is wrong with a file: kind is damaged (also gone, or of no step), misfit (of the schema) or
-- unanswered (by the storage: nobody knows whether it is damaged).
CREATE TABLE errors (file VARCHAR, kind VARCHAR, error VARCHAR);

-- Steps, the marks and pages that a finished one leaves, and the streams that run.json names.
CREATE TABLE steps
    (step VARCHAR, place INT, is_recorded BOOLEAN, is_done BOOLEAN, needs_labels BOOLEAN);
CREATE TABLE marks (step VARCHAR, file VARCHAR, folder VARCHAR);
-- size: descriptors of a frame.
CREATE TABLE streams (stream VARCHAR, width BIGINT, cells BIGINT, size BIGINT, has_gap BOOLEAN,
    window_frames BIGINT);

-- Today's folders; has_unit_length and vector_type of ENCODINGS are what the configuration says.
CREATE TABLE folders (folder VARCHAR, path VARCHAR, table_name VARCHAR, step VARCHAR,
    encoder VARCHAR, stream VARCHAR, fold BIGINT, has_unit_length BOOLEAN, vector_type VARCHAR);
-- Their visible Parquet files; keys_name follows from the keys inside. Vector columns, footers.
CREATE TABLE files (folder VARCHAR, file VARCHAR, num_rows BIGINT, keys_name VARCHAR);
CREATE TABLE columns (folder VARCHAR, file VARCHAR, name VARCHAR, width BIGINT, type VARCHAR);
CREATE TABLE footers (folder VARCHAR, file VARCHAR, entry VARCHAR, value VARCHAR);
CREATE VIEW whole_folders AS
    SELECT folder FROM files LEFT JOIN errors USING (file) GROUP BY ALL HAVING count(error) = 0;

-- Tensors of safetensors files; width is null of those that are no matrix.
CREATE TABLE tensors (file VARCHAR, name VARCHAR, width BIGINT, is_finite BOOLEAN);
