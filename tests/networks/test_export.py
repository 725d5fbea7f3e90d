import builtins
import json

import numpy as np
import pytest
import torch
from PIL import Image

from utils import __main__ as command_line
from utils.networks.export import export_onnx
from utils.Siamese import SiameseNetwork
from utils.system.errors import ModelError


def test_another_runtime_gives_the_same_embeddings_of_images_fitted_as_the_metadata_say(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    options = {"margin": 3.0, "normalize_embeddings": True, "fit": "pad", "mean": (0.2, 0.4, 0.6)}
    model = SiameseNetwork("test_vit", image_size=(32, 48), levels=(0.0, 4095.0), **options)
    model.info = {"calibrated_threshold": 0.4, "classes": ["a", "b"]}
    export_onnx(model, tmp_path / "model.onnx")
    assert model.training  # as it was found
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    expected = {"margin": 3.0, "threshold": 0.5, "calibrated_threshold": 0.4, "image_size": [32, 48], "fit": "pad"}
    expected |= {"classes": ["a", "b"], "filter": "bilinear", "antialias": True, "fill": [51, 102, 153]}
    assert facts == expected | {"levels": [0, 4095]}
    pixels = np.random.default_rng(0).integers(0, 256, (5, 160, 160, 3), dtype=np.uint8)  # not the example's number
    images, frames = [Image.fromarray(one) for one in pixels], np.empty((5, 32, 48, 3), dtype=np.uint8)
    frames[:] = facts["fill"]
    for frame, image in zip(frames, images):
        frame[:, 8:40] = image.resize((32, 32), Image.Resampling[facts["filter"].upper()])
    (embeddings,) = session.run(None, {"images": frames.transpose(0, 3, 1, 2)})
    with torch.no_grad():
        wanted = model.eval().embed(torch.stack([model.preprocess(image) for image in images]))
    np.testing.assert_allclose(embeddings, wanted, atol=1e-4)
    assert np.ptp(embeddings, axis=0).max() > 1e-3  # which would also hold for a constant


def test_missing_packages_are_one_line_and_nothing_is_written(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **others):
        if name == "onnx":
            raise ImportError("No module named 'onnx'", name="onnx")
        return real(name, *rest, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError, match="^export: onnx is missing; run: pip install onnx onnxscript$"):
        export_onnx(SiameseNetwork("Conv4", image_size=(32, 48)), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_trained_network_goes_to_the_outputs(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    SiameseNetwork("Conv4", image_size=(32, 48)).save(tmp_path / "checkpoints" / "model.pth")
    (tmp_path / "config.yml").write_text(
        f"dataset: Mine\nthreshold: 0.3\ncheckpoints_path: '{(tmp_path / 'checkpoints').as_posix()}'\n"
        f"outputs_path: '{(tmp_path / 'outputs').as_posix()}'\n"
    )
    command_line.main(["export", "--config", str(tmp_path / "config.yml")])
    note = capsys.readouterr().out
    path = tmp_path / "outputs" / "model.onnx"
    assert note.startswith(f"{path}: ") and "(N, 3, 32, 48)" in note
    assert runtime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map["threshold"] == "0.3"
