import itertools

import pytest
import torch
from torch import nn

from utils.explain import incremental
from utils.explain.incremental import IncrementalEmbedder, Stage, local_stages
from utils.Siamese import SiameseNetwork

pytestmark = pytest.mark.usefixtures("exact")


def network(backbone: str, *size: int) -> SiameseNetwork:
    torch.manual_seed(0)
    return SiameseNetwork(backbone, image_size=size, embedding_dim=4).eval()


def random_regions(size: tuple[int, int], count: int = 12) -> torch.Tensor:
    """Of any size and place, the whole image and single pixels in its corners among them."""
    generator = torch.Generator().manual_seed(1)
    rows, columns = (torch.randint(pixels + 1, (count, 2), generator=generator).sort(dim=1).values for pixels in size)
    drawn = torch.cat([rows, columns], dim=1)
    drawn = drawn[(drawn[:, 1] > drawn[:, 0]) & (drawn[:, 3] > drawn[:, 2])]
    height, width = size
    corners = [[0, 1, 0, 1], [height - 1, height, width - 1, width], [0, height, 0, width]]
    return torch.cat([drawn, torch.tensor(corners)])


@pytest.mark.parametrize(
    "backbone, size, stages",
    [
        ("Conv4", (32, 48), 15),  # all of them
        ("EfficientNetLite0", (64, 96), 8),  # its strides pad at one end only
        ("resnet18", (68, 64), 6),  # eighths of 68 pixels are no whole positions
        ("efficientnet_b0", (64, 64), 2),  # squeezes and excites behind its first convolution
    ],
)
def test_what_it_leaves_out_changes_nothing(backbone, size, stages, monkeypatch):
    model = network(backbone, *size)
    image, instead = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    regions = random_regions(size)
    found = local_stages(model)
    assert len(found) == stages
    with torch.no_grad():
        monkeypatch.setattr(incremental, "BATCH_SIZE", 4)
        embedder = IncrementalEmbedder(model, image, found)
        for region, embedding in zip(regions.tolist(), embedder.embeddings(instead, regions)):
            changed, (top, bottom, left, right) = image.clone(), region
            changed[:, top:bottom, left:right] = instead[:, top:bottom, left:right]
            torch.testing.assert_close(embedding, model.embed(changed[None])[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(embedder.embedding, model.embed(image[None])[0], rtol=1e-4, atol=1e-5)


def test_a_small_region_costs_a_small_part_of_the_earlier_blocks():
    model = network("MobileNet", 96, 96)
    seen = []
    with torch.no_grad():
        embedder = IncrementalEmbedder(model, torch.randn(3, 96, 96), local_stages(model))
        model.backbone[0].register_forward_hook(lambda module, given, made: seen.append(given[0].shape[2:]))
        embedder.embeddings(torch.zeros(3, 96, 96), torch.tensor([[40, 48, 40, 88], [40, 48, 40, 56]]))
    # 3 x 3 at a stride of 2: what sees 8 rows lies within a row of them, and sees one more; columns likewise. A narrow
    # region does not cost what a wide one does.
    assert seen == [(12, 20), (12, 52)]


def test_how_far_blocks_carry_a_change_does_not_depend_on_their_weights():
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    model = network("Conv4", 32, 32)
    model.backbone = nn.Sequential(convolution, nn.MaxPool2d(2), nn.Conv2d(4, 4, 5, padding=2), nn.AvgPool2d(8))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    reach = [(stage.stride, stage.before, stage.after) for stage in local_stages(model)]
    assert reach == [(1, 1, 1), (2, 0, 1), (1, 2, 2)]


class Branches(nn.ModuleList):
    def forward(self, maps):
        return torch.cat([branch(maps) for branch in self], dim=1)


@pytest.mark.parametrize("kernel", [(1, 5), (5, 1)])
def test_the_farthest_channel_counts_and_the_farther_direction(kernel):
    model = network("Conv4", 32, 32)
    far = nn.Conv2d(3, 2, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
    model.backbone = nn.Sequential(Branches([nn.Conv2d(3, 2, 1), far]))
    assert [(stage.before, stage.after) for stage in local_stages(model)] == [(2, 2)]


def test_positions_and_parts_are_those_of_a_loop():
    side = 24
    for stride, before, after in ((1, 0, 0), (1, 2, 2), (2, 1, 1), (2, 2, 4), (4, 0, 3), (4, 5, 9)):
        stage = Stage(nn.Sequential(), stride, before, after)
        around = [range(stride * i - before, stride * i + after + 1) for i in range(side // stride)]
        sees = [set(pixels) & set(range(side)) for pixels in around]
        extents = torch.tensor(list(itertools.combinations(range(side + 1), 2)))
        changed = stage.changed(extents, side)
        for (start, end), (first, last) in zip(extents.tolist(), changed.tolist()):
            expected = [i for i, pixels in enumerate(sees) if pixels & set(range(start, end))]
            if expected:  # where a stride skips pixels, none may see them
                assert [*range(first, last)] == expected
        for positions in changed:
            (start,), length = stage.needed(positions[None], side)
            needed = set().union(*(sees[i] for i in range(*positions.tolist())))
            assert start % stride == length % stride == 0 and 0 <= start <= side - length
            assert needed <= set(range(int(start), int(start) + length))


def test_modes_are_left_as_found():
    model = network("test_resnet", 64, 64).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    local_stages(model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_gpu_embeds_whole_images():
    model = network("Conv4", 32, 32)
    with torch.no_grad():
        assert len(IncrementalEmbedder(model, torch.zeros(3, 32, 32), []).embedding) == 4
    model.mean = model.mean.to("meta")
    assert local_stages(model) == []
