"""Networks of every make: what needs embeddings works with each."""

import pytest
import timm
import torch
from samples import NETWORKS
from torch import nn

from utils.explain.occlusion import region_effects
from utils.explain.removal import blur
from utils.Grad_CAM import explain
from utils.networks.backbones import TimmNetwork
from utils.Siamese import SiameseNetwork
from utils.system.errors import ModelError

TRANSFORMERS = [*NETWORKS][:3]


class OwnEncoder(nn.Module):
    """An encoder of a user: two convolutions and a mean."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 12, 3, 2), nn.Tanh())

    def forward(self, batch):
        return self.layers(batch).mean((2, 3))


class Squeezed(nn.Sequential):
    def forward(self, batch):
        return super().forward(batch).squeeze()


class Changing(OwnEncoder):
    def forward(self, batch):
        return super().forward(batch.mul_(0.5))


class Two(OwnEncoder):
    def forward(self, batch):
        return super().forward(batch), batch


class Whole(OwnEncoder):
    def forward(self, batch):
        return super().forward(batch).long()


def network(name):
    torch.manual_seed(0)
    if name == "own":
        return SiameseNetwork.around(OwnEncoder(), (48, 64))
    return SiameseNetwork(name, image_size=NETWORKS.get(name, (64, 96))).eval()


@pytest.mark.parametrize("name", [*NETWORKS, "own"])
def test_effects_of_regions_equal_a_naive_loop(name, exact):
    model = network(name)
    for key, parameter in model.named_parameters():
        if key.endswith("gamma"):  # of layer scale, which begins near 0: a class token would hardly see the image
            parameter.data.fill_(1.0)
    images = torch.rand(1, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
    effects = region_effects(model, images, verbose=False)
    blurred = blur(images)
    changed = images.repeat(effects.regions.shape[1], 1, 1, 1)
    for one, (top, bottom, left, right) in zip(changed, effects.regions[0].tolist()):
        one[:, top:bottom, left:right] = blurred[0, :, top:bottom, left:right]
    with torch.no_grad():
        whole = model.embed(images)
        expected = whole - model.embed(changed)
    expected[expected.norm(dim=1) <= 1e-5 * whole.norm()] = 0
    assert len(expected) > 99 and expected.norm(dim=1).median() > 1e-4 * whole.norm()
    assert torch.allclose(effects.delta[0], expected, atol=2e-6 * float(whole.norm()))


@pytest.mark.parametrize("name", [*NETWORKS, "tf_efficientnet_lite0", "mobilenetv3_small_050", "regnety_002"])
def test_features_are_those_of_timm(name):
    model = network(name)
    torch.manual_seed(0)
    options = {"img_size": model.image_size} if name in TRANSFORMERS else {}
    reference = timm.create_model(name, **options).eval()
    images = torch.rand(2, 3, *model.image_size)
    known = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    known += tuple(reference.pretrained_cfg[key] for key in ("mean", "std"))
    ours, scale, mean, std = (torch.tensor(values).view(3, 1, 1) for values in known)
    with torch.no_grad():
        expected = reference.forward_features((images * scale + ours - mean) / std)
        if isinstance(model.backbone[-1], TimmNetwork):
            expected = reference.forward_head(expected, pre_logits=True)
        assert expected.std() > 0 and torch.allclose(model.backbone(images), expected, rtol=1e-4, atol=1e-4)


def test_grad_cam_of_a_vision_transformer_equals_timms_own_blocks_and_autograd():
    torch.manual_seed(0)
    model = SiameseNetwork("test_vit", image_size=(32, 48)).eval()
    vit, images = model.backbone[-1].model, torch.rand(2, 3, 32, 48)
    known = model.backbone[:-1](images)  # with the statistics that it expects
    tokens = vit.blocks[:-1](vit.norm_pre(vit._pos_embed(vit.patch_embed(known)))).detach().requires_grad_()
    z = model.head(vit.forward_head(vit.norm(vit.blocks[-1](tokens)), pre_logits=True))
    (gradient,) = torch.autograd.grad(-(z[0] - z[1]).square().sum(), tokens)
    weights = gradient[:, 1:].mean(1)  # without the class token
    similar = torch.einsum("nc,ntc->nt", weights, tokens.detach()[:, 1:]).view(2, 2, 3)
    e = explain(model, images[:1], images[1:], "distance")
    assert similar.std() > 0
    assert torch.allclose(e.raw[0] * (1 if e.is_similar else -1), similar, rtol=1e-3, atol=1e-4 * float(similar.std()))


@pytest.mark.parametrize(("name", "size"), [("volo_d1_224", 224), ("twins_svt_small", 64), ("pit_ti_224", 224)])
def test_grad_cam_of_a_transformer_without_a_map_of_places_is_a_line(name, size):
    """Tokens that are no grid; no stages by the names that timm gives; a stage that is given a tuple."""
    model = SiameseNetwork(name, image_size=(size, size))
    images = torch.rand(2, 3, size, size)
    with pytest.raises(
        ModelError, match="^method: 'distance' finds no map of places in this network; use 'occlusion'$"
    ):
        explain(model, images[:1], images[1:], "distance")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_last_stage_begins_where_the_others_end(name):
    model = network(name)
    images, backbone = torch.rand(2, 3, *model.image_size), model.backbone
    with torch.no_grad():
        activations, features = backbone.activations(images), backbone(images)
        assert torch.allclose(backbone.finish(activations), features, atol=1e-6)
        assert torch.allclose(backbone.finish(activations.flip(0)), features.flip(0), atol=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules())
    maps = backbone.as_map(activations)
    assert maps.ndim == 4 and maps.shape[2] * model.image_size[1] == maps.shape[3] * model.image_size[0]


def test_own_pooling_is_the_only_one_of_a_transformer():
    with pytest.raises(ModelError, match="pooling: gem: test_vit pools its features itself; use .* auto"):
        SiameseNetwork("test_vit", pooling="gem", image_size=(64, 64))


def test_a_network_around_an_encoder_normalises_and_is_no_file(tmp_path):
    model = network("own")
    images = torch.rand(3, 3, 48, 64)
    with torch.no_grad():
        z = model.backbone(images)
        assert torch.allclose(model.embed(images), 2**0.5 * z / z.norm(dim=1, keepdim=True), atol=1e-6)
    with pytest.raises(ModelError, match="cannot be saved"):
        model.save(tmp_path / "model.pth")
    with pytest.raises(ModelError, match="use 'occlusion'"):
        explain(model, images[:1], images[1:2], "distance")


class Hidden(nn.Module):
    """An encoder that computes with what is no tensor of the module, as a session of ONNX Runtime does."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, batch):
        return (self.scale * batch).tanh().flatten(1)[:, ::64]


