"""The notebook of the docs, run from top to bottom in an empty folder."""

import json
from pathlib import Path

import numpy as np
import pytest

import video_fisher as vf

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs/notebook/videos_to_confusion_matrix.ipynb"


def test_it_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 6
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_and_its_confusion_matrix_is_that_of_the_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=800, resources=place).execute()

    shown = [
        output["data"]["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output["output_type"] == "execute_result"
    ]
    (matrix,) = [text for text in shown if text.startswith("array(")]
    confusion = np.array(eval(matrix, {"array": list, "__builtins__": {}}))
    run = vf.open(tmp_path / "run")
    assert confusion.shape == (10, 10)
    assert confusion.sum(axis=1).tolist() == [4] * 10
    accuracies = [
        row["value"]
        for row in run.metrics.to_pylist()
        if row["metric"] == "accuracy" and row["split"] == "all" and row["class"] is None
    ]
    assert confusion.trace() / 40 == pytest.approx(max(accuracies))
    assert any(text.startswith("(40, (40, ") for text in shown)
