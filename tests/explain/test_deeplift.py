from contextlib import nullcontext

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from utils.explain.deeplift import RescaleRule, from_reference
from utils.Siamese import SiameseNetwork


def multipliers(network, x, reference, direction=None):
    x = x.clone().requires_grad_()
    z = from_reference(network, x, reference)
    (gradient,) = torch.autograd.grad(z, x, torch.ones_like(z) if direction is None else direction)
    return z.detach(), gradient


def test_a_network_worked_out_by_hand():
    """z = relu(2a - b) + 3 relu(b - 1), from (a, b) = (0, 0) to (1, 4): the units go from 0 and -1 to -2 and 3, and let
    0 and 3 through. Slopes 0 / -2 = 0 and 3 / 4, so that b's multiplier is 3 * 3/4, though its derivative is 3."""

    def network(x):
        hidden = x @ torch.tensor([[2.0, 0.0], [-1.0, 1.0]]) - torch.tensor([0.0, 1.0])
        return F.relu(hidden) @ torch.tensor([1.0, 3.0])

    z, found = multipliers(network, torch.tensor([[1.0, 4.0]]), torch.zeros(1, 2))
    assert z.item() == 9 and found.tolist() == [[0, 2.25]]


@pytest.mark.parametrize(
    ("function", "x", "reference", "slope"),
    [
        (F.relu, 3.0, -1.0, 3 / 4),
        (nn.ReLU(inplace=True), 3.0, -1.0, 3 / 4),
        (nn.ReLU6(inplace=True), 8.0, -2.0, 6 / 10),
        (nn.Hardswish(), 3.0, -3.0, 1 / 2),
        (nn.Hardsigmoid(), 3.0, 0.0, 1 / 6),
        (nn.SiLU(inplace=True), 2.0, 0.0, 0.880797),  # the logistic function at 2
        (nn.GELU(), 2.0, 0.0, 0.977250),  # the normal distribution at 2
        (nn.Sigmoid(), 2.0, 0.0, 0.190399),
        (lambda x: x.clamp(min=1.0), 3.0, 0.0, 2 / 3),
        (lambda x: x.pow(3), 2.0, 1.0, 7.0),
        (F.relu, 5.0, 5.0, 0.0),  # nothing changed, nothing is passed on
        (lambda x: x.pow(2), 1e20, 0.0, 0.0),  # more than a float holds: nothing that could be passed on
        (lambda x: x.pow(2), -1e20, 0.0, 0.0),
    ],
)
def test_the_slope_of_every_nonlinearity(function, x, reference, slope):
    z, found = multipliers(function, torch.tensor([[x, reference]]), torch.full((1, 2), reference))
    assert found[0].tolist() == pytest.approx([slope, 0], rel=1e-5)
    assert torch.allclose(z, function(torch.tensor([[x, reference]])))


WITH_PRODUCTS = ["regnet_y_400mf", "mobilenet_v3_small", "efficientnet_b0"]  # squeeze-and-excitation


BACKBONES = [
    "Conv4",
    "MobileNet",
    "resnet18",
    "densenet121",
    "shufflenet_v2_x0_5",
    "regnet_x_400mf",
    "mnasnet0_5",
    "EfficientNetLite0",
    "resnet26t",  # of timm, as the next ones
    "mobilenetv3_small_050",
    "densenetblur121d",
    *WITH_PRODUCTS,
]


@pytest.mark.parametrize(
    ("backbone", "pooling", "normalize"),
    [(name, "gem", False) for name in BACKBONES] + [("MobileNet", "avg", False), ("MobileNet", "gem", True)],
)
def test_what_positions_give_adds_up_to_the_difference(backbone, pooling, normalize):
    torch.manual_seed(0)
    model = SiameseNetwork(backbone, pooling=pooling, image_size=(64, 64), normalize_embeddings=normalize)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    images, direction = torch.randn(8, 3, 64, 64), torch.randn(2, 16)
    behind = model.backbone[model.fine_block + 1 :]
    with torch.no_grad():
        model.embed(images)  # batch statistics as if trained
        maps = model.eval().backbone[: model.fine_block + 1](images[:2])
        reference = maps.mean((0, 2, 3), keepdim=True).expand(1, *maps.shape[1:])
        moved = model.embed(images[:2]) - model.embed_features(behind(reference))
    _, gradient = multipliers(lambda features: model.embed_features(behind(features)), maps, reference, direction)
    given = gradient * (maps - reference)
    assert torch.allclose(
        given.sum((1, 2, 3)), (moved * direction).sum(1), rtol=1e-3, atol=1e-5 * float(given.abs().sum())
    )