def test_encoders_that_hold_no_tensors_have_digests_of_their_own():
    one, same, other = (SiameseNetwork.around(Hidden(scale), (32, 40)).digest() for scale in (1.0, 1.0, 0.5))
    assert one == same != other


def test_an_encoder_that_makes_nan_of_one_image_is_a_line():
    model = SiameseNetwork.around(Hidden(1.0), (32, 40))
    images = torch.rand(3, 3, 32, 40)
    images[1, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="^encoder: an image's embedding is not finite; [^\n]*$"):
        model.embed(images)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (nn.Conv2d(3, 4, 3), r"\(2, D\) of images \(2, 3, 32, 40\), but it makes torch.float32 \(2, 4, 30, 38\)"),
        (Squeezed(OwnEncoder()), r"\(1, D\) of images \(1, 3, 32, 40\), but it makes torch.float32 \(12,\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), r"but it makes an error \(mat1 and mat2"),
        (nn.Sequential(nn.Flatten(), nn.Threshold(2.0, float("nan"))), "not finite"),
        (Two(), r"should be a module that makes torch.float32 \(2, D\) .* an error \('tuple' object"),
        (Whole(), r"torch.float32 \(2, D\) of images .*, but it makes torch.int64 \(2, 12\)"),
        (OwnEncoder().half(), "torch.float32 .* an error"),
        (lambda images: images, "should be a module that .*'function' object"),
        (Changing(), r"changes the images that it is given; begin with images = images.clone\(\)"),
    ],
)
def test_an_encoder_that_does_not_do_is_a_line(encoder, message):
    with pytest.raises(ModelError, match=message) as caught:
        SiameseNetwork.around(encoder, (32, 40))
    assert "\n" not in str(caught.value)
