import pytest
import torch
from samples import colour_config
from trainers import QUICK

from utils.Siamese import SiameseNetwork


@pytest.fixture
def weights(tmp_path):
    """A file of weights for a tiny backbone."""
    torch.manual_seed(0)
    torch.save(SiameseNetwork("Conv4").backbone.state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.fixture
def config(colour_folder):
    """Make a configuration for a tiny network and red and blue images: `hyperparameters`, then other keys."""

    def make(hyperparameters=None, **settings):
        options = QUICK | (hyperparameters or {})
        given = {"device": "cpu", "embedding_dim": 4, "checkpoints_path": colour_folder.parents[1] / "checkpoints"}
        return colour_config(colour_folder, colour_folder.parents[1], **given | settings, hyperparameters=options)

    return make
