import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import nn
from toy import trained_network

from utils import Grad_CAM
from utils.Grad_CAM import METHODS, Explanation, explain, explain_pairs, grad_cam
from utils.Siamese import AveragePooling, SiameseNetwork
from utils.system.errors import ModelError

PAIRS = 2


def network(name="Conv4", pooling="gem", size=(24, 40)):
    """A network as if trained, which takes half of the pairs for similar."""
    model = trained_network(name, size, pooling)
    with torch.no_grad():
        z1, z2 = model.embed(torch.cat(batches(size))).chunk(2)
    model.margin = 2 * float((z1 - z2).norm(dim=1).median() * 1.0001)
    return model


def batches(size=(24, 40)):
    images = torch.randn(2, PAIRS, 3, *size, generator=torch.Generator().manual_seed(2))
    return images[0], images[1] * torch.linspace(0.5, 2, PAIRS)[:, None, None, None]


@pytest.fixture(scope="module")
def trained():
    return network()


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


def plain_grad_cam(model, pooling, image1, image2):
    """Whether a pair is similar, and Grad-CAM of its decision, signed: a full forward pass with gradients everywhere,
    and a backward pass for each image, its partner held."""
    model = copy.deepcopy(model)
    final = model.backbone(torch.stack([image1, image2]))
    final.retain_grad()
    pooled = final.mean((2, 3)) if pooling == "avg" else (final.clamp(min=1e-6) ** 3).mean((2, 3)) ** (1 / 3)
    z = model.head(pooled)
    similar = min((z[0] - z[1]).norm().item() / model.margin, 1) < model.threshold
    for own, partner in ((z[0], z[1].detach()), (z[1], z[0].detach())):
        (-((own - partner) ** 2).sum()).backward(retain_graph=True)
    weights = final.grad.numpy().mean((2, 3))[:, :, None, None]
    return similar, (weights * final.detach().numpy()).sum(1) * (1 if similar else -1)


def bilinear(values, size):
    """Half-pixel centres, edges repeated (`align_corners=False`)."""
    centres = [(np.arange(n) + 0.5) * length / n - 0.5 for n, length in zip(size, values.shape)]
    return map_coordinates(values, np.meshgrid(*centres, indexing="ij"), order=1, mode="nearest")


@pytest.mark.parametrize(
    ("name", "pooling", "size"), [("Conv4", "avg", (24, 40)), ("test_efficientnet", "gem", (64, 96))]
)
def test_grad_cam_equals_plain_autograd_of_each_image(name, pooling, size):
    model = network(name, pooling, size)
    batch1, batch2 = batches(size)
    explanation = explain(model, batch1, batch2, "distance")
    assert set(explanation.is_similar.tolist()) == {True, False}
    for n in range(PAIRS):
        similar, raw = plain_grad_cam(model, pooling, batch1[n], batch2[n])
        assert explanation.is_similar[n] == similar
        assert np.allclose(explanation.raw[n], raw, rtol=1e-3, atol=1e-4 * abs(raw).max())
        for k in range(2):
            assert raw[k].any()
            for i, (maps, signed) in enumerate([(explanation.factual, raw), (explanation.counterfactual, -raw)]):
                expected = bilinear(np.maximum(signed[k].astype(float), 0), size)
                assert explanation.empty[n, k, i] == (expected.max() == 0)
                assert abs(maps[n, k].numpy() - expected / (expected.max() or 1)).max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_evidence_for_the_opposite_decision_is_the_sign_flip(model, method):
    model.threshold = 2.0
    similar = explain(model, *batches(), method)
    model.threshold = 1e-9
    dissimilar = explain(model, *batches(), method)
    assert similar.is_similar.all() and not dissimilar.is_similar.any()
    assert similar.raw.any() and torch.equal(similar.raw, -dissimilar.raw)
    if method == "distance":  # measured evidence against a decision has to be stronger to be shown
        assert torch.equal(similar.factual, dissimilar.counterfactual)
        assert torch.equal(similar.counterfactual, dissimilar.factual)


@pytest.mark.parametrize("method", METHODS)
def test_swapping_the_images_swaps_their_maps(model, method):
    batch1, batch2 = batches()
    one, other = explain(model, batch1, batch2, method), explain(model, batch2, batch1, method)
    assert (one.factual[:, 0] - one.factual[:, 1]).abs().max() > 0.1
    for name in ("factual", "counterfactual", "raw", "empty"):
        assert torch.allclose(getattr(one, name).float(), getattr(other, name).flip(1).float(), atol=1e-4), name


