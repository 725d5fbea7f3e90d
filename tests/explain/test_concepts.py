import numpy as np
import torch
from planted import SIZE, SeesRed, patch_measurements, planted_images

from utils.explain.concepts import CELLS, GRID, PLACES, boxes_at, disjoint, features_of_places, find_groups


def test_chosen_places_are_the_best_and_do_not_overlap():
    score = torch.rand(3, PLACES**2, generator=torch.Generator().manual_seed(0))
    score[2] = -torch.inf
    score[2, 5] = 0.1
    chosen = disjoint(score, 4)
    for values, places in zip(score, chosen):
        free, expected = values.clone().view(PLACES, PLACES), []
        for _ in range(4):
            row, column = divmod(int(free.argmax()), PLACES)
            expected.append(row * PLACES + column if free.max() > -torch.inf else -1)
            free[max(0, row - CELLS + 1) : row + CELLS, max(0, column - CELLS + 1) : column + CELLS] = -torch.inf
        assert places.tolist() == expected
    assert chosen[2].tolist() == [5, -1, -1, -1]


def test_boxes_lie_where_the_maps_positions_are():
    last = PLACES**2 - 1
    assert boxes_at(torch.tensor([0, 1, last]), (64, 128)).tolist() == [
        [0, 12, 0, 24],
        [0, 12, 4, 28],
        [52, 64, 104, 128],
    ]


def test_a_planted_look_is_a_group_of_its_own_and_is_found_everywhere(monkeypatch):
    patch_measurements(monkeypatch)
    images, _, corners = planted_images(80, 0.9)
    groups = find_groups(SeesRed(), images[:60], verbose=False)
    found, nearest = groups.find(images)
    assert nearest.shape == (80, len(groups.radii))
    planted = {i for i, corner in enumerate(corners) if corner}
    best = max(
        set(found.group), key=lambda k: len(planted & set(found.image[found.group == k])) / len(found[found.group == k])
    )
    members = found[found.group == best]
    assert set(members.image) == planted  # also where no effect was measured
    for row in members.itertuples():
        top, left = corners[row.image]
        assert abs(row.top - top) <= 3 and abs(row.left - left) <= 3
    assert groups.likeness[best] > 0.8 and 0 <= groups.rest < 1
    again = find_groups(SeesRed(), images[:60], verbose=False)
    assert torch.equal(again.centres, groups.centres)


def test_a_look_is_the_same_however_the_image_lies():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, *SIZE), dtype=np.uint8))
    straight, turned = (next(features_of_places(each)) for each in (image, image.rot90(1, (2, 3))))
    assert straight.shape == (1, (GRID - CELLS + 1) ** 2, straight.shape[2])
    turned = turned.view(PLACES, PLACES, -1).rot90(-1, (0, 1)).reshape(1, PLACES**2, -1)
    assert torch.allclose(straight, turned, atol=1e-4)
