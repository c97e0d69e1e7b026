"""What the README and the notebooks show does run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def blocks(text):
    """(line, code) of every ```python block; those marked ```python no-run are left out."""
    for found in re.finditer(r"^```python *(?P<mark>[^\n]*)\n(?P<code>.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if found["mark"] != "no-run":
            assert found["mark"] == "", f"a block marked {found['mark']!r}; known: no-run"
            yield text.count("\n", 0, found.start("code")), found["code"]


def run_blocks(path):
    """Every block in order, in one namespace; errors point at the line of the file."""
    text, namespace = path.read_text(encoding="utf-8"), {"__name__": "__main__"}
    ran = 0
    for line, code in blocks(text):
        exec(compile("\n" * line + code, str(path), "exec"), namespace)
        ran += 1
    # a fence that the pattern above does not know must not be passed over in silence
    assert ran == len(re.findall(r"^ *`{3,} *python(?! *no-run)", text, re.MULTILINE | re.IGNORECASE))
    return namespace


@pytest.mark.slow
@pytest.mark.promoting
def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = run_blocks(ROOT / "README.md")
    assert "bt" in namespace


def test_what_fails_or_hides_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\na = 1\n```\n\n```python\nassert a == 2\n```\n")
    with pytest.raises(AssertionError):
        run_blocks(page)
    page.write_text("```python\na = 1\n```\n\n```python no-run\nassert a == 2\n```\n\n```\nnot python\n```\n")
    assert run_blocks(page)["a"] == 1
    for hidden in (
        "  ```python\na\n  ```\n",
        "```Python\na\n```\n",
        "````python\na\n````\n",
        "```python norun\na\n```\n",
    ):
        page.write_text(hidden)
        with pytest.raises(AssertionError):
            run_blocks(page)


def test_there_are_notebooks():
    assert "first_steps.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.source


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run(path, tmp_path, monkeypatch, pytestconfig):
    """In a fresh kernel of this interpreter; 900 s a cell is where it counts as hung, on however busy a machine."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(pytestconfig.cache.mkdir("compiled")))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