@pytest.mark.parametrize(("method", "resolution"), [("occlusion", (32, 32)), ("distance", (3, 5))])
def test_shapes_and_ranges(model, method, resolution):
    e = explain(model, *batches(), method)
    assert e.distance.shape == e.similarity.shape == e.is_similar.shape == (PAIRS,)
    assert e.factual.shape == e.counterfactual.shape == (PAIRS, 2, 24, 40)
    assert e.raw.shape == (PAIRS, 2, *resolution) and e.empty.shape == (PAIRS, 2, 2)
    assert e.is_similar.dtype == e.empty.dtype == torch.bool and torch.equal(e.is_similar, e.similarity > 0.5)
    with torch.no_grad():
        assert torch.allclose(e.similarity, 1 - model(*batches()), atol=1e-5)
    evidence = torch.stack([e.raw.clamp(min=0), -e.raw.clamp(max=0)], 2).flatten(0, 2)
    peaks = np.reshape([bilinear(maps.numpy(), (24, 40)).max() for maps in evidence], (PAIRS, 2, 2))
    assert np.allclose(e.strength, peaks / peaks.max((1, 2), keepdims=True), atol=1e-5)
    assert 0 <= e.similarity.min() and e.similarity.max() <= 1
    for k, maps in enumerate((e.factual, e.counterfactual)):
        # The strongest point is exactly 1.
        assert maps.min() >= 0 and torch.equal(maps.amax((2, 3)), (~e.empty[:, :, k]).float())
    assert not any(getattr(e, name).requires_grad for name in Explanation.__dataclass_fields__)


def test_identical_images_have_no_grad_cam_and_say_so(model):
    e = explain(model, batches()[0], batches()[0], "distance")
    assert e.is_similar.all() and e.similarity.tolist() == pytest.approx([1, 1], abs=1e-5)
    assert e.empty.all() and not any(maps.any() for maps in (e.raw, e.strength, e.factual, e.counterfactual))


@pytest.mark.parametrize("method", METHODS)
def test_pairs_beyond_the_margin_keep_their_maps(model, method):
    usual = explain(model, *batches(), method)
    model.margin, model.threshold = 1e-3 * float(usual.distance.min()), 1.0  # a dissimilarity of 1 is not below it
    e = explain(model, *batches(), method)
    far = ~usual.is_similar
    assert (e.similarity == 0).all() and not e.is_similar.any() and not e.empty.all(2).any()
    assert torch.equal(e.raw[far], usual.raw[far]) and torch.allclose(e.distance, usual.distance)


def test_a_map_without_evidence_is_flagged_for_its_image_only(model):
    features1, features2 = model.backbone(torch.cat(batches())).detach().chunk(2)
    e = grad_cam(model, torch.zeros_like(features1), features2, (24, 40))
    assert e.empty[:, 0].all() and not e.empty[:, 1].all(1).any()
    assert not e.factual[:, 0].any() and all(torch.isfinite(maps).all() for maps in (e.factual, e.counterfactual))


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e30])
def test_faint_or_huge_evidence_still_peaks_at_one_or_is_flagged(model, scale, monkeypatch):
    usual = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: (usual(*args, **options)[0].sign() * scale,))
    e = explain(model, *batches(), "distance")
    peaks = torch.stack([e.factual, e.counterfactual], 2).amax((3, 4))
    assert torch.equal(peaks, (~e.empty).float())


def mixed_modes(model):
    model.train()
    model.backbone[1].eval()
    model.head.eval()
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("method", METHODS)
def test_modes_gradients_statistics_and_hooks_are_left_as_found(model, method):
    expected = explain(model, *batches(), method)
    modes = mixed_modes(model)
    state = copy.deepcopy(model.state_dict())
    model.head[0].weight.grad = torch.ones_like(model.head[0].weight)
    model.backbone[0].weight.requires_grad_(False)

    explanation = explain(model, *batches(), method)

    assert torch.allclose(explanation.raw, expected.raw)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert (grads.pop("head.0.weight") == 1).all() and all(grad is None for grad in grads.values())
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["backbone.0.weight"]
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broken", ["backbone", "head"])
def test_modes_come_back_after_an_exception(model, broken, method):
    modes = mixed_modes(model)

    def fails(module, inputs):
        raise KeyError(broken)

    (model.backbone[0] if broken == "backbone" else model.head).register_forward_pre_hook(fails)
    with pytest.raises(KeyError):
        explain(model, *batches(), method)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_it_works_in_modes_that_a_program_has_chosen_and_with_frozen_parameters(model, method, context):
    expected = explain(model, *batches(), method)
    model.requires_grad_(False)
    with context():
        images = [batch.clone() for batch in batches()]  # made in that mode
        found = explain(nn.DataParallel(model), *images, method)
    assert torch.equal(found.raw, expected.raw) and torch.equal(found.similarity, expected.similarity)


