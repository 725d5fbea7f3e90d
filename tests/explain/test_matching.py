import torch

from utils.explain.matching import Match, strongest_matches


def test_the_strongest_matches_are_found_in_order_and_keep_their_surroundings():
    interaction = -torch.ones(10, 10, 10, 10)
    interaction[1, 1, 8, 8] = 3.0
    interaction[1, 2, 0, 0] = 2.9  # next to the first match in image 1: less than 2 positions away
    interaction[9, 9, 8, 7] = 2.8  # next to it in image 2
    interaction[1, 3, 4, 4] = 2.0  # 2 positions away
    interaction[6, 6, 1, 9] = 1.0
    interaction[9, 1, 1, 1] = 0.8  # less than 0.3 of the strongest
    assert strongest_matches(interaction) == [
        Match((0.15, 0.15), (0.85, 0.85), 3.0),
        Match((0.15, 0.35), (0.45, 0.45), 2.0),
        Match((0.65, 0.65), (0.15, 0.95), 1.0),
    ]
    assert [match.strength for match in strongest_matches(interaction, count=1)] == [3.0]
    assert strongest_matches(-torch.ones(3, 4, 3, 4)) == []


def test_matches_lie_apart_in_every_direction_and_four_are_enough():
    """On maps of 4 x 6 positions, where 1.2 positions are apart: diagonal neighbours are, others are not."""
    interaction = -torch.ones(4, 6, 4, 6)
    places = [(2, 5, 3, 5), (1, 2, 0, 0), (0, 4, 1, 4), (3, 4, 0, 3), (3, 0, 3, 0)]
    for strength, place in zip((3.0, 2.5, 2.25, 2.0, 1.75), places):
        interaction[place] = strength
    interaction[2, 4, 0, 5] = interaction[0, 0, 2, 5] = 2.75  # beside the first one, in image 1 and in image 2
    found = strongest_matches(interaction)
    assert [match.strength for match in found] == [3.0, 2.5, 2.25, 2.0]
    for match, (top, left, other_top, other_left) in zip(found, places):
        assert match.first == ((top + 0.5) / 4, (left + 0.5) / 6)
        assert match.second == ((other_top + 0.5) / 4, (other_left + 0.5) / 6)
    assert [match[:2] for match in strongest_matches(interaction / 16)] == [match[:2] for match in found]
