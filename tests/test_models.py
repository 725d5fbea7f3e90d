import pytest

from utils.models import build_model, load_trained, starting_point
from utils.system.errors import ModelError
from utils.system.settings import SHIPPED, Config


def config_of(folder, dataset="Synthetic", **settings):
    return Config(
        dataset=dataset,
        data_path=folder / dataset,
        checkpoints_path=folder / "checkpoints",
        outputs_path=folder / "outputs",
        backbone_model="Conv4",
        hyperparameters={"verbose": False},
        device="cpu",
        **settings,
    )


def test_before_training_the_shipped_network_stands_in_and_says_so(tmp_path):
    config = config_of(tmp_path, threshold=0.3)
    model, note = load_trained(config)
    assert config.trained_path == SHIPPED / "Synthetic" and model.threshold == 0.3
    assert note.startswith("Synthetic: trained on checks, dots") and "not trained yet" in note
    assert not (tmp_path / "Synthetic").exists()  # no scenes are drawn


@pytest.mark.parametrize(("count", "end"), [(2, "c0, c1"), (1000, "c18, c19 and 980 more")])
def test_a_network_of_ones_own_is_preferred_and_its_first_classes_are_named(tmp_path, count, end):
    config, classes = config_of(tmp_path), [f"c{i}" for i in range(count)]
    info = {"classes": classes, "config": {}, "calibrated_threshold": 0.5}
    build_model(config).save(config.checkpoints_path / "model.pth", **info)
    model, note = load_trained(config)
    assert note.startswith("Synthetic: trained on c0") and note.endswith(end) and model.info["classes"] == classes


def test_a_network_without_what_training_leaves_beside_it_is_an_error_that_names_it(tmp_path):
    config = config_of(tmp_path, dataset="Mine")
    build_model(config).save(config.checkpoints_path / "model.pth", classes=["a", "b"])
    with pytest.raises(ModelError, match=r"model\.pth: lacks .* \(config, calibrated_threshold\); train again"):
        load_trained(config)


def test_without_either_the_notebook_that_trains_is_named(tmp_path):
    with pytest.raises(ModelError, match="run 01_Train_Siamese_model.ipynb first"):
        load_trained(config_of(tmp_path, dataset="Mine"))


@pytest.mark.parametrize(
    ("settings", "words"), [({}, "random"), ({"pretrained": True}, "ImageNet"), ({"weights": __file__}, __file__)]
)
def test_what_a_network_starts_from(tmp_path, settings, words):
    assert words in starting_point(config_of(tmp_path, **settings))
