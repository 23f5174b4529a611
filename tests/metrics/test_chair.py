"""CHAIR against values worked out by hand, a port of the published rule, and forms seen from the programs it is compared with."""

import json
import re
import sys
import types
from pathlib import Path

import evaluate
import numpy as np
import pytest

from datasets_scripts.scene_description import SHAPES
from datasets_scripts.scene_language import captions, preferences
from datasets_scripts.scenes import scenes


CHAIR = Path(__file__).parents[2] / "metrics" / "chair"
FIGURES = ("chair_i", "chair_s", "chair_recall", "chair_precision", "chair_f1", "chair_length")
PREDICTIONS = ["Two dogs and a dog on a couch.", "A man eats pizza.", "It is nice."]
REFERENCES = [["a puppy on a chair", "dogs"], ["a woman eats"], ["a red bus"]]
OBJECTS = [["dog", "chair"], ["person", "bowl"], ["bus"]]
# a list as the official one is written: two spaces before " motor bike", three words, a name with a capital, a blank line,
# "plane" in two lines, spaces at an end
SYNONYMS = """\
person, man, woman, child, baby, passenger, people
motorcycle, scooter,  motor bike, motor cycle
airplane, plane, jet
train, locomotive, plane

bird, goose
dog, puppy
bear, panda
tie, bow, bow tie
chair, seat, stool
toilet
hot dog, hotdog
wine glass
dining table, table
oven, stove top oven
cell phone, iPhone, mobile phone  \n"""
# the form in which each morphology looks a word up: english, wordnet, pattern; seen from nltk (tagger and lemmatizer) and from
# pattern.en.singularize, those of english by hand
FORMS = {
    "dogs": "dog dog dog",
    "buses": "bus bus bus",
    "bus": "bus bus bu",
    "glasses": "glass glass glass",
    "ties": "tie tie ty",
    "canoes": "canoe canoe cano",
    "knives": "knife knife knife",
    "loaves": "loaves loaves loave",
    "ponies": "pony pony pony",
    "skies": "skies skies sky",
    "men": "man men man",
    "women": "woman woman woman",
    "people": "people people person",
    "vases": "vase vas vase",
    "benches": "bench bench bench",
    "toothbrushes": "toothbrush toothbrush toothbrush",
    "geese": "goose goose goose",
    "mice": "mouse mouse mouse",
    "scissors": "scissors scissors scissors",
    "smartphones": "smartphone smartphones smartphone",
    "skiing": "skiing ski skiing",
    "seated": "seated seat seated",
    "does": "does does do",
    "their": "their their their",
}
# what nltk.word_tokenize gives for the text in lower case, its two kinds of quotation marks written as one
TOKENS = {
    "A man's dog, two wine glasses. It isn't 3:30!": "a man 's dog , two wine glasses . it is n't 3:30 !",
    "They can't; he won't, she'll.": "they ca n't ; he wo n't , she 'll .",
    "the dogs' bowls (and cups) - well-known/unknown": "the dogs ' bowls ( and cups ) - well-known/unknown",
    "I cannot, gonna gimme": "i can not , gon na gim me",
    "a cat. 2 dogs. 3.5 cats. the end": "a cat . 2 dogs . 3.5 cats . the end",
    "in St. John's at 5 p.m. on a bench": "in st. john 's at 5 p.m. on a bench",
    "at 7. the train": "at 7. the train",
    "“stop” – a—b … 'sign' \"x\"": "“ stop ” – a — b … ' sign ' \" x \"",
    "a dog...and, 1,000 cats?!": "a dog ... and , 1,000 cats ? !",
    "a cat.\n\nA dog.": "a cat . a dog .",
    "don't. won't": "do n't . wo n't",
    "#1 @home 5% & more*": "# 1 @ home 5 % & more *",
    "a bird's.": "a bird 's .",
    "x's: y's": "x 's : y 's",
    "the 'quoted' word": "the ' quoted ' word",
    "naïve café's": "naïve café 's",
    " . ": ".",
    "": "",
}


