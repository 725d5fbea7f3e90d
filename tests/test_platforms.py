"""What differs between systems: encodings, start methods of processes, screens."""

import ast
import json
import multiprocessing
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
# Functions that read or write text in the system's encoding unless they are told one; `open` with "b" is binary.
TEXT = {"open", "read_text", "write_text", "read_csv", "to_csv"}
OWN = {"Image", "zipped", "os"}  # their `open` is of binary files


def without_encoding(source):
    """Calls in a piece of Python that read or write text in whatever encoding the system has."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        owner, _, name = ast.unparse(node.func).rpartition(".")
        binary = any(isinstance(part, ast.Constant) and "b" in str(part.value) for part in node.args[-1:])
        told = any(key.arg == "encoding" for key in node.keywords)
        utf8_by_itself = name in ("read_csv", "to_csv")  # pandas: "utf-8 by default"
        if name in TEXT and owner not in OWN and not (told or utf8_by_itself or name == "open" and binary):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def test_every_encoding_is_named():
    sources = {
        path: path.read_text(encoding="utf-8") for path in (*ROOT.glob("utils/**/*.py"), *ROOT.glob("docs/*.py"))
    }
    for path in ROOT.glob("0*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources[path] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert {path.name: found for path, source in sources.items() if (found := list(without_encoding(source)))} == {}
    for call in ("open(p)", "open(p, 'w')", "p.read_text()", "p.write_text(x)", "p.open()"):
        assert list(without_encoding(call)), call
    for call in ("open(p, 'rb')", "open(p, encoding='utf-8')", "Image.open(p)", "p.read_bytes()"):
        assert not list(without_encoding(call)), call


def explain_and_draw(folder):
    """In a process of its own: an explanation and its figure; raises, and so ends with another code than 0, if not."""
    from PIL import Image
    from toy import network_images, trained_network

    from utils.Grad_CAM import explain
    from utils.imshow import save_figure, show_explanation

    model = trained_network()
    one, two = (images[:1] for images in network_images())
    explanation = explain(model, one, two, "contrast")
    torch.save(explanation.raw, folder / "raw.pt")
    pictures = tuple(Image.new("RGB", (40, 24), colour) for colour in ("red", "blue"))
    save_figure(show_explanation(pictures, explanation, ("ö", "\N{CJK UNIFIED IDEOGRAPH-82B1}")), folder / "figure.png")


@pytest.fixture
def bare_machine(monkeypatch):
    """A server without a screen, in another time zone, whose Python takes the locale's word for the encoding, here
    ASCII."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Asia/Kathmandu"}.items():
        monkeypatch.setenv(name, value)


def test_a_spawned_process_without_a_screen_explains_and_draws_the_same(bare_machine, tmp_path):
    """Windows and macOS start processes by `spawn`: everything is imported anew."""
    from toy import network_images, trained_network

    from utils.Grad_CAM import explain

    process = multiprocessing.get_context("spawn").Process(target=explain_and_draw, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == 0 and (tmp_path / "figure.png").stat().st_size > 1000
    one, two = (images[:1] for images in network_images())
    here = explain(trained_network(), one, two, "contrast").raw
    torch.testing.assert_close(torch.load(tmp_path / "raw.pt", weights_only=True), here)
