import numpy as np
import torch

from utils.explain.removal import blur
from utils.training.additivity import SIDES, halved_boxes, occlude_halves


def test_halves_are_neighbours_that_fill_a_box_of_the_image():
    boxes = halved_boxes(200, (40, 64), np.random.default_rng(0))
    assert boxes.shape == (200, 2, 4)
    rows = columns = 0
    for one, two in boxes:
        assert (boxes >= 0).all() and max(one[1], two[1]) <= 40 and max(one[3], two[3]) <= 64
        assert (one[0] < one[1]) and (one[2] < one[3]) and (two[0] < two[1]) and (two[2] < two[3])
        above = one[1] == two[0] and (one[2:] == two[2:]).all()
        beside = one[3] == two[2] and (one[:2] == two[:2]).all()
        assert above != beside
        rows, columns = rows + above, columns + beside
    assert rows > 60 and columns > 60
    heights = (boxes[:, 1, 1] - boxes[:, 0, 0]) / 40
    assert SIDES[0] - 0.02 < heights.min() < 0.25 and 0.6 < heights.max() < SIDES[1] + 0.02


def test_boxes_of_tiny_images_are_two_pixels_or_more_with_a_cut_between_them():
    boxes = halved_boxes(200, (3, 4), np.random.default_rng(0))
    whole = np.stack([boxes[:, 0, 0], boxes[:, 1, 1], boxes[:, 0, 2], boxes[:, 1, 3]])
    assert set(whole[1] - whole[0]) == {2} and set(whole[3] - whole[2]) == {2, 3}  # 0.7 of 3 and of 4, rounded
    assert set(whole[0]) == {0, 1} and set(whole[2]) == {0, 1, 2}
    assert ((boxes[:, :, 1] > boxes[:, :, 0]) & (boxes[:, :, 3] > boxes[:, :, 2])).all()


def test_each_half_and_both_are_blurred():
    batch = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    boxes = np.array([[[2, 6, 3, 9], [6, 9, 3, 9]], [[0, 16, 0, 4], [0, 16, 4, 24]]])
    changed = occlude_halves(batch, boxes)
    blurred, expected = blur(batch), []
    for halves in ([0], [1], [0, 1]):
        for image in range(2):
            picture = batch[image].clone()
            for half in halves:
                top, bottom, left, right = boxes[image, half]
                for y in range(top, bottom):
                    for x in range(left, right):
                        picture[:, y, x] = blurred[image, :, y, x]
            expected.append(picture)
    assert torch.equal(changed, torch.stack(expected))
    torch.testing.assert_close(changed[5], blurred[1])  # its halves are the whole image