@pytest.fixture(scope="module")
def chair() -> evaluate.Metric:
    return evaluate.load(str(CHAIR), keep_in_memory=True)


@pytest.fixture(scope="module")
def code(chair) -> types.ModuleType:
    """The module that `evaluate` made of the folder."""
    return sys.modules[type(chair).__module__]


@pytest.fixture
def synonyms(tmp_path) -> Path:
    path = tmp_path / "synonyms.txt"
    path.write_text(SYNONYMS)
    return path


@pytest.fixture
def named(code):
    """The objects that a caption names, in the default vocabulary."""
    read = code.reader(code.coco(), "english")
    return lambda caption: read(caption)[0]


def figures(result: dict) -> dict[str, float]:
    return {name: value for name, value in result.items() if not name.endswith("_ci95")}


def varied() -> dict[str, list]:
    """Sixty pictures, no two alike, so that every resample has its own figures."""
    words = np.random.default_rng(0).choice("a dog cat bus table sits on man kite".split(), size=(60, 3, 7))
    texts = [[" ".join(caption) for caption in picture] for picture in words]
    return {"predictions": [some[0] for some in texts], "references": [some[1:] for some in texts]}


def test_figures_are_what_counting_by_hand_gives(chair):
    result = figures(chair.compute(predictions=PREDICTIONS, references=REFERENCES, objects=OBJECTS))
    # there: {dog, chair}, {person, bowl}, {bus}
    # mentions: dog, dog, couch | person, pizza | none; invented: couch | pizza
    assert result == pytest.approx(
        {
            "chair_i": 2 / 5,
            "chair_s": 2 / 3,
            "chair_recall": 2 / 5,  # dog and person of five
            "chair_precision": 2 / 4,  # of dog, couch, person, pizza
            "chair_f1": 2 * (2 / 4) * (2 / 5) / (2 / 4 + 2 / 5),
            "chair_length": (9 + 5 + 4) / 3,  # periods are counted
        }
    )


def test_a_wrong_object_counts_as_often_as_it_is_named(chair):
    result = chair.compute(predictions=["a cat, a cat and a dog"], references=[["dogs"]])
    assert result["chair_i"] == pytest.approx(2 / 3)
    assert result["chair_precision"] == pytest.approx(1 / 2)


def test_captions_and_objects_together_are_the_truth(chair):
    ask = {"predictions": ["a dog and a cat"], "references": [["a puppy"]]}
    assert chair.compute(**ask)["chair_i"] == 0.5
    assert chair.compute(**ask, objects=[["cat"]])["chair_i"] == 0
    assert chair.compute(predictions=["a dog and a cat"], references=[[]], objects=[["cat"]])["chair_i"] == 0.5
    assert chair.compute(**ask, objects=[["cat", "a red bus"]])["chair_recall"] == pytest.approx(2 / 3)


def test_naming_nothing_invents_nothing(chair):
    with np.errstate(all="raise"):
        result = chair.compute(predictions=["", "it is nice"], references=[["a dog"], ["nothing"]])
    assert figures(result) == {**dict.fromkeys(FIGURES, 0.0), "chair_length": 1.5}
    assert all(result[f"{name}_ci95"] == [0, 0] for name in FIGURES[:-1])


def test_intervals_resample_the_sums_of_a_ratio(chair):
    predictions = ["a cat"] + ["a dog and a bird and a dog and a tie"] * 2
    references = [["nothing", "a kite"], ["a dog"], ["a bird and a tie"]]
    result = chair.compute(predictions=predictions, references=references, n_bootstrap=200, seed=3)
    invented, mentions = np.array([1, 2, 2]), np.array([1, 4, 4])  # the mean of their ratios would be 2/3, not 5/9
    right, there, named = np.array([0, 1, 2]), np.array([1, 1, 2]), np.array([1, 3, 3])
    rng = np.random.default_rng(3)
    draws = [rng.integers(3, size=3, dtype=np.uint8) for _ in range(200)]
    expected = {
        "chair_i": [invented[drawn].sum() / mentions[drawn].sum() for drawn in draws],
        "chair_recall": [right[drawn].sum() / there[drawn].sum() for drawn in draws],
        "chair_f1": [2 * right[drawn].sum() / (there[drawn].sum() + named[drawn].sum()) for drawn in draws],
    }
    assert result["chair_i"] == pytest.approx(5 / 9)
    for name, values in expected.items():
        assert result[f"{name}_ci95"] == pytest.approx(np.percentile(values, [2.5, 97.5]).tolist())


