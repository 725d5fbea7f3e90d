"""The committed notebooks, and what they made under `pytest --nbval` (they are collected before this file)."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from utils.config import SANDBOX, load_config
from utils.dataset import read_split
from utils.images.synthetic import CLASSES
from utils.Siamese import SiameseNetwork
from utils.system.settings import SHIPPED, Config

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("0*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_there_are_three_small_enough_to_be_shown_by_github():
    names = ["01_Train_Siamese_model.ipynb", "02_Inference.ipynb", "03_Evaluate.ipynb"]
    assert [path.name for path in NOTEBOOKS] == names
    assert max(path.stat().st_size for path in NOTEBOOKS) < 2_000_000


def test_committed_after_restart_and_run_all_with_outputs(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_prose_first_and_short_cells(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown" and len(notebook.cells) - len(code) >= len(code)
    assert max(len(cell.source.splitlines()) for cell in code) <= 20


def test_in_another_folder_it_says_where_to_run_it(notebook, tmp_path):
    (tmp_path / "utils.py").touch()  # another project's
    imports = next(cell.source for cell in notebook.cells if "import load_config" in cell.source)
    done = subprocess.run([sys.executable, "-c", imports], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and re.fullmatch(
        "No module named .*; run this notebook in the project.*\n", done.stderr
    )


def test_papermill_finds_the_parameters(notebook):
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    names = {}
    exec(parameters.source, names)
    assert names["config_path"] == "config.yml" and names["dataset"] is None
    assert notebook.metadata.kernelspec.name == "python3"


def test_demo_network_scores_as_promised(notebook_results):
    metrics = json.loads((notebook_results / "outputs" / "Synthetic" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["auc"] >= 0.97 and metrics["test"]["accuracy"] >= 0.9


def test_every_figure_is_saved_and_each_pair_has_its_folder(notebook_results):
    outputs = notebook_results / "outputs" / "Synthetic"
    figures = {path.relative_to(outputs).as_posix() for path in outputs.rglob("*.png")}
    assert {"learning_curves.png", "compare/similarity.png", "scores.png", "evidence.png"} <= figures
    pairs = [path for path in outputs.glob("pairs/*") if (path / "explanation.png").exists()]
    assert len(pairs) >= 3  # the photographs, the example, the least similar pair
    assert any(name.startswith("galleries/rightly") for name in figures)
    figures = {
        name for name in figures if not name.startswith("galleries/")
    }  # how many mistakes there are to show depends on the machine
    cells = [cell for path in NOTEBOOKS for cell in nbformat.read(path, 4).cells if "show_gallery" not in cell.source]
    shown = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    assert shown == len(figures)


def test_a_clone_explains_two_images_before_any_training(tmp_path, sandbox, monkeypatch):
    shutil.copy(ROOT / "tests" / "config.yml", tmp_path)
    drawn = sandbox / "Data" / "Synthetic"
    if drawn.is_dir():  # by notebook 01, under --nbval: to draw them again takes its time
        shutil.copytree(drawn, tmp_path / "Data" / "Synthetic")
    monkeypatch.setenv(SANDBOX, str(tmp_path))  # a place where nothing was trained
    notebook = nbformat.read(ROOT / "02_Inference.ipynb", as_version=4)
    last = next(k for k, cell in enumerate(notebook.cells) if "similarity.png" in cell.source)
    more = r"show_chooser\(|grad_cam\(|what_if\(|what_if\.|show_matches\("  # is tested with the trained network
    notebook.cells = [cell for cell in notebook.cells[: last + 1] if not re.search(more, cell.source)]
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "You have not trained yet: this network comes with the project" in printed
    outputs = tmp_path / "outputs" / "Synthetic"
    assert list(outputs.glob("pairs/*/explanation.png")) and (outputs / "compare" / "similarity.png").exists()


def test_the_shipped_network_is_small_and_was_trained_as_config_says():
    folder = SHIPPED / "Synthetic"
    assert (folder / "model.pth").stat().st_size < 1_000_000
    info = SiameseNetwork.load(folder / "model.pth").info
    now = load_config(ROOT / "config.yml", "Synthetic").model_dump(mode="json")
    known = {key: value for key, value in info["config"].items() if key in now}
    assert Config(**known).model_dump(mode="json") == now  # keys that are newer than the network at their defaults
    assert load_config(folder / "config.yml").model_dump(mode="json") == now
    assert set(read_split(folder / "split.csv").label) == set(info["classes"]) == set(CLASSES)
