"""POPE's questions against small worlds worked out by hand, a port of the published rule, and the official files."""

import json
import logging
import re
from collections import Counter

import numpy as np
import pytest

from datasets_scripts import load_rows
from datasets_scripts.pope_questions import STRATEGIES, TEMPLATE, pope_questions, questions_about
from datasets_scripts.scene_language import questions
from datasets_scripts.scenes import scenes


# in pictures: cat 3, dog 3, bus 2, owl 2, hat 1, ant 1
WORLD = {
    "a": ["cat", "dog"],
    "b": ["cat", "dog", "bus"],
    "c": ["cat", "owl"],
    "d": ["bus", "ant", "dog"],
    "e": ["owl", "hat"],
}
ALPHABET = {f"{i:02}": [f"thing {i}"] for i in range(40)}


def asked(rows: list[dict], answer: str, image_id: str | None = None) -> list[str]:
    """The names that are asked of."""
    some = [row for row in rows if row["answer"] == answer and image_id in (None, row["image_id"])]
    return [re.fullmatch(r"Is there an? (.+) in the image\?", row["question"])[1] for row in some]


def absent(strategy: str, world: dict, **options) -> dict[str, str]:
    rows = pope_questions(world, [strategy], **{"per_image": 1} | options)
    return {image_id: " ".join(asked(rows, "no", image_id)) for image_id in world}


def random_world(seed: int, pictures: int = 40, kinds: int = 14) -> dict[str, list[str]]:
    rng = np.random.default_rng(seed)
    names = [f"{'aeiou'[i % 5]}{i:02}" for i in range(kinds)]
    return {
        f"{i:03}": [str(name) for name in rng.choice(names, rng.integers(3, 8), replace=False)] for i in range(pictures)
    }


def test_what_is_there_is_asked_of_in_its_order_and_what_is_not_after_each():
    rows = pope_questions({"7": ["dog", "owl", "cat"], "8": ["bus", "hat", "ant"]}, ["popular"], per_image=2)
    assert rows[0] == {
        "image_id": "7",
        "question": "Is there a dog in the image?",
        "answer": "yes",
        "strategy": "popular",
    }
    assert [row["image_id"] for row in rows] == ["7"] * 4 + ["8"] * 4
    assert [row["answer"] for row in rows] == ["yes", "no"] * 4
    assert asked(rows, "yes", "7") == ["dog", "owl"]
    assert asked(rows, "no", "7") == ["ant", "bus"]  # all equally frequent: by the alphabet


def test_popular_asks_of_what_most_pictures_hold():
    # of the frequent ones cat, dog (3 each), bus, owl (2 each), the first that is not there
    assert absent("popular", WORLD) == {"a": "bus", "b": "owl", "c": "dog", "d": "cat", "e": "cat"}


def test_popular_asks_of_nothing_twice():
    rows = pope_questions(WORLD, ["popular"], per_image=2)
    assert asked(rows, "no", "a") == ["bus", "owl"]
    assert asked(rows, "no", "b") == ["owl", "ant"]
    assert asked(rows, "no", "e") == ["cat", "dog"]


def test_adversarial_asks_of_what_keeps_company_with_the_object_just_asked_of():
    # beside cat: dog 2, bus 1, owl 1; beside bus: dog 2, ant 1, cat 1; beside owl: cat 1, hat 1
    assert absent("adversarial", WORLD) == {"a": "bus", "b": "owl", "c": "dog", "d": "cat", "e": "cat"}
    rows = pope_questions(WORLD, ["adversarial"], per_image=2)
    # e: owl -> cat; hat has only owl for company, which is there -> any
    assert asked(rows, "no", "e")[0] == "cat" and asked(rows, "no", "e")[1] in ("dog", "bus", "ant")
    # b: cat -> owl; dog keeps company with bus, cat, ant: ant
    assert asked(rows, "no", "b") == ["owl", "ant"]
    # a: cat -> bus (as often as owl); dog -> bus is taken, ant
    assert asked(rows, "no", "a") == ["bus", "ant"]


def test_adversarial_differs_from_popular_where_company_does():
    world = {str(i): ["road", "car"] for i in range(4)} | {"4": ["sea", "sky"], "5": ["sea", "boat"]}
    assert absent("popular", world)["4"] == "car"
    assert absent("adversarial", world)["4"] == "boat"