CNNS = [
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "convnext_tiny",
    "densenet121",
    "squeezenet1_1",
]


def test_the_activations_of_torchvisions_networks_are_known():
    with torch.device("meta"):  # no memory, no random weights
        modules = [module for name in CNNS for module in torchvision.models.get_model(name, weights=None).modules()]
    activations = {type(module) for module in modules if type(module).__module__ == "torch.nn.modules.activation"}
    assert {nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.Sigmoid} <= activations
    for kind in activations:
        _, found = multipliers(kind(), torch.tensor([[7.0]]), torch.tensor([[-4.0]]))
        assert found.item() == pytest.approx(float(kind()(torch.tensor(7.0)) - kind()(torch.tensor(-4.0))) / 11), kind


def test_other_functions_and_what_follows_keep_their_derivatives():
    x = torch.tensor([[2.0]])
    _, inside = multipliers(lambda inputs: torch.exp(inputs) * 3, x, torch.zeros(1, 1))
    assert inside.item() == pytest.approx(3 * 7.389056)
    after = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.relu(after - 1).pow(2), after)
    assert gradient.item() == 2


def test_a_product_of_two_maps_shares_its_difference():
    """(2 * 3) - (1 * 5), from (a, b) = (1, 5) to (2, 3): slopes (3 + 5) / 2 = 4 and (2 + 1) / 2 = 1.5; 4 - 3 = 1."""
    x, reference = torch.tensor([[2.0], [3.0]]).view(1, 2, 1, 1), torch.tensor([[1.0], [5.0]]).view(1, 2, 1, 1)
    z, found = multipliers(lambda maps: (maps[:, :1] * maps[:, 1:]).flatten(1), x, reference)
    assert z.item() == 6 and found.flatten().tolist() == [4.0, 1.5]


def test_batch_normalisation_of_vectors_is_left_alone():
    layer, x = nn.BatchNorm1d(3).eval(), torch.randn(4, 3)
    with RescaleRule():
        y = layer(x)
    assert torch.equal(y, layer(x))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation_gives_and_passes_back_what_it_always_does(training, affine):
    layer = nn.BatchNorm2d(3, affine=affine, momentum=None).train()
    generator = torch.Generator().manual_seed(0)
    layer(torch.randn(4, 3, 5, 5, generator=generator) * 2 + 1)
    if affine:
        layer.weight.data, layer.bias.data = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 2.0])
    layer.train(training)
    x, direction = torch.randn(2, 4, 3, 5, 5, generator=generator)
    results = []
    for rule in (RescaleRule(), nullcontext()):
        leaf = x.clone().requires_grad_()
        with rule:
            y = layer(leaf)
        results.append((y, *torch.autograd.grad(y, leaf, direction)))
    assert ("BatchNorm" in results[0][0].grad_fn.name()) == (training or not affine)  # otherwise by what is faster
    assert all(torch.allclose(ours, usual, atol=1e-5) for ours, usual in zip(*results))


def test_embeddings_are_unchanged_and_derivatives_may_be_taken_for_many_directions_at_once():
    torch.manual_seed(0)
    model = SiameseNetwork("Conv4", embedding_dim=3, image_size=(16, 16)).eval()
    images = torch.randn(2, 3, 16, 16)
    leaf = images.clone().requires_grad_()
    z = from_reference(model.embed, leaf, torch.zeros(1, 3, 16, 16))
    assert torch.allclose(z, model.embed(images), atol=1e-6)
    (together,) = torch.autograd.grad(
        z, leaf, torch.eye(3)[:, None].expand(3, 2, 3), is_grads_batched=True, retain_graph=True
    )
    for direction, found in zip(torch.eye(3), together):
        (one,) = torch.autograd.grad(z, leaf, direction.expand(2, 3), retain_graph=True)
        assert torch.allclose(found, one, rtol=1e-3, atol=1e-7)