@pytest.mark.parametrize("method", METHODS)
def test_another_precision_gives_the_same_or_a_line(model, method):
    dtype = torch.float16
    one, two = (batch.half().float() for batch in batches())  # so that half precision holds them
    expected = explain(model, one, two, method)
    found = [explain(model, one.to(dtype), two.double(), method)]
    torch.set_default_dtype(dtype)
    try:
        found.append(explain(model, one, two, method))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(e.raw, expected.raw) and e.factual.dtype == torch.float32 for e in found)
    with pytest.raises(ValueError, match="images of torch.uint8; prepare them by model.preprocess"):
        explain(model, one.byte(), two.byte(), method)
    with pytest.raises(ValueError, match="images hold NaN or infinity; prepare them by model.preprocess"):
        explain(model, one, two / 0, method)
    model.backbone.to(dtype)
    with pytest.raises(ModelError, match=f"^explain: the network is in {dtype}; use model.float()"):
        explain(model, one, two, method)


@pytest.mark.parametrize("method", METHODS)
def test_threads_explain_one_after_the_other_and_leave_a_network_in_training_as_it_was(model, method):
    images = [batch[:1] for batch in batches()]
    expected = explain(model, *images, method)
    model.train()
    modes, statistics = [m.training for m in model.modules()], [b.clone() for b in model.buffers()]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: explain(model, *images, method), range(3)))
    assert all(torch.equal(one.raw, expected.raw) for one in found)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), statistics))


@pytest.mark.parametrize(
    "shapes", [[(3, 8, 8)] * 2, [(1, 3, 8, 8), (2, 3, 8, 8)], [(0, 3, 8, 8)] * 2, [(1, 1, 8, 8)] * 2], ids=str
)
def test_batches_must_be_equal_stacks_of_images(model, shapes):
    with pytest.raises(ValueError, match=r"two batches of shape \(N, 3, H, W\)"):
        explain(model, *map(torch.zeros, shapes))


def test_unknown_method(model):
    with pytest.raises(ValueError, match="method must be one of .*occlusion.*distance.*got 'gradcam'"):
        explain(model, *batches(), method="gradcam")


@pytest.mark.parametrize("method", METHODS)
def test_flat_and_extreme_images_give_finite_maps(method):
    torch.manual_seed(0)
    model = SiameseNetwork("Conv4", embedding_dim=4, image_size=(32, 48), normalize_embeddings=True).eval()
    pixels = [torch.zeros(3, 32, 48), torch.full((3, 32, 48), 255.0), torch.zeros(3, 32, 48)]
    pixels[2][0] = 255  # red, as saturated as can be
    pixels.append(255 * torch.randint(2, (3, 32, 48), generator=torch.Generator().manual_seed(0)).float())
    batch = model.normalize(torch.stack(pixels).byte())
    first, second = torch.triu_indices(4, 4)
    found = explain_pairs(model, batch, first, second, method)
    for name in ("distance", "similarity", "factual", "counterfactual", "raw", "strength"):
        assert getattr(found, name).isfinite().all(), name
    assert found.factual.min() >= 0 and found.factual.max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_many_pairs_equal_each_alone_and_few_images_at_a_time_pass_through_the_network(model, method, monkeypatch):
    first, second, batch = [0, 1, 2, 3, 0], [2, 3, 0, 1, 3], torch.cat(batches())
    expected = [explain(model, batch[[i]], batch[[j]], method) for i, j in zip(first, second)]
    monkeypatch.setattr(Grad_CAM, "BATCH_SIZE", 2)
    found = explain_pairs(model, batch, first, second, method)
    for name in Explanation.__dataclass_fields__:
        alone = torch.cat([getattr(e, name) for e in expected])
        assert torch.allclose(getattr(found, name).float(), alone.float(), rtol=1e-3, atol=1e-4), name


def test_what_a_rounding_error_is_depends_on_the_lengths_of_the_embeddings(model):
    """Those that are apart by a millionth of sqrt(3^2 + 4^2 + 1 + 3^2 + 4^2 + 1) = 7.2 or less have no direction."""
    model.pooling, model.head = AveragePooling(), nn.Identity()  # so that these are embeddings:
    z1 = torch.tensor([[3.0, 4.0, 1.0, 0.0, 0.0]] * 2)[:, :, None, None]
    z2 = z1 + torch.tensor([6e-6, 8.5e-6])[:, None, None, None] * torch.eye(5)[2][:, None, None]
    assert grad_cam(model, z1, z2, (1, 1)).empty.all(2).tolist() == [[True] * 2, [False] * 2]


def test_grad_cam_sees_each_image_once_however_many_pairs_it_is_in(model):
    seen = []
    model.backbone[0].register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    explain_pairs(model, torch.cat(batches()), [0, 1, 0], [2, 2, 1], "distance")
    assert seen == [3]  # the last image is in no pair