def test_random_asks_of_any_and_of_others_for_another_seed():
    chosen = absent("random", ALPHABET)
    assert all(chosen[image_id] not in ("", *ALPHABET[image_id]) for image_id in ALPHABET)
    assert len(set(chosen.values())) > 20
    assert absent("random", ALPHABET) == chosen != absent("random", ALPHABET, seed=1)
    many = Counter(absent("random", {"a": ["x"], "b": ["y"], "c": ["z"]}, seed=seed)["a"] for seed in range(200))
    assert many.keys() == {"y", "z"} and min(many.values()) > 70


def test_questions_do_not_depend_on_the_order_of_pictures():
    turned = dict(reversed(WORLD.items()))
    assert list(turned) != list(WORLD)
    assert pope_questions(turned, per_image=2) == pope_questions(WORLD, per_image=2)


def test_an_object_listed_twice_counts_once():
    twice = WORLD | {"d": ["bus", "bus", "ant", "bus", "dog", "ant"]}
    assert pope_questions(twice, per_image=2) == pope_questions(WORLD, per_image=2)


def test_the_strategies_follow_each_other_and_ask_alike_of_what_is_there():
    rows = pope_questions(WORLD, per_image=2)
    assert [row["strategy"] for row in rows] == [strategy for strategy in STRATEGIES for _ in range(20)]
    parts = [[row for row in rows if row["strategy"] == strategy] for strategy in STRATEGIES]
    assert parts == [pope_questions(WORLD, [strategy], per_image=2) for strategy in STRATEGIES]
    assert asked(parts[0], "yes") == asked(parts[1], "yes") == asked(parts[2], "yes")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_object_is_asked_of_twice_and_the_answers_are_true(strategy, seed):
    world = random_world(seed)
    rows = pope_questions(world, [strategy])
    assert len(rows) == 6 * len(world)
    for image_id, there in world.items():
        yes, no = asked(rows, "yes", image_id), asked(rows, "no", image_id)
        assert yes == there[:3] and len(set(no)) == 3 and not set(no) & set(there)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strategy", ["popular", "adversarial"])
def test_questions_equal_a_port_of_the_published_rule(strategy, seed):
    world = random_world(seed)
    rows, published_names = pope_questions(world, [strategy]), port(world, strategy)
    assert sum(name is not None for names in published_names.values() for name in names) > 90  # of 120
    for image_id, names in published_names.items():
        for ours, published in zip(asked(rows, "no", image_id), names, strict=True):
            assert published in (ours, None)  # None: drawn


def port(world: dict[str, list[str]], strategy: str) -> dict[str, list[str | None]]:
    """What the paper's program asks of that is not there; equally frequent ones by the alphabet."""
    counts: dict[str, int] = {}
    beside: dict[str, dict[str, int]] = {}
    for there in world.values():
        for one in there:
            counts[one] = counts.get(one, 0) + 1
            for other in there:
                if one != other:
                    beside.setdefault(one, {})
                    beside[one][other] = beside[one].get(other, 0) + 1
    chosen = {}
    for image_id, there in world.items():
        history, chosen[image_id] = [], []
        for one in there[:3]:
            among = counts if strategy == "popular" else beside[one]
            for name in sorted(sorted(among), key=among.get, reverse=True):
                if name not in history and name not in there:
                    break
            else:
                name = None
                chosen[image_id] += [None] * (3 - len(chosen[image_id]))
                break
            history.append(name)
            chosen[image_id].append(name)
    return chosen


