import copy

import numpy as np
import pytest
import torch
from trainers import first_batch, started

from utils.explain.removal import blur
from utils.Siamese import SiameseNetwork
from utils.system.errors import TrainingError
from utils.training import phases, train
from utils.training.data import halved_boxes
from utils.training.phases import VIEWS, FineTuning, early_blocks, frozen_features
from utils.training.processes import Processes

IMAGES = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------ transfer learning


def test_features_are_those_of_a_plain_pass_in_eval_mode_whatever_the_batches():
    model = SiameseNetwork("test_resnet", image_size=(32, 32))
    found = frozen_features(model, IMAGES.split(4), exact=True)
    assert model.training  # left as found
    with torch.no_grad():
        expected = model.pooling(model.eval().backbone(model.normalize(IMAGES)))
    assert torch.allclose(found, expected, atol=1e-5)
    assert frozen_features(model, [], exact=True).shape == (0, 96)


@pytest.mark.parametrize(
    ("name", "size", "blocks"),
    [("EfficientNetLite0", (320, 480), 8), ("resnet18", (64, 64), 8), ("Conv4", (64, 64), 0)],
)
def test_early_blocks_end_where_a_sixteenth_of_the_resolution_is_left(name, size, blocks):
    """EfficientNetLite0: statistics, convolution, norm and five blocks. resnet18: convolution, norm, ReLU, maximum, and
    two blocks each of strides 4 and 8. Conv4 never gets there."""
    assert early_blocks(SiameseNetwork(name, image_size=size)) == blocks


def test_embeddings_in_fine_tuning_are_the_networks_own(config):
    pretrained = {"backbone_model": "EfficientNetLite0", "pretrained": True, "image": {"size": (32, 32)}}
    phase = started(config({"head_steps": 0}, **pretrained)).phase
    phase.model.eval()
    batch = phase.model.normalize(IMAGES)
    with torch.no_grad():
        cosine = torch.nn.functional.cosine_similarity(phase.embed_batch(batch), phase.model.embed(batch))
    assert phase.frozen and cosine.min() > 0.99  # the first blocks run in bfloat16 on some machines


# -------------------------------------------------------------------------------------------------- the head alone


def test_views_are_the_images_and_changed_ones(config, weights, monkeypatch):
    monkeypatch.setattr(phases, "frozen_features", lambda model, batches, exact: torch.cat(list(batches)).flatten(1))
    options = {"size": (16, 16), "HorizontalFlip": 1, "RandomErasing": 1, "CutMix": 1}
    trainer = started(config({"head_steps": 2, "batch_size": 5}, weights=weights, image=options))
    images = {split: images[np.arange(len(images))] for split, images in trainer.data.images.items()}
    assert torch.equal(trainer.phase.of_valid, images["valid"].flatten(1))
    plain, *others = trainer.phase.features
    assert torch.equal(plain, images["train"].flatten(1)) and len(others) == VIEWS - 1
    for view in others:  # nothing is erased at the start, or covered
        assert torch.equal(view, images["train"].flip(3).flatten(1))


def test_the_view_is_drawn_for_each_image_of_a_batch(config, weights):
    phase = started(config({"head_steps": 2}, weights=weights)).phase
    phase.features = torch.cartesian_prod(torch.arange(4), torch.arange(12)).view(4, 12, 2)
    phase.processes = Processes(1, 2)
    positions, rng = np.array([7, 2, 11, 0, 5]), np.random.default_rng(0)
    drawn = torch.stack(list(phase.inputs([positions] * 20, 1, 0.0, rng)))
    assert drawn.shape == (20, 3, 2) and (drawn[:, :, 1] == torch.tensor([11, 0, 5])).all()
    assert set(drawn[:, :, 0].flatten().tolist()) == {0, 1, 2, 3} and (drawn[:, 0, 0] != drawn[:, 1, 0]).any()


# ------------------------------------------------------------------------------------------------------ fine-tuning


