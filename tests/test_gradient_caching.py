import numpy as np
import pytest
import torch
from torch import nn

from utils.dataset import prepare_split
from utils.gradient_caching import GradientCache
from utils.processes import Processes
from utils.settings import Config
from utils.Siamese import ContrastiveLoss, SiameseNetwork, all_pairs
from utils.training import Trainer
from utils.transfer import freeze

CPU = torch.device("cpu")
IMAGES = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 1, 0, 2, 0, 1])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SiameseNetwork("Conv4", image_size=(16, 16), embedding_dim=4).eval()


def all_pairs_loss(rows):
    loss = ContrastiveLoss()(*all_pairs(rows, LABELS), balanced=True)
    return 3 * loss, loss


def cached(model, chunk, calls=None):
    """Loss and gradients by the cache; and the sizes of the passes."""
    cache = GradientCache(model, CPU, Processes())
    cache.chunk = chunk
    calls = [] if calls is None else calls

    def embed(start, stop):
        calls.append(stop - start)
        return np.arange(start, stop), model.embed(IMAGES[start:stop])

    loss, rows = cache.backward(embed, len(IMAGES), (len(IMAGES), 4), all_pairs_loss)
    return loss, rows, [parameter.grad.clone() for parameter in model.parameters()]


def by_hand(model, parts):
    """The same by one graph of the whole batch, embedded in parts."""
    model.zero_grad(set_to_none=True)
    rows = torch.cat([model.embed(part) for part in parts])
    target, loss = all_pairs_loss(rows)
    target.backward()
    return loss, rows, [parameter.grad.clone() for parameter in model.parameters()]


def assert_same(found, expected):
    torch.testing.assert_close(found[:2], expected[:2])
    torch.testing.assert_close(found[2], expected[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk, sizes", [(100, [7]), (7, [7]), (3, [3, 3, 1] * 2), (1, [1] * 14)])
def test_gradients_of_chunks_are_those_of_the_whole_batch(model, chunk, sizes):
    calls = []
    assert_same(cached(model, chunk, calls), by_hand(model, [IMAGES]))
    assert calls == sizes


def test_what_is_dropped_is_the_same_in_both_passes_and_the_next_batch_draws_anew(model):
    model.head.insert(1, nn.Dropout(0.5))
    model.head.train()
    torch.manual_seed(1)
    expected, after = by_hand(model, IMAGES.split(3)), torch.rand(1)
    torch.manual_seed(1)
    assert_same(cached(model, 3), expected)
    assert torch.equal(torch.rand(1), after)


def test_batch_statistics_count_once(model):
    torch.manual_seed(0)
    other = SiameseNetwork("Conv4", image_size=(16, 16), embedding_dim=4).train()
    expected = by_hand(other, IMAGES.split(3))
    assert_same(cached(model.train(), 3), expected)
    for found, buffer in zip(model.buffers(), other.buffers()):
        torch.testing.assert_close(found, buffer)


def running_out(limit, where):
    """An `embed_part` for memory that holds `limit` images, in the forward or in the backward pass."""

    def embed(model, calls):
        def part(start, stop):
            calls.append(stop - start)
            if where == "forward" and stop - start > limit:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            rows = model.embed(IMAGES[start:stop])
            if where == "backward" and stop - start > limit and rows.requires_grad:
                rows.register_hook(lambda gradient: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
            return np.arange(start, stop), rows

        return part

    return embed


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_when_memory_runs_out_chunks_are_halved_for_good_and_nothing_else_changes(model, capsys, where):
    model.head.insert(1, nn.Dropout(0.5))
    model.train()
    torch.manual_seed(0)
    other = SiameseNetwork("Conv4", image_size=(16, 16), embedding_dim=4)
    other.head.insert(1, nn.Dropout(0.5))
    other.train()
    torch.manual_seed(1)
    for _ in range(2):
        expected = by_hand(other, IMAGES.split(3))
    torch.manual_seed(1)
    cache, calls = GradientCache(model, CPU, Processes()), []
    for _ in range(2):
        embed = running_out(4, where)(model, calls)
        loss, rows = cache.backward(embed, len(IMAGES), (len(IMAGES), 4), all_pairs_loss)
    assert_same((loss, rows, [parameter.grad for parameter in model.parameters()]), expected)
    for found, buffer in zip(model.buffers(), other.buffers()):
        torch.testing.assert_close(found, buffer)
    assert calls == [7] + [3, 3, 1] * 4
    told = capsys.readouterr().out.splitlines()
    assert told == ["out of memory with 7 images at once; going on with 3 at once, batches as before"]


def test_memory_that_does_not_hold_one_image_and_other_errors_end_it(model):
    cache, sizes = GradientCache(model, CPU, Processes()), []

    def too_much(size):
        sizes.append(size)
        raise RuntimeError("MPS backend out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.fit(too_much, 5)
    assert sizes == [5, 2, 1]
    cache = GradientCache(model, CPU, Processes())
    with pytest.raises(RuntimeError, match="shapes"):
        cache.fit(lambda size: (_ for _ in ()).throw(RuntimeError("shapes do not fit")), 5)
    assert cache.fit(lambda size: size, 5) == 5


@pytest.mark.parametrize("settings", [{}, {"training_pairs": "sampled"}], ids=["batch", "sampled"])
@pytest.mark.parametrize("additivity", [0.0, 2.0])
def test_a_trainers_gradients_are_the_same_in_chunks(colour_folder, monkeypatch, settings, additivity):
    """With boxes, of which chunks hold some, one or none; at fixed batch statistics, as in fine-tuning."""
    monkeypatch.setattr("utils.training.bfloat16_pays", lambda device: False)  # its rounding would hide mistakes
    found = []
    for chunk in (100, 3, 1):
        trainer = colour_trainer(colour_folder, additivity, **settings)
        trainer.cache.chunk = chunk
        trainer.model.train()
        freeze(trainer.model, 0)
        loss, embeddings = trainer.gradients(trainer.epoch_batches()[0])
        found.append((loss, embeddings, [parameter.grad for parameter in trainer.model.parameters()]))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


def colour_trainer(folder, additivity, **settings):
    config = Config(
        dataset="Colours",
        data_path=folder,
        checkpoints_path=folder.parents[1] / "checkpoints",
        outputs_path=folder.parents[1] / "outputs",
        backbone_model="Conv4",
        image={"size": (16, 16), "RandomRotationDegrees": 20},
        test_size=0.2,
        valid_size=0.25,
        device="cpu",
        embedding_dim=4,
        hyperparameters={"batch_size": 10, "verbose": False, "num_workers": 0, "additivity": additivity},
        **settings,
    )
    return Trainer(config, prepare_split(config)[0])


def test_a_card_gives_back_what_did_not_fit_before_it_tries_again(monkeypatch, capsys):
    emptied, tried = [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(list(tried)))

    def compute(size):
        tried.append(size)
        if size > 2:
            raise RuntimeError("CUDA out of memory")
        return size

    cache = GradientCache(nn.Linear(1, 1), torch.device("cuda"), Processes())
    assert cache.fit(compute, 8) == 2 and tried == [8, 4, 2] and emptied == [[8], [8, 4]]