class TestLeftOut:
    def test_pictures_with_too_few_objects_are_counted_and_do_not_count(self, caplog):
        world = WORLD | {"f": ["hat"], "g": []}
        with caplog.at_level(logging.WARNING):
            assert pope_questions(world, per_image=2) == pope_questions(WORLD, per_image=2)
        assert [record.message for record in caplog.records] == ["2 pictures with fewer than 2 objects left out (f, g)"]

    def test_pictures_that_hold_nearly_everything_are_counted(self, caplog):
        with caplog.at_level(logging.WARNING):
            rows = pope_questions(WORLD | {"f": ["cat", "dog", "bus", "owl", "hat"]}, ["popular"], per_image=2)
        assert rows == pope_questions(WORLD, ["popular"], per_image=2)
        text = "1 pictures in which fewer than 2 of all objects are absent left out (f)"
        assert [record.message for record in caplog.records] == [text]

    def test_one_left_out_can_crowd_another(self, caplog):
        # d holds all but one; without it, its ant is no object any more, and c holds all but one
        world = {"a": ["x", "y"], "b": ["y", "z"], "c": ["x", "y", "z"], "d": ["x", "y", "z", "ant"]}
        with caplog.at_level(logging.WARNING):
            rows = pope_questions(world, ["random"], per_image=1)
        assert {row["image_id"] for row in rows} == {"a", "b"}
        assert "2 pictures in which fewer than 1" in caplog.text and "(d, c)" in caplog.text

    def test_many_are_named_by_the_first(self, caplog):
        with caplog.at_level(logging.WARNING):
            pope_questions(WORLD | {f"z{i}": ["x"] for i in range(9)}, ["random"], per_image=2)
        assert "9 pictures with fewer than 2 objects left out (z0, z1, z2, …)" in caplog.text

    def test_if_none_is_left_it_says_why(self):
        with pytest.raises(ValueError, match="none of 2 pictures.* 1 have fewer than 1 objects, in 1 fewer than 1 of"):
            pope_questions({"a": ["x", "y"], "b": []}, per_image=1)
        with pytest.raises(ValueError, match="none of 5 pictures.* 3 have fewer than 3"):
            pope_questions(WORLD)
        with pytest.raises(ValueError, match="none of 0 pictures"):
            pope_questions({})


@pytest.mark.parametrize(
    ("name", "article"),
    [
        *((name, "an") for name in ("umbrella", "apple", "hour glass", "Eiffel tower", "unimportant thing", "onion", "honest man")),
        *((name, "a") for name in ("dog", "unicycle", "utensil", "university", "one-way sign", "ukulele", "European flag", "ewe")),
    ],
)  # fmt: skip
def test_the_article_goes_by_the_sound(name, article):
    rows = pope_questions({"1": [name], "2": ["cat"]}, ["random"], per_image=1)
    assert rows[0]["question"] == f"Is there {article} {name} in the image?"


def test_another_template_changes_the_question_only():
    rows = pope_questions(WORLD, per_image=1, template="Do you see {} here?")
    usual = pope_questions(WORLD, per_image=1)
    middle = [row["question"][len("Is there ") : -len(" in the image?")] for row in usual]
    assert [row["question"] for row in rows] == [f"Do you see {name} here?" for name in middle]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategies": ["popular", "common"]}, "no strategy 'common'; there are random, popular, adversarial"),
        ({"strategies": "popular"}, "no strategy 'p'"),
        ({"per_image": 0}, "per_image is 0"),
        ({"objects": {"a": "cat"}}, "picture a: its objects are the string 'cat'"),
    ],
)
def test_what_cannot_be_asked_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        pope_questions(**{"objects": WORLD} | change)


@pytest.fixture(scope="module")
def world_rows(tmp_path_factory):
    options = {"num_train": 1, "num_eval": 60, "cache_dir": str(tmp_path_factory.mktemp("scenes"))}
    return load_rows("scenes", "test", **options)


