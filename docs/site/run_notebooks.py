"""Run the notebooks in docs/notebooks and store what they print and draw: `python docs/site/run_notebooks.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def executed(file: Path) -> Any:
    """Return a notebook after it ran in its own folder, without warnings, times and data of the machine.

    Raises nbclient's CellExecutionError where a cell fails.
    """
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(file.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


if __name__ == "__main__":
    for path in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(path), path)
