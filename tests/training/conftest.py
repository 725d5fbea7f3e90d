import pytest
from samples import colour_config
from trainers import QUICK


@pytest.fixture
def config(colour_folder):
    """Of red and blue images, for a tiny network: keys of `hyperparameters`, then others."""

    def make(hyperparameters=None, **settings):
        options = QUICK | (hyperparameters or {})
        given = {"device": "cpu", "embedding_dim": 4, "checkpoints_path": colour_folder.parents[1] / "checkpoints"}
        return colour_config(colour_folder, colour_folder.parents[1], **given | settings, hyperparameters=options)

    return make