class TestRows:
    def test_of_scenes_one_colour_and_shape_is_asked_of_as_the_world_asks(self, world_rows):
        rows, how = questions_about(world_rows)
        assert how["per_image"] == 1 and how["pictures"] == 60  # every scene holds an object: none is left out
        assert len(rows) == 3 * 2 * 60
        kinds = {scene.image_id: {(o.colour, o.shape) for o in scene.objects} for scene in scenes(0, "test", 60)}
        world = {
            one["question"]
            for scene in scenes(0, "test", 3000)
            for one in questions(scene)
            if one["kind"] == "existence"
        }
        for row in rows:
            colour, shape = re.fullmatch(r"Is there an? (\w+) (\w+) in the picture\?", row["question"]).groups()
            assert ((colour, shape) in kinds[row["image_id"]]) == (row["answer"] == "yes")
            assert row["question"] in world

    def test_of_scenes_not_always_the_topmost_is_asked_of(self, world_rows):
        rows, _ = questions_about(world_rows)
        told = {row["image_id"]: row["question"] for row in rows if row["answer"] == "yes"}
        firsts = [row["regions"][0]["phrase"].split(" ", 1)[1] in told[row["image_id"]] for row in world_rows]
        assert 0.3 < sum(firsts) / 60 < 0.9

    def test_of_others_three_categories_are_asked_of_by_the_papers_template(self, world_rows):
        rows = world_rows.remove_columns(["scene"]).select(range(5))
        phrases = [
            ["umbrella", "dog", "cat"],
            ["hat", "dog", "cat"],
            ["hat", "ant", "dog"],
            ["dog"],
            ["owl", "ox", "ape", "elk"],
        ]
        rows = rows.map(
            lambda _, i: {"regions": [{"box": [0, 0, 1, 1], "phrase": name} for name in phrases[i]]}, with_indices=True
        )
        asked, how = questions_about(rows)
        assert asked == pope_questions(dict(zip(rows["image_id"], phrases, strict=True)))
        assert how["template"] == TEMPLATE and how["per_image"] == 3 and (how["pictures"], how["left_out"]) == (4, 1)

    def test_the_fingerprint_is_of_the_questions_and_the_seed_changes_them(self, world_rows):
        asked, how = questions_about(world_rows)
        backwards = questions_about(world_rows.select(range(59, -1, -1)))
        assert backwards == (asked, how)
        assert questions_about(world_rows, seed=1)[1]["fingerprint"] != how["fingerprint"]
        assert questions_about(world_rows.select(range(59)))[1]["fingerprint"] != how["fingerprint"]

    def test_several_rows_of_a_picture_are_one_unless_they_disagree(self, world_rows):
        twice = world_rows.select([0, 1, 2, 0, 1])
        assert questions_about(twice) == questions_about(world_rows.select([0, 1, 2]))
        name = world_rows[0]["image_id"]
        wrong = twice.map(lambda row, i: row | {"image_id": name if i == 1 else row["image_id"]}, with_indices=True)
        with pytest.raises(ValueError, match=f"picture {name} is in two rows whose regions differ"):
            questions_about(wrong)

    def test_rows_without_regions_are_refused(self, world_rows):
        for rows in (world_rows.remove_columns(["regions"]), world_rows.map(lambda _: {"regions": []})):
            with pytest.raises(ValueError, match="no row has any; leave pope out"):
                questions_about(rows)


@pytest.mark.real_data
class TestOfficialFiles:
    @pytest.fixture(scope="class")
    def files(self, real_data):
        paths = {strategy: real_data / "pope" / f"coco_pope_{strategy}.json" for strategy in STRATEGIES}
        return {
            strategy: [json.loads(line) for line in path.read_text().splitlines()] for strategy, path in paths.items()
        }

    def test_three_are_there_and_three_not_in_turns_in_every_picture(self, files):
        for rows in files.values():
            assert len(rows) == 3000 and len({row["image"] for row in rows}) == 500
            for start in range(0, 3000, 6):
                some = rows[start : start + 6]
                assert len({row["image"] for row in some}) == 1 and len({row["text"] for row in some}) == 6
                assert [row["label"] for row in some] == ["yes", "no"] * 3

    def test_the_questions_are_ours_for_the_names_in_them(self, files):
        others = set()
        for strategy, rows in files.items():
            for start in range(0, 3000, 6):
                texts = [row["text"] for row in rows[start : start + 6]]
                names = [re.fullmatch(r"Is there an? (.+) in the image\?", text)[1] for text in texts]
                # a world in which these three are there and those three are all that is absent
                ours = pope_questions({"it": names[0::2], "another": names[1::2]}, [strategy])
                ours = {row["question"] for row in ours if row["image_id"] == "it"}
                others |= {(strategy, text) for text in ours ^ set(texts)}
        wrong = {("random", f"Is there {article} traffic light in the image?") for article in ("a", "an")}
        assert others == wrong  # once, the official file itself has "an traffic light"

    def test_ours_of_real_pictures_have_the_same_structure(self, real_data):
        regions = {}
        for path in sorted((real_data / "coco2017" / "annotations").glob("instances_*.json")):
            content = json.loads(path.read_text())
            names = {category["id"]: category["name"] for category in content["categories"]}
            for row in content["annotations"]:
                regions.setdefault(str(row["image_id"]), []).append(names[row["category_id"]])
        rows = pope_questions(regions)
        asked_about = {image_id for image_id, there in regions.items() if len(set(there)) >= 3}
        assert len(asked_about) > 30 and {row["image_id"] for row in rows} == asked_about
        assert len(rows) == 3 * 6 * len(asked_about)
        for start in range(0, len(rows), 6):
            some = rows[start : start + 6]
            assert len({row["image_id"] for row in some}) == 1 and len({row["question"] for row in some}) == 6
            assert [row["answer"] for row in some] == ["yes", "no"] * 3
