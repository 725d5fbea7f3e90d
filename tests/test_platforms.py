"""What differs between systems: encodings, start methods of processes, screens."""

import multiprocessing

import torch
from PIL import Image
from toy import network_images, trained_network

from utils.Grad_CAM import explain
from utils.imshow import save_figure, show_explanation


def explain_and_draw(folder):
    """In a process of its own: an explanation and its figure; raises, and so ends with another code than 0, if not."""
    model = trained_network()
    one, two = (images[:1] for images in network_images())
    explanation = explain(model, one, two, "distance")
    torch.save(explanation.raw, folder / "raw.pt")
    pictures = tuple(Image.new("RGB", (40, 24), colour) for colour in ("red", "blue"))
    save_figure(show_explanation(pictures, explanation, ("ö", "\N{CJK UNIFIED IDEOGRAPH-82B1}")), folder / "figure.png")


def test_a_spawned_process_without_a_screen_explains_and_draws_the_same(monkeypatch, tmp_path):
    """Windows and macOS start processes by `spawn`, which imports all modules; here on a server without a screen, in
    another time zone, whose Python takes the locale's word for the encoding, ASCII."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Asia/Kathmandu"}.items():
        monkeypatch.setenv(name, value)
    process = multiprocessing.get_context("spawn").Process(target=explain_and_draw, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == 0 and (tmp_path / "figure.png").stat().st_size > 1000
    one, two = (images[:1] for images in network_images())
    here = explain(trained_network(), one, two, "distance").raw
    torch.testing.assert_close(torch.load(tmp_path / "raw.pt", weights_only=True), here)
