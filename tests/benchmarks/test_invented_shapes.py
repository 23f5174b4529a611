"""benchmarks/invented_shapes.py: captions counted by hand."""

import pytest
from invented_shapes import invented


THERE = ["a small red circle", "a large blue square"]


@pytest.mark.parametrize(
    ("caption", "counted"),
    [
        ("a red circle and a blue square", (2, 0, 0)),
        ("a red star and a blue square", (2, 1, 1)),  # the circle, taken for a star
        ("a red circle and a green star", (2, 1, 0)),  # nothing green is there
        ("two red stars, a red circle, a blue square", (3, 1, 0)),  # the circle is named as well
        ("nothing", (0, 0, 0)),
    ],
)
def test_a_thing_taken_for_another_is_told_from_one_that_is_not_there(caption, counted):
    assert invented(caption, THERE) == counted