@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("Three men in a boat with two hot dogs", ["person", "boat", "hot dog"]),
        ("a baby elephant and its mother elephant", ["elephant", "elephant"]),
        ("a passenger train, passengers on the train tracks", ["train", "person"]),
        ("a player at home plate with a bat and a tennis ball", ["person", "baseball bat", "sports ball"]),
        ("the seat of a toilet; toilet seats, toilet paper", ["toilet", "toilet"]),
        ("wine glasses, wineglasses and glasses", ["wine glass", "wine glass"]),
        ("a bow tie, a necktie and tied shoes", ["tie", "tie"]),
        ("a teddy bear, a polar bear", ["teddy bear", "bear"]),
        ("a couple of knives, scissors, skis and buses under cloudy skies", ["knife", "scissors", "skis", "bus"]),
        ("a game of baseball, a plate of chicken, a few meters away", []),
        ("a man's dogs' bowls", ["person", "dog", "bowl"]),
    ],
)
def test_a_caption_names_these_objects(named, caption, objects):
    assert named(caption) == objects


def test_the_list_has_each_of_80_objects_and_no_word_twice(code, named):
    lines = code.OBJECTS.replace("\n    ", " ").strip().splitlines()
    words = [word.strip() for line in lines for word in re.split("[:,]", line) if word.strip()]
    assert len(lines) == 80
    assert [word for word in words if words.count(word) > 1] == []
    assert [word for word in words if word != word.lower() or len(word.split()) > 2] == []
    vocabulary = code.coco()
    assert sorted(vocabulary.names) == sorted(words)
    assert {word: named(f"here is one {word} .") for word in words} == {
        word: [vocabulary.names[word]] for word in words
    }


def test_what_is_no_object_is_neither_of_its_words(code, named):
    pairs = [" ".join(pair.split()) for pair in code.OTHERS.split(",")]
    assert len(pairs) > 50
    assert [pair for pair in pairs if named(f"one {pair} .")] == []
    assert [pair for pair in pairs if not any(named(word) for word in pair.split())] == []  # others need no mention


