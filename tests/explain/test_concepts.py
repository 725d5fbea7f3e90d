import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planted import SIZE, SeesRed, covered_square, patch_measurements, planted_images

from utils.explain import concepts
from utils.explain.concepts import (
    CELLS,
    GRID,
    PLACES,
    boxes_of,
    disjoint,
    distinct_looks,
    features_of_places,
    find_groups,
    held_cells,
    strong_regions,
    widest_gap,
)


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


def test_a_gap_parts_images_with_the_look_from_those_without():
    near = torch.tensor([*np.linspace(0.6, 0.8, 20), *np.linspace(0.1, 0.4, 30)])
    mixed = near[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    ordered, best = sorted(near.tolist(), reverse=True), (0, 0)
    for count in range(5, 40):  # of at most 0.8 of all images, a tenth left out on each side
        last, other = ordered[int(0.9 * count) - 1], ordered[-int(-1.1 * count // 1)]
        best = max(best, (last - other, (last + other) / 2))
    edges = widest_gap(torch.stack([mixed, near + 0.1]))
    assert 0.4 < best[1] < 0.6 and edges.tolist() == pytest.approx([best[1], best[1] + 0.1])


def looks_of_images(count, having, spread, seed=0):
    """Each image has ten places of random looks; `having` of them one, too, that is about the same in all."""
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(count, 10, 64))
    places[:having, 3] = rng.normal(size=64) + spread * rng.normal(size=(having, 64))
    return F.normalize(torch.from_numpy(places).float(), dim=2)


@pytest.mark.parametrize("spread, found", [(0.5, [12]), (1.7, [])])
def test_a_distinct_look_is_one_that_an_image_has_or_has_not(spread, found):
    places = looks_of_images(60, 12, spread)
    looks = distinct_looks(places[::2, ::3].flatten(0, 1), places)
    assert [len(look.places) for look in looks] == found
    for look in looks:
        assert look.places == dict.fromkeys(range(12), 3) and look.gap > 0.15


def test_the_lack_of_a_look_is_no_other_look():
    places, rng = looks_of_images(60, 30, 0.3), np.random.default_rng(1)
    plain = torch.from_numpy(rng.normal(size=64) + 0.8 * rng.normal(size=(30, 64))).float()
    for others, found in ((slice(30, 60), 1), (slice(20, 50), 2)):
        both = places.clone()
        both[others, 5] = F.normalize(plain, dim=1)
        looks = distinct_looks(both[::2].flatten(0, 1), both)
        assert len(looks) == found and set(looks[0].places) == {*range(30)}


def test_a_cell_belongs_to_what_most_places_over_it_hold():
    places = torch.rand(2, PLACES**2, generator=torch.Generator().manual_seed(0)) < 0.6
    for has, cells in zip(places.view(2, PLACES, PLACES), held_cells(places)):
        for row in range(GRID):
            for column in range(GRID):
                over = has[max(0, row - CELLS + 1) : row + 1, max(0, column - CELLS + 1) : column + 1]
                assert cells[row, column] == (over.float().mean() >= 0.6)


def test_boxes_fit_what_they_are_drawn_around():
    disc = np.hypot(*np.mgrid[-5:6, -5:6]) <= 5
    frame = np.ones((20, 30), bool)
    frame[4:-4, 4:-4] = False
    cells = np.zeros((32, 60), bool)
    cells[3:14, 7:18], cells[5:25, 25:55] = disc, frame
    boxes = boxes_of(cells)
    assert (3, 14, 7, 18) in boxes
    drawn = np.zeros_like(cells, int)
    for top, bottom, left, right in boxes:
        drawn[top:bottom, left:right] += 1
        assert cells[top:bottom, left:right].mean() >= 0.65
    assert drawn.max() == 1 and (drawn == 1)[cells].all()


def test_a_planted_look_is_a_group_of_its_own_and_is_found_everywhere(monkeypatch):
    patch_measurements(monkeypatch)
    images, _, corners = planted_images(80, 0.9)
    features = torch.cat([*concepts.features_of_places(images)])
    strong = strong_regions(SeesRed(), images[:60], features[:60], verbose=False)
    groups = find_groups(strong, features)
    found = groups.find(features.split(16), SIZE)
    planted = {i for i, corner in enumerate(corners) if corner}
    best = int(np.argmax(groups.gap))
    members = found[found.group == best]
    assert groups.gap[best] > 0.5 and set(members.image) == planted  # also where no effect was measured
    for image, boxes in members.groupby("image"):
        inside, area = covered_square(boxes, corners[image])
        assert inside > 0.75 and area <= 6 * 12**2
    others = found[found.group != best]
    assert (others.bottom - others.top == 12).all() and (others.right - others.left == 12).all()
    assert 0 <= groups.rest < 1
    assert torch.equal(find_groups(strong, features).centres, groups.centres)


def test_a_look_is_the_same_however_the_image_lies():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, *SIZE), dtype=np.uint8))
    straight, turned = (next(features_of_places(each, verbose=False)) for each in (image, image.rot90(1, (2, 3))))
    assert straight.shape == (1, (GRID - CELLS + 1) ** 2, straight.shape[2])
    turned = turned.view(PLACES, PLACES, -1).rot90(-1, (0, 1)).reshape(1, PLACES**2, -1)
    assert torch.allclose(straight, turned, atol=1e-4)
