from dataclasses import replace

import numpy as np
import pytest
import torch

from utils.explain.what_if import WhatIf


def test_the_report_says_which_map_fails_its_own_check():
    result = WhatIf(
        0.8,
        np.zeros((2, 2)),
        np.array([[-0.1, 0.1], [0.1, -0.1]]),
        torch.zeros(2, 2, 4, 4),
        np.array([[False, False], [False, True]]),
        others={"filled": np.array([[-0.1, -0.1], [0.1, 0.1]]), "covered": np.array([[0.1, -0.1], [-0.1, 0.1]])},
    )
    assert result.report(("a", "b")).splitlines() == [
        "a, factual region blurred: similarity 0.80 → 0.00, the decision gets weaker, as it should; "
        "but not if it is covered",
        "a, counterfactual region blurred: similarity 0.80 → 0.00, the decision gets stronger, as it should; "
        "but not if it is filled or covered",
        "b, factual region blurred: similarity 0.80 → 0.00, the decision gets stronger, so do not trust this map",
        "b, counterfactual region has no evidence to blur",
    ]
    without_effect = replace(result, change=np.zeros((2, 2))).report(("a", "b"))
    assert without_effect.count("so do not trust this map") == 3 and "as it should" not in without_effect


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (-0.2, 0.1, "similarity 0.00 → 0.10"),
        (0.9, 0.904, "similarity 0.900 → 0.904"),
        (0.9, 0.90004, "similarity 0.9000 → 0.9000"),
        (-0.3, -0.3003, "distance / margin 1.3000 → 1.3003"),
    ],
)
def test_a_change_has_as_many_decimals_as_show_it(before, after, words):
    assert WhatIf(before, np.full((2, 2), after), *[np.zeros((2, 2))] * 3).change_in_words(0, 0) == words