@pytest.mark.parametrize("pairs, images_an_epoch, rounds", [("batch", 12, 2), ("sampled", 2 * 2 * 12, 1)])
def test_only_training_images_are_changed_each_as_often_as_configured(
    config, monkeypatch, pairs, images_an_epoch, rounds
):
    seen, loaded = [], phases.ImageLoader.__call__

    def watch(self, requests):
        asked = list(requests)
        seen.extend(asked)
        return loaded(self, asked)

    monkeypatch.setattr(phases.ImageLoader, "__call__", watch)
    train(config({"epochs": 3}, training_pairs=pairs, number_of_iterations=rounds))
    for epoch, progress in ((1, 0), (2, 0.5), (3, 1)):
        requests = [request for request in seen if request.epoch == epoch]
        assert {request.progress for request in requests} == {progress}
        assert sum(len(request.positions) for request in requests) == rounds * images_an_epoch
        ends = np.cumsum([len(request.positions) for request in requests])
        assert [request.first for request in requests] == [0, *ends[:-1]]  # each place is one image's


def test_each_image_is_covered_by_the_one_before_it_in_the_batch(config):
    trainer = started(config(image={"size": (16, 16), "HorizontalFlip": 0, "CutMix": 1}))
    positions = np.array([4, 0, 7])
    plain = trainer.data.images["train"][positions]
    covered = next(trainer.phase.inputs([positions], 1, 0.0, np.random.default_rng(0)))
    for k in range(3):
        inside = (covered[k] != plain[k]).any(0)
        assert inside.any() and torch.equal(covered[k][:, inside], plain[k - 1][:, inside])


@pytest.mark.parametrize("pairs", ["batch", "sampled"])
def test_a_process_prepares_its_own_share_as_one_process_would(config, pairs):
    image = {"size": (16, 16), "RandomErasing": 0.5, "RandomResizedCrop": 0.5, "CutMix": 0.4}
    trainer, found = started(config({"batch_size": 7}, image=image, training_pairs=pairs)), []
    for processes in (Processes(), Processes(0, 2), Processes(1, 2)):
        trainer.phase.processes, rng = processes, np.random.default_rng(0)
        batches = trainer.data.batches(rng, 7)
        found.append(list(trainer.phase.inputs(batches, 2, 0.5, rng)))
    for images, first, second in zip(*found):
        assert torch.equal(images, torch.cat([first, second]))


def test_the_penalty_of_effects_that_do_not_add_up(config, monkeypatch):
    """Additivity adds the weight times the gradient of `||delta_AB - delta_A - delta_B||^2`, computed here image by
    image. A process that has one of two chosen images adds half of that image's cost."""
    monkeypatch.setattr(phases, "bfloat16_pays", lambda device: False)
    gradients = []
    for weight in (0.0, 1e4):  # large beside rounding: an untrained network's effects are small
        options = {"additivity": weight, "batch_size": 12, "max_norm": 1e9, "optimizer": "SGD", "learning_rate": 1e-9}
        trainer = started(config(options, image={"size": (16, 16), "HorizontalFlip": 0.0}))
        trainer.model.eval()  # at fixed batch statistics, as in fine-tuning
        positions, images, rng = first_batch(trainer)
        drawn = copy.deepcopy(rng)
        trainer.step(positions, images, rng)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    again = copy.deepcopy(drawn)
    chosen = again.choice(12, 2, replace=False)  # an eighth of 12, rounded up
    model, left = trainer.model, []
    for image, halves in zip(model.normalize(images[chosen]), halved_boxes(2, (16, 16), again)):
        soft, seen = blur(image[None])[0], []
        for blurred in ([], [0], [1], [0, 1]):
            changed = image.clone()
            for top, bottom, left_edge, right in halves[blurred]:
                changed[:, top:bottom, left_edge:right] = soft[:, top:bottom, left_edge:right]
            seen.append(model.embed(changed[None])[0])
        whole, a, b, both = seen
        left.append(((whole - both) - (whole - a) - (whole - b)).square().sum())
    wanted = torch.autograd.grad(sum(left) / len(left), list(model.parameters()))
    wanted = 1e4 * torch.cat([gradient.flatten() for gradient in wanted])
    assert wanted.norm() > 1e-3
    torch.testing.assert_close(gradients[1] - gradients[0], wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))
    for processes in (Processes(0, 2), Processes(1, 2)):
        trainer.phase.processes, own = processes, processes.share(12)
        with torch.no_grad():
            _, penalty = trainer.phase.embed(images[own], 12, copy.deepcopy(drawn))
        parts = [1e4 * cost.item() / 2 for place, cost in zip(chosen, left) if own.start <= place < own.stop]
        assert float(penalty) == pytest.approx(sum(parts), rel=1e-2)


