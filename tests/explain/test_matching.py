import torch

from utils.explain.matching import Match, strongest_matches


def test_the_strongest_matches_are_found_in_order_and_keep_their_surroundings():
    similarity = -torch.ones(10, 10, 10, 10)
    similarity[1, 1, 8, 8] = 3.0
    similarity[1, 2, 0, 0] = 2.9  # next to the first match in image 1: less than 2 positions away
    similarity[9, 9, 8, 7] = 2.8  # next to it in image 2
    similarity[1, 3, 4, 4] = 2.0  # 2 positions away
    similarity[6, 6, 1, 9] = 1.0
    similarity[9, 1, 1, 1] = 0.8  # less than 0.3 of the strongest
    assert strongest_matches(similarity) == [
        Match((0.15, 0.15), (0.85, 0.85), 3.0),
        Match((0.15, 0.35), (0.45, 0.45), 2.0),
        Match((0.65, 0.65), (0.15, 0.95), 1.0),
    ]
    assert [match.strength for match in strongest_matches(similarity, count=1)] == [3.0]
    assert strongest_matches(-torch.ones(3, 4, 3, 4)) == []