class TestTheOfficialList:
    """With `synonyms`, the official program's rules and its quirks."""

    @pytest.fixture
    def named(self, code, synonyms):
        def named(caption: str, morphology: str = "wordnet") -> list[str]:
            return code.reader(code.official(synonyms), morphology)(caption)[0]

        return named

    def test_words_mean_the_head_of_their_line(self, named):
        assert named("a woman, two puppies and some people") == ["person", "dog", "person"]

    def test_the_later_line_wins(self, named):
        assert named("a plane and a jet") == ["train", "airplane"]

    def test_a_word_with_a_space_too_many_is_never_found(self, named):
        assert named("a motor bike and a motor cycle") == ["motorcycle"]

    def test_three_words_and_capitals_are_never_found(self, named):
        assert named("a stove top oven and an iPhone") == ["oven"]

    def test_spaces_at_the_end_of_a_line_do_not_matter(self, named):
        assert named("a mobile phone") == ["cell phone"]

    def test_only_the_programs_own_compounds_are_merged(self, named):
        assert named("a dining table and a hot dog") == [
            "dining table",
            "hot dog",
        ]  # by "table": "dining table" is two words
        assert named("hot dogs") == ["hot dog"]
        assert named("a dining room") == []

    def test_compounds_are_merged_from_the_left(self, named):
        assert named("a hot dog puppy") == ["hot dog", "dog"]
        assert named("a baby baby bear") == ["person", "bear"]  # "baby baby" is none, "baby bear" is

    def test_a_qualified_animal_or_vehicle_is_no_person(self, named):
        assert named("a baby bear, an adult bird and passenger jets") == ["bear", "bird", "airplane"]
        assert named("a baby goose") == ["person", "bird"]  # goose is not among the program's animals

    def test_a_bow_tie_is_one_tie(self, named):
        assert named("a bow tie and a bow") == ["tie", "tie"]

    def test_the_seat_of_a_toilet_is_no_chair(self, named):
        assert named("the seat of a toilet by a stool") == ["toilet", "chair"]
        assert named("a toilet seat and a seat") == ["toilet"]
        assert named("a seat") == ["chair"]

    @pytest.mark.parametrize("morphology", ["english", "wordnet", "pattern"])
    def test_wine_glasses_are_found_in_every_morphology(self, named, morphology):
        assert named("a wine glass and wine glasses", morphology) == ["wine glass", "wine glass"]

    def test_a_merged_compound_is_one_word_long_and_a_dropped_seat_still_counts(self, chair, synonyms):
        ask = {"references": [["a toilet"]], "synonyms": synonyms}
        assert chair.compute(predictions=["a hot dog"], **ask)["chair_length"] == 2
        assert chair.compute(predictions=["a toilet, a seat."], **ask)["chair_length"] == 6

    def test_words_are_read_as_todays_programs_do_unless_told(self, chair, synonyms):
        ask = {"predictions": ["two men"], "references": [["a dog"]], "synonyms": synonyms}
        assert chair.compute(**ask)["chair_i"] == 0
        assert chair.compute(**ask, morphology="pattern")["chair_i"] == 1
        assert chair.compute(predictions=["two men"], references=[["a dog"]])["chair_i"] == 1

    @pytest.mark.parametrize("morphology", ["english", "wordnet", "pattern"])
    def test_figures_equal_a_port_of_the_published_rule(self, chair, synonyms, morphology):
        rng = np.random.default_rng(0)
        words = (
            "a the of and red seat seats toilet toilets hot dog dogs baby adult bear bears jet jets passenger bow tie table "
            "motor bike cycle wine glass glasses plane planes stool geese goose women child puppies pandas , ."
        ).split()
        texts = [[" ".join(rng.choice(words, size=rng.integers(16))) for _ in range(3)] for _ in range(300)]
        objects = [list(rng.choice(["dog", "bear", "tie", "person"], size=rng.integers(3))) for _ in texts]
        predictions, references = [some[0] for some in texts], [some[1:] for some in texts]
        options = {"synonyms": synonyms, "morphology": morphology, "n_bootstrap": 1}
        result = chair.compute(predictions=predictions, references=references, objects=objects, **options)
        assert figures(result) == pytest.approx(port(predictions, references, objects), rel=1e-12)


def port(predictions: list[str], references: list[list[str]], objects: list[list[str]]) -> dict[str, float]:
    """The rule as the paper's program and its ports have it, step by step, on words of which every program makes the same."""
    singular = {"glasses": "glass", "geese": "goose", "women": "woman", "puppies": "puppy"}
    head = {
        word: line.strip().split(", ")[0] for line in SYNONYMS.splitlines() for word in line.strip().split(", ") if word
    }
    merge = {"hot dog": "hot dog", "wine glass": "wine glass", "motor bike": "motor bike", "motor cycle": "motor cycle"}
    merge |= {"bow tie": "tie", "toilet seat": "toilet", "passenger jet": "jet"}
    merge |= {f"{who} {animal}": animal for who in ("baby", "adult") for animal in ("dog", "bear")}

    def read(caption: str) -> tuple[list[str], int]:
        left = [
            singular.get(word, word[:-1] if word[-1] == "s" and word != "glass" else word) for word in caption.split()
        ]
        words = []
        while left:
            first, second = left.pop(0), left[0] if left else ""
            if f"{first} {second}" in merge:
                words.append(merge[f"{first} {second}"])
                left.pop(0)
            else:
                words.append(first)
        length = len(words)
        if "toilet" in words:
            words = [word for word in words if word != "seat"]
        return [head[word] for word in words if word in head], length

    wrong = total = bad = recalled = truth = generated = length = 0
    for said, right, known in zip(predictions, references, objects, strict=True):
        there = {head[name] for name in known}.union(*(read(text)[0] for text in right))
        nodes, words = read(said)
        hallucinated = [node for node in nodes if node not in there]
        wrong, total, bad = wrong + len(hallucinated), total + len(nodes), bad + bool(hallucinated)
        recalled, truth = recalled + len(there & set(nodes)), truth + len(there)
        generated, length = generated + len(set(nodes)), length + words
    precision, recall = recalled / generated, recalled / truth
    f1 = 2 * precision * recall / (precision + recall)
    values = wrong / total, bad / len(predictions), recall, precision, f1, length / len(predictions)
    return dict(zip(FIGURES, values, strict=True))


