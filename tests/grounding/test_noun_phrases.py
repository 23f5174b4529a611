"""Noun phrases against what a reader would ask a detector for; spaCy's side, where installed, by a sentence parsed by hand."""

import builtins
import importlib
import sys
import types

import pytest

from datasets_scripts.scene_language import captions
from datasets_scripts.scenes import scenes
from grounding.noun_phrases import LONGEST, Phrase, chunker, noun_phrases


module = importlib.import_module("grounding.noun_phrases")
NAME, RULES = chunker("rules")

# written for these tests, each with what is in it to be found
SENTENCES = {
    "A couple of dogs sitting on a brown leather couch.": ["dogs", "brown leather couch"],
    "a group of people watch a man flying a kite": ["people", "man", "kite"],
    "A slice of pizza and a glass of wine on the table": ["pizza", "glass", "wine", "table"],
    "there are two big red stars in the night sky": ["big red stars"],
    "Three giraffes, one of them small, near a big tree": ["giraffes", "big tree"],
    "His dog stands next to a parking meter": ["dog", "parking meter"],
    "two cars beside parking meters": ["cars", "parking meters"],
    "some tents a blue van and a bridge": ["tents", "blue van", "bridge"],
    "Several birds perch on the stands": ["birds", "stands"],
    "a fruit stand with ripe bananas": ["fruit stand", "ripe bananas"],
    "A woman flumps a stuffed bear": ["woman", "stuffed bear"],
    "A motorcycle parked beside a blue building": ["motorcycle", "blue building"],
    "a black and white cat": ["black and white cat"],
    "A furry, black bear in the snow.": ["furry black bear"],
    "a swimming pool and people swimming in it": ["swimming pool", "people"],
    "A boy and a girl play frisbee": ["boy", "girl", "frisbee"],
    "a girl wearing shorts under the lights": ["girl", "shorts", "lights"],
    "a boat in a parking lot": ["boat", "parking lot"],
    "An airplane painted white is taking off": ["airplane"],
    "a small bird quickly eats seeds": ["small bird", "seeds"],
    "He is going to grab the ball": ["ball"],
    "There are no people in the kitchen": ["kitchen"],
    "A close up photo of the left side of a bus": ["bus"],
    "on a sunny day, at the top right of the picture": [],
    "running and jumping outside": [],
    "it is red.": [],
}


def asked(caption: str) -> list[str]:
    return [phrase.text for phrase in noun_phrases([caption], RULES)]


def given(*chunks: str) -> list[str]:
    """What is asked for of chunks that some other chunker found."""
    return [phrase.text for phrase in noun_phrases(["caption"], lambda caption: list(chunks))]


@pytest.mark.parametrize("caption", SENTENCES)
def test_the_rules_find_the_things_that_a_sentence_speaks_of(caption):
    assert asked(caption) == SENTENCES[caption]


def test_every_object_of_a_miniature_scene_is_found_and_nothing_else():
    for scene in scenes(0, "test", 60):
        for wording, caption in enumerate(captions(scene)):
            sizes = {"small": "little", "large": "big"} if wording in (2, 4) else {"small": "small", "large": "large"}
            there = {f"{sizes[thing.size]} {thing.colour} {thing.shape}" for thing in scene.objects}
            found = asked(caption)
            singular = {
                text if text in there else text.removesuffix("es" if text.endswith("crosses") else "s")
                for text in found
            }
            assert (singular, len(found)) == (there, len(there)), caption


def test_a_raw_chunk_has_its_article_and_the_phrase_has_not():
    assert RULES("The two old dogs sleep on a bed") == ["the two old dogs", "a bed"]
    assert asked("The two old dogs sleep on a bed") == ["old dogs", "bed"]


@pytest.mark.parametrize(
    "chunk", ["the dog", "a couple of dogs", "All of his other 12 dogs", "dozens of dogs", "its dog"]
)
def test_what_only_counts_or_points_is_left_away(chunk):
    assert given(chunk) in (["dog"], ["dogs"])


@pytest.mark.parametrize(
    "pair",
    """
    dog dogs, bus buses, glass glasses, box boxes, dish dishes, bench benches, knife knives, leaf leaves, puppy puppies,
    cookie cookies, tie ties, shoe shoes, horse horses, vase vases, woman women, snowman snowmen, child children,
    person people, tomato tomatoes, ski skis, goose geese, glove gloves
    """.split(","),
)
def test_one_and_several_are_one_thing_and_the_first_said_is_kept(pair):
    one, several = pair.split()
    assert given(f"a big {one}", f"two big {several}") == [f"big {one}"]
    assert given(f"two big {several}", f"a big {one}") == [f"big {several}"]


def test_different_things_stay_apart():
    different = [
        "bus",
        "bush",
        "ship",
        "sheep",
        "dog",
        "white dog",
        "ski",
        "car",
        "cart",
        "pan",
        "panda",
        "glass",
        "cat",
    ]
    assert given(*different) == different