def test_a_process_may_have_no_share_of_a_batch_or_of_the_validation_images(config):
    phase = started(config({"additivity": 1.0})).phase
    whole, phase.processes = phase.valid_features(), Processes(0, 5)  # has 0 of 4
    phase.processes.sum = lambda tensor: whole if tensor.ndim == 2 else tensor  # the rows of the others
    assert torch.equal(phase.valid_features(), whole)
    rng = np.random.default_rng(0)
    embeddings, penalty = phase.embed(next(phase.inputs([np.arange(4)], 1, 0.0, rng)), 4, rng)
    assert embeddings.shape == (0, 4) and penalty == 0


# ------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize(
    "options", [{"optimizer": "AdamW", "weight_decay": 0.2}, {"optimizer": "SGD", "momentum": 0.8, "nesterov": True}]
)
def test_settings_of_the_optimizer_are_used(config, options):
    optimizer = started(config(options)).phase.optimizer
    found = {"optimizer": type(optimizer).__name__, **optimizer.defaults}
    expected = {"lr": 0.003, "weight_decay": 0.01, **options}
    assert {key: found[key] for key in expected} == expected


def test_one_cycle_rises_to_the_learning_rate_and_ends_near_zero(config):
    trainer = started(config({"epochs": 5, "learning_rate": 0.01}, LRScheduler={"name": "OneCycle"}))
    optimizer, total, rates = trainer.phase.optimizer, 5 * trainer.steps, []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < total:
            trainer.phase.scheduler.step()
    assert rates[0] < max(rates) == pytest.approx(0.01) and 0 < rates.index(max(rates)) < total / 2 and rates[-1] < 1e-5


def test_gradients_are_clipped(config):
    options = {"optimizer": "SGD", "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0, "max_norm": 0.001}
    trainer = started(config(options))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.step(*first_batch(trainer))
    moved = torch.stack([(p - q).norm() for p, q in zip(trainer.model.parameters(), before)]).norm()
    assert moved.item() == pytest.approx(0.001, rel=0.01)


def test_a_loss_that_is_not_finite_stops_training_and_names_the_key(config):
    trainer = started(config())
    with torch.no_grad():
        trainer.model.head[0].bias.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"epoch 1: .*lower hyperparameters.learning_rate \(0.003\)"):
        trainer.step(*first_batch(trainer))


def test_a_loss_of_the_head_alone_that_is_not_finite_names_what_it_depends_on(config, weights):
    """The square of a margin of 1e20 is more than float32 holds."""
    with pytest.raises(TrainingError, match=r"epoch 1: .* not finite; use other weights, or lower margin$"):
        train(config({"head_steps": 1, "epochs": 0}, weights=weights, margin=1e20))


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_validation_or_a_gradient_that_is_not_finite_stops_training_too(config, monkeypatch, value):
    trainer = started(config())
    trainer.model.head[2].bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match="or its gradient, is not finite"):
        trainer.step(*first_batch(trainer))
    monkeypatch.setattr(FineTuning, "valid_features", lambda phase: value * torch.eye(4, 64))
    with pytest.raises(TrainingError, match=r"epoch 1: .* not finite; lower hyperparameters.learning_rate"):
        train(config())