@pytest.mark.parametrize("word", FORMS)
def test_a_word_has_the_form_observed(monkeypatch, word):
    monkeypatch.syspath_prepend(str(CHAIR))
    from singular import singular

    known = "dog bus glass tie canoe knife pony ski man woman people vase bench toothbrush goose mouse scissors smartphone seat"
    found = [singular([word], morphology, set(known.split()))[0] for morphology in ("english", "wordnet", "pattern")]
    assert " ".join(found) == FORMS[word]


def test_skiing_after_an_article_is_no_verb(monkeypatch):
    monkeypatch.syspath_prepend(str(CHAIR))
    from singular import singular

    assert singular("he is skiing".split(), "wordnet", {"ski"})[-1] == "ski"
    assert singular("the skiing".split(), "wordnet", {"ski"})[-1] == "skiing"
    assert singular("a seated man".split(), "wordnet", {"seat"})[1] == "seat"


@pytest.mark.parametrize("caption", TOKENS)
def test_tokens_are_those_of_nltk(monkeypatch, caption):
    monkeypatch.syspath_prepend(str(CHAIR))
    from word_tokenizer import tokenize

    assert " ".join({"``": '"', "''": '"'}.get(token, token) for token in tokenize(caption)) == TOKENS[caption]


class TestNltk:
    def test_nltk_itself_tokenises_tags_and_lemmatises(self, chair, synonyms, monkeypatch):
        nltk, stem = types.ModuleType("nltk"), types.ModuleType("nltk.stem")
        tags = {"two": "CD", "bears": "VBZ", "dogs": "NNS", "softer": "JJR", "puppies": "RB"}
        nltk.word_tokenize = str.split
        nltk.pos_tag = lambda words: [(word, tags[word]) for word in words]

        class WordNetLemmatizer:
            def lemmatize(self, word, pos):
                return {("bears", "v"): "panda", ("dogs", "n"): "dog", ("puppies", "r"): "people"}.get(
                    (word, pos), word
                )

        stem.WordNetLemmatizer = WordNetLemmatizer
        monkeypatch.setitem(sys.modules, "nltk", nltk)
        monkeypatch.setitem(sys.modules, "nltk.stem", stem)
        result = chair.compute(
            predictions=["Two bears dogs softer puppies"],
            references=[[]],
            objects=[["bear", "dog"]],
            synonyms=synonyms,
            morphology="nltk",
        )
        assert result["chair_i"] == pytest.approx(1 / 3)  # bear, dog and, by an adverb, people
        assert result["chair_recall"] == 1

    def test_without_nltk_it_says_what_to_install(self, chair, synonyms, monkeypatch):
        monkeypatch.setitem(sys.modules, "nltk", None)
        with pytest.raises(ImportError, match="pip install nltk"):
            chair.compute(predictions=["a"], references=[["a"]], synonyms=synonyms, morphology="nltk")

    def test_without_its_data_it_says_what_to_download(self, chair, synonyms, monkeypatch):
        nltk, stem = types.ModuleType("nltk"), types.ModuleType("nltk.stem")
        stem.WordNetLemmatizer = object

        def word_tokenize(text):
            raise LookupError("punkt_tab not found")

        nltk.word_tokenize, nltk.pos_tag = word_tokenize, None
        monkeypatch.setitem(sys.modules, "nltk", nltk)
        monkeypatch.setitem(sys.modules, "nltk.stem", stem)
        with pytest.raises(LookupError, match="nltk.downloader punkt_tab"):
            chair.compute(predictions=["a"], references=[["a"]], synonyms=synonyms, morphology="nltk")

    def test_the_real_one_reads_these_as_observed(self, code, synonyms):
        nltk = pytest.importorskip("nltk")
        try:
            nltk.pos_tag(nltk.word_tokenize("a"))
            from nltk.corpus import wordnet

            wordnet.ensure_loaded()
        except LookupError as error:
            pytest.skip(f"nltk lacks data: {str(error).split()[1]}")
        read = code.reader(code.official(synonyms), "nltk")
        assert read("Two men and a woman are seated on hot dogs.") == (["person", "chair", "hot dog"], 10)


