"""Runs the notebooks beside this file from top to bottom; ends at the first that fails.

    pip install -e '.[demo,torch]' ipykernel nbclient nbformat && python examples/run.py

A notebook that was saved with outputs fails, too.
"""

from __future__ import annotations

import pathlib
import time

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent


def main() -> None:
    """Runs them in the order of their names."""
    paths = sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        started = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        kept = [cell for cell in notebook.cells if cell.get("outputs")]
        if kept:
            raise ValueError(f"{path.name} has outputs in {len(kept)} cells, expected none")
        nbclient.NotebookClient(
            notebook, timeout=None, resources={"metadata": {"path": str(FOLDER)}}
        ).execute()
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                print(output.get("text", ""), end="")
        print(f"{path.name}: {time.monotonic() - started:.0f} s", flush=True)
    print(f"{len(paths)} passed")


if __name__ == "__main__":
    main()