def test_a_phrase_remembers_the_first_caption_that_said_it():
    three = ["a dog", "", "two dogs and a cat", "a cat on a bed"]
    assert noun_phrases(three, RULES) == [Phrase("dog", 0), Phrase("cat", 2), Phrase("bed", 3)]


@pytest.mark.parametrize(
    "nothing",
    "it/them/the sky/blue skies/green grass/water/a picture/two old photos/the background/the left side/the front/top/a lot/a group"
    "/a sunny day/nice views/red/the big one/black and white/no people/a grassy area/the 3/s/.".split("/"),
)
def test_what_cannot_be_boxed_is_not_asked_for(nothing):
    assert given(nothing) == []


def test_a_dropped_word_may_describe_a_thing():
    assert given("sky blue car", "parking lot", "table top", "back tire", "water bottle") == [
        "sky blue car", "parking lot", "table top", "back tire", "water bottle",
    ]  # fmt: skip


def test_a_long_phrase_keeps_its_last_words():
    assert given("a very tall old red brick fire station tower") == ["old red brick fire station tower"]
    assert len("old red brick fire station tower".split()) == LONGEST


def test_no_mark_that_parts_phrases_for_a_detector_stands_in_one():
    chunks = ["a dog.", "black? cat", "the U.S. flag", "a man’s hat", "T-shirt!"]
    assert given(*chunks) == ["dog", "black cat", "u s flag", "man's hat", "t-shirt"]


def test_other_alphabets_accents_and_blanks_do_no_harm():
    assert asked("A CAFE\u0301 table with a piñata 🎉") == ["café table", "piñata"]
    assert noun_phrases(["", "  \n", "...", "🎉"], RULES) == []
    assert noun_phrases([], RULES) == []


def without(monkeypatch, *missing: str) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name in missing else object())


def stand_in(monkeypatch, load, version="9.8.7") -> None:
    spacy = types.ModuleType("spacy")
    spacy.__version__, spacy.load = version, load
    monkeypatch.setitem(sys.modules, "spacy", spacy)


class Pipeline:
    """As spaCy's: a caption in, a document with noun chunks out."""

    meta = {"version": "1.2.3"}

    def __init__(self, document):
        self.document = document

    def __call__(self, caption):
        return self.document


@pytest.mark.parametrize("missing", ["spacy", "en_core_web_sm"])
def test_the_rules_are_used_where_spacy_or_its_model_is_missing(monkeypatch, missing):
    without(monkeypatch, missing)
    assert chunker() == (NAME, RULES) and NAME == "rules 1"


def test_spacy_is_used_where_it_and_its_model_are(monkeypatch):
    without(monkeypatch)
    loaded = []
    stand_in(monkeypatch, lambda name, exclude: loaded.append(name) or Pipeline(None))
    assert chunker()[0] == "spacy 9.8.7 en_core_web_sm 1.2.3"
    assert loaded == ["en_core_web_sm"]


def test_without_spacy_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "spacy":
            raise ImportError("No module named 'spacy'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="pip install spacy; python -m spacy download en_core_web_sm"):
        chunker("spacy")


def test_without_the_model_the_error_says_what_to_install(monkeypatch):
    def load(name, exclude):
        raise OSError("[E050] Can't find model")

    stand_in(monkeypatch, load)
    with pytest.raises(OSError, match="^spaCy has no model en_core_web_sm: python -m spacy download en_core_web_sm"):
        chunker("spacy")


def test_another_chunker_is_refused_by_name():
    with pytest.raises(ValueError, match="'nltk'.*spacy and rules"):
        chunker("nltk")


def test_spacy_gives_the_chunks_whose_last_word_is_a_noun(monkeypatch):
    spacy = pytest.importorskip("spacy")
    words = "She rides two red bikes near Anna 's house".split()
    document = spacy.tokens.Doc(
        spacy.blank("en").vocab,
        words=words,
        spaces=[True, True, True, True, True, True, False, True, False],
        pos=["PRON", "VERB", "NUM", "ADJ", "NOUN", "ADP", "PROPN", "PART", "NOUN"],
        deps=["nsubj", "ROOT", "nummod", "amod", "dobj", "prep", "poss", "case", "pobj"],
        heads=[1, 1, 4, 4, 1, 1, 8, 6, 5],
    )
    monkeypatch.setattr(spacy, "load", lambda name, exclude: Pipeline(document))
    name, chunk = chunker("spacy")
    assert name == f"spacy {spacy.__version__} en_core_web_sm 1.2.3"
    assert chunk("She rides two red bikes near Anna's house") == ["two red bikes", "Anna's house"]
    assert noun_phrases(["the caption"], chunk) == [Phrase("red bikes", 0), Phrase("anna's house", 0)]