class TestScenes:
    def test_its_objects_are_the_worlds_shapes(self, code):
        assert code.SCENES == SHAPES

    def test_shape_alone_is_the_object(self, chair):
        result = figures(
            chair.compute(
                predictions=["two big green stars and a cross.", "three boats on the sea"],
                references=[["small red star", "large blue tree"], ["large red boat", "large red boat"]],
                vocabulary="scenes",
            )
        )
        # star, cross | boat; there: star, tree | boat
        expected = {
            "chair_i": 1 / 3,
            "chair_s": 1 / 2,
            "chair_recall": 2 / 3,
            "chair_precision": 2 / 3,
            "chair_f1": 2 / 3,
        }
        assert result == pytest.approx({**expected, "chair_length": (8 + 5) / 2})

    @pytest.mark.parametrize("wording", range(5))
    def test_true_captions_invent_and_omit_nothing(self, chair, wording):
        some = list(scenes(0, "test", 100))
        result = chair.compute(
            predictions=[captions(scene)[wording] for scene in some],
            references=[[thing.phrase for thing in scene.objects] for scene in some],
            vocabulary="scenes",
            n_bootstrap=1,
        )
        assert (result["chair_i"], result["chair_s"], result["chair_f1"]) == (0, 0, 1)

    def test_phrases_are_objects_as_well_as_references(self, chair):
        some = list(scenes(0, "test", 50))
        phrases = [[thing.phrase for thing in scene.objects] for scene in some]
        said = [captions(scene)[0] for scene in reversed(some)]
        told = [captions(scene) for scene in some]
        as_references = chair.compute(predictions=said, references=phrases, vocabulary="scenes")
        assert 0 < as_references["chair_i"] < 1
        for references in (told, [[] for _ in some]):
            ask = {"predictions": said, "references": references, "objects": phrases}
            assert chair.compute(**ask, vocabulary="scenes") == as_references

    def test_an_invented_object_is_seen_when_its_shape_is(self, chair):
        some = list(scenes(0, "test", 100))
        rejected = [preferences(scene)[0]["rejected"] for scene in some]
        shapes = [{thing.shape for thing in scene.objects} for scene in some]
        new = [any(re.search(rf"\b{shape}", said) for shape in SHAPES if shape not in there) for said, there in
               zip(rejected, shapes, strict=True)]  # fmt: skip
        references = [[thing.phrase for thing in scene.objects] for scene in some]
        result = chair.compute(predictions=rejected, references=references, vocabulary="scenes", n_bootstrap=1)
        assert 0 < sum(new) < 100
        assert result["chair_s"] == pytest.approx(sum(new) / 100)


def test_intervals_hold_their_figure_and_repeat(chair):
    result = chair.compute(**varied())
    assert result == chair.compute(**varied())
    assert tuple(figures(result)) == FIGURES
    for name in set(FIGURES) - {"chair_length"}:  # all are of seven words
        low, high = result[f"{name}_ci95"]
        assert low < result[name] < high


