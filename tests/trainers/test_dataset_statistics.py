"""What is counted in a dataset: words, spreads and histograms by hand; near-duplicates against all pairs compared one by one."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from trainers.dataset_statistics import (
    BINS,
    FIELDS,
    SIDE,
    groups,
    heard,
    histogram,
    near_pairs,
    signature,
    spread,
    words,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Don't STOP: a red-haired girl’s dog!", ["don't", "stop", "a", "red-haired", "girl’s", "dog"]),
        ("two  cats,\n2 <b>dogs</b>…", ["two", "cats", "2", "b", "dogs", "b"]),
        ("Cafe\u0301 - CAFÉ", ["café", "café"]),  # an e with an accent put on it, and an é
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowels that are marks on letters
        ("猫です", ["猫", "で", "す"]),
        ("?! …", []),
    ],
)
def test_words_are_what_people_of_any_script_take_for_words(text, found):
    assert words(text) == found


def test_a_spread_is_what_one_computes_by_hand():
    assert spread([4, 1, 3, 2, 5]) == {
        "mean": 3.0, "min": 1.0, "p5": 1.2, "p25": 2.0, "median": 3.0, "p75": 4.0, "p95": 4.8, "max": 5.0,
    }  # fmt: skip
    assert spread([]) is None


def test_whole_numbers_have_bins_of_their_own_and_splits_share_them():
    drawn = histogram({"train": [1, 1, 2, 4], "test": [2], "none": []})
    assert drawn["edges"] == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert drawn["counts"] == {"train": [2, 1, 0, 1], "test": [0, 1, 0, 0]}
    assert drawn["beyond"] == {"train": 0, "test": 0}
    assert histogram({"none": []}) is None


def test_a_value_far_out_is_counted_and_does_not_hide_the_others():
    values = [i % 10 for i in range(1000)] + [100_000]
    drawn = histogram({"train": values})
    assert drawn["beyond"]["train"] == 1 and sum(drawn["counts"]["train"]) == 1000
    assert drawn["counts"]["train"][:10] == [100] * 10
    wide = histogram({"train": np.linspace(0, 1, 501)})
    assert len(wide["counts"]["train"]) == BINS and sum(wide["counts"]["train"]) == 501
    assert histogram({"train": [0.25, 0.25]})["counts"] == {"train": [2]}


def scene(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A picture with large and small things in it, as photographs have."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for x, y, side in rng.integers(10, 200, (12, 3)):
        draw.ellipse((x, y, x + side // 3, y + side // 3), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return image


def encoded(image: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def pairs_of(images: list[Image.Image], **options) -> list[list[int]]:
    signed = [signature(image) for image in images]
    patterns = np.array([one.pattern for one in signed], dtype=np.uint64)
    colours = np.frombuffer(b"".join(one.colours for one in signed), dtype=np.uint8).reshape(len(images), -1)
    return near_pairs(patterns, colours, **options).tolist()


def test_a_picture_encoded_again_or_resized_is_nearly_the_same_and_no_other_is():
    whole = [scene(seed) for seed in range(40)]
    small = whole[7].resize((160, 120), Image.Resampling.LANCZOS)
    mirrored = whole[9].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    again = [encoded(whole[3], 40), small, encoded(small, 60), mirrored, encoded(whole[11].resize((224, 224)), 75)]
    assert pairs_of(whole + again) == [[3, 40], [7, 41], [7, 42], [11, 44], [41, 42]]
    assert signature(Image.new("RGB", (2, 8))).pixels != signature(Image.new("RGB", (4, 4))).pixels
    assert signature(whole[3]).pixels == signature(whole[3].copy()).pixels != signature(again[0]).pixels


def drawn(side: int, colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).rectangle((10, 10, 10 + side, 10 + side), fill=colour)
    return image


@pytest.mark.parametrize("side", [30, 7])  # half of the picture; one field, so that the average says little
def test_drawings_laid_out_alike_in_other_colours_are_not_the_same(side):
    """To a hash of grey they are: this red is as light as this green."""
    red, green = drawn(side, (200, 0, 0)), drawn(side, (0, 102, 0))
    assert signature(red).pattern == signature(green).pattern
    assert pairs_of([red, green]) == []


def test_plain_pictures_of_other_colours_are_not_the_same():
    """Nowhere far apart, but everywhere a little."""
    grain = np.random.default_rng(1).integers(0, 3, (64, 64, 3), dtype=np.uint8)
    sea, wood = (Image.fromarray(grain + np.array(base, dtype=np.uint8)) for base in ([20, 40, 60], [28, 48, 52]))
    assert signature(sea).pattern == signature(wood).pattern
    assert pairs_of([sea, wood]) == [] and pairs_of([sea, wood], tolerance=(16, 9)) == [[0, 1]]


def test_a_pattern_is_the_lowest_frequencies_above_their_median():
    from scipy.fft import dctn

    image = scene(1)
    grey = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=float) @ [0.299, 0.587, 0.114]
    low = dctn(grey, type=2)[:8, :8].ravel()
    low[0] = np.inf  # the mean
    bits = "".join("1" if one else "0" for one in low > np.median(low))
    assert f"{signature(image).pattern:064b}" == bits and bits[0] == "1" and bits.count("1") == 32
    assert signature(image).contrast == pytest.approx(grey.std(), rel=1e-4)


@pytest.mark.parametrize("distance", [0, 1, 3, 6, 9])
def test_banding_finds_every_pair_that_comparing_all_with_all_finds(distance, monkeypatch):
    monkeypatch.setattr("trainers.dataset_statistics.BLOCK", 64)  # so that buckets are compared in several blocks
    rng = np.random.default_rng(distance)
    seeds = rng.integers(0, 2**63, 40, dtype=np.uint64)
    patterns = seeds[rng.integers(0, 40, 600)]
    for _ in range(4):  # up to four bits turned each, near the ends of bands too
        patterns = patterns ^ (np.uint64(1) << rng.choice([0, 8, 9, 20, 31, 32, 47, 62], 600).astype(np.uint64))
    colours = rng.integers(0, 2, (600, 1), dtype=np.uint8).repeat(FIELDS * FIELDS * 3, axis=1) * 100
    near = np.bitwise_count(patterns[:, None] ^ patterns[None]) <= distance
    near &= colours[:, :1] == colours[None, :, 0]
    expected = np.argwhere(np.triu(near, 1))
    assert len(expected) > 10
    assert near_pairs(patterns, colours, distance).tolist() == expected.tolist()


def test_near_pairs_of_nothing_are_none_and_a_distance_of_all_bits_is_refused():
    nothing = np.empty(0, dtype=np.uint64), np.empty((0, FIELDS * FIELDS * 3), dtype=np.uint8)
    assert near_pairs(*nothing).shape == (0, 2)
    with pytest.raises(ValueError, match="below 63 bits; got 63"):
        near_pairs(*nothing, distance=63)


def test_groups_are_linked_by_however_many_pairs():
    chain = np.array([[5, 6], [0, 9], [6, 2], [2, 9], [3, 4]])
    assert groups(10, chain).tolist() == [0, 1, 0, 3, 3, 0, 0, 7, 8, 0]
    assert groups(3, np.empty((0, 2), dtype=int)).tolist() == [0, 1, 2]
    line = np.stack([np.arange(999), np.arange(1, 1000)], axis=1)
    assert not groups(1000, np.random.default_rng(0).permutation(line)).any()


def test_sounds_are_silent_or_clipped_by_what_is_in_them():
    wave = np.sin(np.linspace(0, 100, 8000)).astype(np.float32) * 0.5
    told = heard(wave, 4000)
    assert (told.seconds, told.rate, told.channels, told.silent, told.clipped) == (2.0, 4000, 1, False, False)
    assert heard(np.stack([wave, wave], axis=1), 8000)[:3] == (1.0, 8000, 2)
    assert heard(wave / 1000, 4000).silent and not heard(wave / 400, 4000).silent
    click = np.zeros(4000, dtype=np.float32)
    assert heard(click, 4000).silent
    click[7] = 0.5
    assert not heard(click, 4000).silent
    loud = np.clip(wave * 4, -1, 1)
    assert heard(loud, 4000).clipped
    wave[:8] = 1.0  # a thousandth of the samples: not more than it
    assert not heard(wave, 4000).clipped
    wave[8] = -1.0
    assert heard(wave, 4000).clipped
    assert heard(wave, 4000).samples == heard(wave.copy(), 4000).samples != heard(wave, 8000).samples
