import pytest
import torch
from torch import nn

from utils.images.augmentation import Augmentation
from utils.settings import ImageOptions
from utils.Siamese import SiameseNetwork
from utils.transfer import VIEWS, early_blocks, embed_late, freeze, frozen_features

IMAGES = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SiameseNetwork("resnet18", image_size=(32, 32))


def test_features_are_those_of_a_plain_pass_in_eval_mode_whatever_the_batches(model):
    found = frozen_features(model, IMAGES, batch_size=4)
    with torch.no_grad():
        expected = model.pooling(model.eval().backbone(model.normalize(IMAGES)))
    assert found.shape == (1, 6, 512) and torch.allclose(found[0], expected, atol=1e-5)


def test_views_are_the_images_and_augmented_ones(model):
    flip = Augmentation(ImageOptions(size=(32, 32), HorizontalFlip=1, RandomErasing=1, CutMix=1), seed=0)
    plain, mirrored = (frozen_features(model, images)[0] for images in (IMAGES, IMAGES.flip(3)))
    found = frozen_features(model, IMAGES, flip, batch_size=4)
    assert len(found) == VIEWS and model.training  # left as found
    for view, expected in zip(found, [plain, *[mirrored] * (VIEWS - 1)]):  # nothing is erased at the start, or covered
        assert torch.nn.functional.cosine_similarity(view, expected).min() > 0.999  # bfloat16, on some machines


def test_shares_of_the_features_are_those_of_all_images(model, monkeypatch):
    monkeypatch.setattr("utils.transfer.bfloat16_pays", lambda device: False)
    options = ImageOptions(size=(32, 32), HorizontalFlip=0.5, RandomResizedCrop=0.3)
    whole = frozen_features(model, IMAGES, Augmentation(options, seed=0), batch_size=4)
    for share in (range(0, 2), range(2, 6), range(3, 3)):
        part = frozen_features(model, IMAGES, Augmentation(options, seed=0), batch_size=4, share=share)
        torch.testing.assert_close(part, whole[:, share.start : share.stop], rtol=1e-4, atol=1e-4)
    assert (whole[1:] - whole[0]).abs().mean() > 0.01


@pytest.mark.parametrize(
    ("name", "size", "blocks"), [("EfficientNetLite0", (224, 224), 8), ("EfficientNetLite0", (320, 480), 8),
                                 ("resnet18", (224, 224), 8), ("Conv4", (64, 64), 0)]
)  # fmt: skip
def test_early_blocks_end_where_a_sixteenth_of_the_resolution_is_left(name, size, blocks):
    """EfficientNetLite0: statistics, convolution, norm and five blocks. resnet18: convolution, norm, ReLU, maximum, and
    two blocks each of strides 4 and 8. Conv4 never gets there."""
    assert early_blocks(SiameseNetwork(name, image_size=size)) == blocks


def test_frozen_blocks_and_all_statistics_stay_while_the_rest_learns(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    freeze(model, 8)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    embed_late(model, model.normalize(IMAGES), 8).square().sum().backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[1] for name in changed if name.startswith("backbone")} == {"8", "9", "10", "11"}
    assert not any("running" in name or "num_batches" in name for name in changed) and any("head" in n for n in changed)
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_late_embeddings_are_the_networks_own(model):
    model.eval()
    batch = model.normalize(IMAGES)
    with torch.no_grad():
        cosine = torch.nn.functional.cosine_similarity(embed_late(model, batch, 8).float(), model.embed(batch))
    assert cosine.min() > 0.99  # the first blocks run in bfloat16 on some machines