def test_the_seed_and_number_of_resamples_change_the_interval_only(chair):
    usual = chair.compute(**varied())
    assert chair.compute(**varied(), n_bootstrap=1000, seed=0) == usual
    for option in ({"seed": 1}, {"n_bootstrap": 50}):
        other = chair.compute(**varied(), **option)
        differ = {key for key in usual if usual[key] != other[key]}
        assert differ and all(key.endswith("_ci95") for key in differ)


def test_batches_give_what_one_call_gives(chair):
    expected = chair.compute(predictions=PREDICTIONS, references=REFERENCES, objects=OBJECTS)
    module = evaluate.load(str(CHAIR), keep_in_memory=True)
    module.add_batch(predictions=PREDICTIONS[:2], references=REFERENCES[:2], objects=OBJECTS[:2])
    module.add(prediction=PREDICTIONS[2], references=REFERENCES[2], objects=OBJECTS[2])
    assert module.compute() == expected
    module.add_batch(predictions=PREDICTIONS, references=REFERENCES)
    assert module.compute() == chair.compute(predictions=PREDICTIONS, references=REFERENCES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": [], "references": [], "objects": []}, "no predictions"),
        ({"references": REFERENCES[:2]}, "3 predictions.* references of 2 pictures"),
        ({"objects": OBJECTS[:1]}, "3 predictions.* objects of 1 pictures"),
        ({"references": None}, "only one of them"),
        ({"predictions": [PREDICTIONS[0], None, "a"]}, "record 1: the prediction is None"),
        ({"references": [["a"], "a cat", ["b"]]}, "record 1: its references are 'a cat'"),
        ({"references": [["a"], [None], ["b"]]}, r"record 1: its references are \[None\]"),
        ({"objects": [["dog"], "person", []]}, "record 1: its objects are 'person'"),
        ({"objects": [["dog"], [], ["spaceship"]]}, "record 2: the vocabulary has no object 'spaceship'"),
        ({"objects": None, "references": [["a"], [], ["b"]]}, "record 1: it has no references, and no objects"),
        ({"vocabulary": "flickr"}, "no vocabulary 'flickr'; there are coco and scenes"),
        ({"vocabulary": "scenes", "synonyms": "list.txt"}, "synonyms are a list of COCO's objects"),
        ({"morphology": "latin"}, "no morphology 'latin'; there are english, wordnet, nltk, pattern"),
        ({"n_bootstrap": 0}, "n_bootstrap is 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(chair, change, message):
    with pytest.raises(ValueError, match=message):
        chair.compute(**{"predictions": PREDICTIONS, "references": REFERENCES, "objects": OBJECTS} | change)


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfe", "UTF-8"), (b"person\ndog\n", "no synonyms"), (b"", "no synonyms")]
)
def test_a_file_that_is_no_list_of_synonyms_is_named(chair, tmp_path, content, message):
    path = tmp_path / "other.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"other.txt.*{message}"):
        chair.compute(predictions=["a"], references=[["a"]], synonyms=path)


def test_a_missing_list_is_named(chair, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        chair.compute(predictions=["a"], references=[["a"]], synonyms=tmp_path / "nowhere.txt")


@pytest.mark.real_data
def test_people_invent_little_in_real_captions(chair, real_data):
    objects, texts = {}, {}
    for path in sorted((real_data / "coco2017" / "annotations").glob("instances_*.json")):
        content = json.loads(path.read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        for row in content["annotations"]:
            objects.setdefault(row["image_id"], set()).add(names[row["category_id"]])
    for path in sorted((real_data / "coco2017" / "annotations").glob("captions_*.json")):
        for row in json.loads(path.read_text())["annotations"]:
            texts.setdefault(row["image_id"], []).append(row["caption"])
    pictures = [key for key, some in texts.items() if len(some) > 1]
    assert len(pictures) > 30
    ask = {
        "references": [texts[key][1:] for key in pictures],
        "objects": [sorted(objects.get(key, ())) for key in pictures],
    }
    own = chair.compute(predictions=[texts[key][0] for key in pictures], **ask)
    others = chair.compute(predictions=[texts[key][0] for key in pictures[1:] + pictures[:1]], **ask)
    assert own["chair_i"] < 0.1 < 0.5 < others["chair_i"]
