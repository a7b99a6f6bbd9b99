"""The notebook stores no outputs, and runs from top to bottom on a tiny checkpoint."""

import asyncio
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from marigold.model.pipeline import MarigoldDepth

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs/quickstart.ipynb"


def test_it_stores_no_outputs():
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not [cell for cell in code if cell.outputs or cell.execution_count is not None]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(FILE, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = f"CHECKPOINT, STEPS, MEMBERS, RESOLUTION, MESH = {str(checkpoint)!r}, 1, 3, 64, 'mesh.glb'"
    client = NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}})
    # client.execute() leaves its event loop open, which fails whichever test runs when it is garbage-collected.
    asyncio.run(client.async_execute())
    assert (tmp_path / "mesh.glb").read_bytes()[:4] == b"glTF"
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 3
    results = [output.data["text/plain"] for output in outputs if output.output_type == "execute_result"]
    assert MarigoldDepth.from_pretrained(checkpoint).space in results[0]
    assert "abs_rel" in results[-1]
