"""What is shown of a run."""

import pytest
import torch

from agents.results import some_of_each


@pytest.mark.parametrize(
    ("labels", "places"),
    [
        ([3, 3, 3, 3, 3, 1], [0, 1, 2, 3, 5]),
        (list(range(20)), list(range(10))),
        ([7, 8] * 6, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_some_images_of_each_of_the_first_classes_are_shown(labels, places):
    assert some_of_each(torch.tensor(labels)) == places
