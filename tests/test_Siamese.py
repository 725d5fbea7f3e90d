import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from samples import noise
from torch import nn

from utils.images.frame import Frame, to_uint8
from utils.images.reading import read_image
from utils.Siamese import (
    AveragePooling,
    ContrastiveLoss,
    GeM,
    SiameseNetwork,
    all_pairs,
    embedding_distance,
    eval_mode,
    similarity_matrix,
)
from utils.system.errors import ModelError


@pytest.mark.parametrize(
    ("distance", "label", "loss"),
    [(0.0, 0, 0.0), (1.0, 0, 0.5), (3.0, 0, 4.5), (0.0, 1, 2.0), (0.5, 1, 1.125), (2.0, 1, 0.0), (3.0, 1, 0.0)],
)
@pytest.mark.parametrize("dtype", [torch.long, torch.float32, torch.bool])
def test_contrastive_loss_of_one_pair(distance, label, loss, dtype):
    assert ContrastiveLoss(margin=2.0)(torch.tensor([distance]), torch.tensor([label], dtype=dtype)).item() == loss


def test_contrastive_loss_averages_and_depends_on_the_margin():
    loss = ContrastiveLoss(margin=3.0)(torch.tensor([1.0, 0.5]), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((0.5 + 3.125) / 2)


@pytest.mark.parametrize("label", [[0, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
def test_balanced_loss_gives_both_labels_the_same_total_weight(label):
    distances = [0.3, 1.2, 0.4, 2.6, 1.9]
    means = []
    for one in set(label):
        own = [0.5 * d**2 if one == 0 else 0.5 * max(0, 2 - d) ** 2 for d, y in zip(distances, label) if y == one]
        means.append(sum(own) / len(own))
    loss = ContrastiveLoss(2.0)(torch.tensor(distances), torch.tensor(label), balanced=True)
    assert loss.item() == pytest.approx(sum(means) / len(means))


@pytest.mark.parametrize("label", [0, 1])
def test_coinciding_embeddings_have_a_finite_zero_gradient(label):
    z1, z2 = torch.ones(1, 3, requires_grad=True), torch.ones(1, 3)
    ContrastiveLoss()(embedding_distance(z1, z2), torch.tensor([label])).backward()
    assert torch.equal(z1.grad, torch.zeros(1, 3))


@pytest.mark.parametrize("pooling, p", [(AveragePooling, 1), (GeM, 3)])
def test_pooling_equals_a_naive_loop(pooling, p):
    maps = torch.rand(2, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    expected = [[np.mean([float(a) ** p for a in channel.flatten()]) ** (1 / p) for channel in image] for image in maps]
    assert np.allclose(pooling()(maps), expected, rtol=1e-5)


def test_gem_of_dead_and_negative_activations_has_a_finite_gradient():
    activations = torch.tensor([[[[0.0, -3.0]], [[2.0, -1.0]]]], requires_grad=True)
    pooled = GeM()(activations)
    pooled.sum().backward()
    assert pooled[0].tolist() == pytest.approx([1e-6, 4 ** (1 / 3)])
    # A^2 / (n p^2).
    assert torch.allclose(activations.grad, torch.tensor([[[[0.0, 0.0]], [[4 / 2 / 4 ** (2 / 3), 0.0]]]]))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SiameseNetwork("Conv4", embedding_dim=5, image_size=(16, 24)).eval()


def test_similarity_matrix_equals_a_loop(model):
    embeddings = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    embeddings[1] = embeddings[0] + 1e-4
    similarity = similarity_matrix(model, embeddings)
    z = embeddings.double().numpy()
    expected = [[1 - min(np.sqrt(((a - b) ** 2).sum()) / 2, 1) for b in z] for a in z]
    assert np.allclose(similarity, expected, atol=1e-6)
    assert (np.diag(similarity) == 1).all() and np.array_equal(similarity, similarity.T)
    assert similarity.min() == 0  # at the clip, not below


def test_dissimilarity_is_the_clipped_share_of_the_margin(model):
    batches = torch.rand(4, 3, 16, 24), torch.rand(4, 3, 16, 24) * 30
    with torch.no_grad():
        z1, z2 = (model.embed(batch).numpy() for batch in batches)
        raw = np.linalg.norm(z1 - z2, axis=1)
        model.margin = float(np.median(raw))
        expected = [min(distance / model.margin, 1) for distance in raw]
        assert min(expected) < 0.99 and max(expected) == 1
        assert np.allclose(model(*batches), expected, atol=1e-5)


def test_both_images_take_one_backbone_call(model):
    calls = []
    model.backbone.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    model(torch.rand(3, 3, 16, 24), torch.rand(3, 3, 16, 24))
    assert calls == [6]


def test_channels_lie_last_in_the_network_and_in_its_batches(model, tmp_path):
    """As it is faster: `python -m benchmarks.train`."""
    model.save(tmp_path / "model.pth")
    for network in (model, SiameseNetwork.load(tmp_path / "model.pth")):
        weights = [parameter for parameter in network.parameters() if parameter.ndim == 4]
        batch = network.normalize(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
        assert weights and all(x.is_contiguous(memory_format=torch.channels_last) for x in [*weights, batch])


def test_construction_leaves_statistics_and_modes_as_new():
    fresh = SiameseNetwork("test_resnet", image_size=(32, 32))
    norms = [module for module in fresh.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(module.training for module in fresh.modules())
    for norm in norms:
        assert norm.num_batches_tracked == 0 and not norm.running_mean.any() and (norm.running_var == 1).all()


def test_eval_mode_restores_mixed_modes_after_an_exception(model):
    model.train()
    model.backbone[1].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("mode", ["L", "RGBA", "RGB"])
def test_preprocess_resizes_to_height_by_width_and_normalises(mode):
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    network = SiameseNetwork("Conv4", image_size=(20, 28), mean=mean.tolist(), std=std.tolist())
    pixels = np.random.default_rng(0).integers(0, 256, (50, 30, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels[..., : len(mode)])
    channels = [pixels[..., 0 if mode == "L" else c] for c in range(3)]
    resized = [np.asarray(Image.fromarray(channel).resize((28, 20), Image.BILINEAR)) / 255 for channel in channels]
    expected = (np.stack(resized) - mean[:, None, None]) / std[:, None, None]
    assert np.allclose(network.preprocess(image), expected, atol=1e-5)
    pixel = network.normalize(torch.full((2, 3, 4, 4), 51, dtype=torch.uint8))[1, :, 0, 0]
    assert np.allclose(pixel, [0.2, 0.0, -1 / 7], atol=1e-6)


def test_preprocess_treats_transparency_and_orientation_as_training_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 24, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    network = SiameseNetwork("Conv4", image_size=(20, 28))
    trained_on = network.normalize(to_uint8(read_image(tmp_path / "turned.png"), Frame((20, 28))))
    assert torch.equal(network.preprocess(Image.open(tmp_path / "turned.png")), trained_on)
    assert not torch.equal(network.preprocess(Image.fromarray(pixels[..., :3])), trained_on)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(backbone_model="Conv4", pretrained=True), "pretrained: there are no ImageNet weights for Conv4"),
        (dict(backbone_model="Conv4", image_size=(4, 64)), r"image.size: \[4, 64\] does not suit .*;"),
        (dict(backbone_model="Conv4", image_size=(16, 16), fit="crop"), "fit one of .*'crop'"),
        (dict(backbone_model="Conv4", image_size=(16, 16), pooling="max"), "pooling must be one of .*'max'"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message):
    with pytest.raises((ModelError, ValueError), match=message) as caught:
        SiameseNetwork(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Conv4", "EfficientNetLite0", "test_vit"])
def test_checkpoint_round_trip(name, tmp_path, monkeypatch):
    network = SiameseNetwork(
        name,
        pooling="auto" if name == "test_vit" else "avg",
        embedding_dim=4,
        image_size=(32, 48),
        margin=3.0,
        threshold=0.4,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        fit="pad",
        normalize_embeddings=True,
    )
    network(torch.randn(2, 3, 32, 48), torch.randn(2, 3, 32, 48))  # moves the batch statistics
    network.save(tmp_path / "model.pth", classes=["a", "b"], config={"seed": 1})
    monkeypatch.chdir(tmp_path)  # no config.yml here
    monkeypatch.setattr("utils.networks.backbones.files", None)  # no package of weights

    loaded = SiameseNetwork.load("model.pth")
    image = noise(20, 40)
    batch = network.eval().preprocess(image)[None]
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(loaded.preprocess(image)[None], batch) and batch.shape == (1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(loaded.embed(batch), network.embed(batch))
    assert (loaded.margin, loaded.threshold, loaded.image_size) == (3.0, 0.4, (32, 48))
    assert loaded.info == {"classes": ["a", "b"], "config": {"seed": 1}} and loaded.frame == network.frame
    loaded.save("again.pth", **loaded.info)
    assert SiameseNetwork.load("again.pth").architecture == network.architecture


def test_a_checkpoint_with_what_earlier_versions_kept_beside_loads(tmp_path):
    network = SiameseNetwork("Conv4", image_size=(16, 24), fit="pad", mean=(0.1, 0.2, 0.3))
    network.save(tmp_path / "model.pth")
    checkpoint = torch.load(tmp_path / "model.pth", weights_only=True)
    former = {"mean_embedding": torch.ones(4), "blurred_features": torch.ones(64), "removable": torch.tensor(0.5)}
    checkpoint["state_dict"] |= former
    del checkpoint["architecture"]["fit"], checkpoint["architecture"]["normalize_embeddings"]
    torch.save(checkpoint, tmp_path / "model.pth")
    loaded, expected = SiameseNetwork.load(tmp_path / "model.pth"), network.state_dict()
    assert loaded.state_dict().keys() == expected.keys() and all(
        map(torch.equal, loaded.state_dict().values(), expected.values())
    )
    # From before there was a choice, images are stretched.
    assert loaded.frame == ((16, 24), "stretch", (0.1, 0.2, 0.3), None) and not loaded.normalize_embeddings


def test_normalised_embeddings_lie_a_margin_apart_at_a_right_angle():
    model = SiameseNetwork("Conv4", image_size=(16, 16), margin=3.0, normalize_embeddings=True, embedding_dim=None)
    z = model.embed_pooled(torch.eye(4)[:2] * 7)
    assert embedding_distance(z[0], z[1]).item() == pytest.approx(3) and z[0].tolist() == pytest.approx(
        [3 / 2**0.5, 0, 0, 0]
    )
    nothing = torch.zeros(1, 4, requires_grad=True)
    model.embed_pooled(nothing).sum().backward()
    assert nothing.grad.isfinite().all()


def test_checkpoint_is_loaded_onto_the_device_asked_for(model, tmp_path):
    model.save(tmp_path / "model.pth")
    loaded = SiameseNetwork.load(tmp_path / "model.pth", device="meta")
    assert {tensor.device.type for tensor in [*loaded.state_dict().values(), loaded.mean, loaded.std]} == {"meta"}


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("dump", [torch.save, lambda data, path: path.write_bytes(pickle.dumps(data, 2))])
def test_a_malicious_checkpoint_cannot_run_code(dump, tmp_path):
    dump({"architecture": {}, "state_dict": Malicious(tmp_path / "executed"), "info": {}}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="evil.pth: not a checkpoint") as caught:
        SiameseNetwork.load(tmp_path / "evil.pth")
    assert "(no file of plain tensors); train again" in str(caught.value) and not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": {"pooling": "median"}}, "'median'"),
        ({"architecture": {"shape": 3}}, "shape"),  # of a later version, say
        ({"architecture": {"backbone_model": "resnet18"}}, "state_dict"),
        ({"architecture": {"image_size": (10**9, 10**9)}}, "model.pth"),  # more than any memory
        ({"state_dict": {"head.0.weight": torch.zeros(3)}}, "state_dict"),
        ({"state_dict": None}, "items"),
        ({"state_dict": {"head.0.weight": torch.full((256, 64), torch.nan)}}, "(NaN or infinity in its weights)"),
        ({"info": [1]}, "model.pth"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_version_or_network_is_refused_in_a_line(model, tmp_path, change, words):
    model.save(tmp_path / "model.pth")
    checkpoint = torch.load(tmp_path / "model.pth", weights_only=True)
    ((key, value),) = change.items()
    checkpoint[key] = checkpoint[key] | value if isinstance(value, dict) else value
    torch.save(checkpoint, tmp_path / "model.pth")
    with pytest.raises(ModelError, match="not a checkpoint of this project .*; train again") as caught:
        SiameseNetwork.load(tmp_path / "model.pth")
    assert "\n" not in str(caught.value) and words in str(caught.value)


def test_a_missing_checkpoint_names_the_notebook_that_makes_it(tmp_path):
    with pytest.raises(ModelError, match="run 01_Train_Siamese_model.ipynb first"):
        SiameseNetwork.load(tmp_path / "model.pth")


@pytest.mark.parametrize("normalised", [True, False])
def test_features_of_the_backbone_are_appended_in_eval_mode_alone(tmp_path, normalised):
    options = {"embedding_dim": 4, "image_size": (16, 16), "margin": 3.0, "normalize_embeddings": normalised}
    torch.manual_seed(0)
    SiameseNetwork("Conv4", feature_weight=0.5, **options).save(tmp_path / "model.pth")
    model, batch = SiameseNetwork.load(tmp_path / "model.pth"), torch.randn(3, 3, 16, 16)
    plain = SiameseNetwork("Conv4", **options).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        z, f, mixed = plain.embed(batch).numpy(), plain.pooling(plain.backbone(batch)).numpy(), model.embed(batch)
        assert mixed.shape == (3, 4 + 64) and model.embedding_dim == 68
        for i, j in ((0, 1), (1, 2)):
            of_z, cosine = ((z[i] - z[j]) ** 2).sum(), f[i] @ f[j] / np.linalg.norm(f[i]) / np.linalg.norm(f[j])
            of_f = (3**2 / 2) * (2 - 2 * cosine)  # two vectors of the length 3 / sqrt(2)
            assert (mixed[i] - mixed[j]).square().sum().item() == pytest.approx((of_z + of_f / 4) / 1.25, rel=1e-3)
        assert torch.equal(model.train().embed(batch), plain.train().embed(batch))


def test_all_pairs_equals_a_loop():
    z, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 2, 1])
    distance, label = all_pairs(z, labels)
    looped = [(torch.dist(z[i], z[j]).item(), int(labels[i] != labels[j])) for i in range(5) for j in range(i + 1, 5)]
    assert distance.tolist() == pytest.approx([d for d, _ in looped], abs=1e-5)
    assert label.tolist() == [k for _, k in looped]
