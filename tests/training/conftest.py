import pytest
from samples import colour_config
from trainers import QUICK


@pytest.fixture
def config(colour_folder):
    """Make a configuration for a tiny network and red and blue images: `hyperparameters`, then other keys."""

    def make(hyperparameters=None, **settings):
        options = QUICK | (hyperparameters or {})
        given = {"device": "cpu", "embedding_dim": 4, "checkpoints_path": colour_folder.parents[1] / "checkpoints"}
        return colour_config(colour_folder, colour_folder.parents[1], **given | settings, hyperparameters=options)

    return make
