"""Execute the notebooks: `python -m analysis.notebooks` writes NAME.ipynb beside every NAME.py.

The study is the environment variable DIT_STUDY, by default results/paper. An error in a cell gives exit code 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parent
CELL_SECONDS = 300


def main() -> None:
    """Execute every notebook; print one line each."""
    for source in sorted(FOLDER.glob("[0-9]*.py")):
        notebook = jupytext.read(source)
        here = {"metadata": {"path": str(FOLDER)}}
        client = NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=here)
        try:
            client.execute()
        except CellExecutionError as error:
            sys.exit(f"{source.name}: {error}")
        finally:
            nbformat.write(notebook, source.with_suffix(".ipynb"))
        print(source.with_suffix(".ipynb").relative_to(Path.cwd()) if source.is_relative_to(Path.cwd()) else source)


if __name__ == "__main__":
    main()
