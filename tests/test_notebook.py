"""launch/demo.ipynb is stored with its figures, small ones, and runs from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = 10


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*Proactor.*:RuntimeWarning")
def test_the_notebook_runs_and_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "launch/demo.ipynb", as_version=4)
    headings = [cell.source.splitlines()[0] for cell in notebook.cells if cell.source.startswith("## ")]
    assert [line.split(".")[0] for line in headings] == [f"## {n}" for n in range(1, SECTIONS + 1)]
    stored = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output["data"]["image/png"] for output in stored if "image/png" in output.get("data", {})]
    assert len(pictures) >= 13, "run: python launch/screenshots.py notebook"
    assert max(map(len, pictures)) < 60_000
    assert not any(output["output_type"] == "error" for output in stored)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 13
    texts = [output.text for output in outputs if "text" in output]
    assert any("level 0: effective rank" in text for text in texts)
