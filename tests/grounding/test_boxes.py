"""Boxes, by hand."""

import pytest
from PIL import Image

from grounding.boxes import clipped, crop, iou, suppressed, unfit


def test_overlap_by_hand():
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0  # they touch
    assert iou((0, 0, 0, 10), (0, 0, 0, 10)) == 0


def test_a_box_is_cut_to_its_picture():
    assert clipped((-5, 2, 30, 50), 20, 40) == (0, 2, 20, 40)
    assert clipped((25, 0, 30, 10), 20, 40) == (20, 0, 20, 10)


@pytest.mark.parametrize(
    "box,reason",
    [
        ((0, 0, 10, 10), ""),
        ((0, 0, 2, 2), "too small"),  # 4 of 400
        ((0, 0, 20, 19.5), "nearly the whole picture"),
        ((20, 0, 20, 10), "outside the picture"),
        ((8, 8, 2, 2), "outside the picture"),  # turned over: it has no area
    ],
)
def test_what_is_no_region_has_a_reason(box, reason):
    assert unfit(box, 20, 20, 0.02, 0.95) == reason


def test_the_better_of_two_that_overlap_is_kept():
    boxes = [(0, 0, 10, 10), (0, 0, 10, 9), (20, 20, 30, 30), (0, 0, 10, 4)]
    assert suppressed(boxes, [0.5, 0.9, 0.1, 0.2], 0.5) == {0}
    assert suppressed(boxes, [0.9, 0.5, 0.1, 0.2], 0.3) == {1, 3}
    assert suppressed([], [], 0.5) == set()


def test_a_crop_has_a_margin_of_its_longer_side_within_the_picture():
    picture = Image.new("RGB", (100, 50))
    picture.putpixel((40, 20), (255, 0, 0))
    cut = crop(picture, (40, 20, 60, 30), 0.1)
    assert cut.size == (24, 14) and cut.getpixel((2, 2)) == (255, 0, 0)
    assert crop(picture, (90, 40, 100, 50), 0.5).size == (15, 15)
    assert crop(picture, (99.9, 49.9, 100, 50), 0).size == (1, 1)
