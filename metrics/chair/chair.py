"""
CHAIR of captions (Rohrbach et al., 2018, https://arxiv.org/abs/1809.02156): how much of what a caption names is not there.

    "two dogs on a couch" -> words -> singular -> compounds merged -> objects named [dog, couch]    truth {dog, chair}
                                                                                          couch is invented

What is there: the objects given for a picture and all that its reference captions name, as sets. With every sum over pictures,

    chair_i          mentions of what is not there / mentions of objects, repetitions counted
    chair_s          captions with such a mention / captions
    chair_recall     objects there and named / objects there
    chair_precision  objects there and named / objects named, repetitions not counted
    chair_f1         2 * precision * recall / (precision + recall)
    chair_length     words and marks / captions, a merged compound being one

as today's programs print them, which add the last four, but from 0 to 1 instead of per cent. Where nothing is named nothing is
invented: a ratio of nothing to nothing is 0, and captions that name no object are not an error.

Unusual: the objects are those of a list, and of what kind depends on it. vocabulary="coco" has COCO's 80 and this project's own
words for them; `synonyms` reads the official list instead (https://github.com/LisaAnne/Hallucination, data/synonyms.txt), with the
official compounds and, unless `morphology` says otherwise, words as today's programs read them (see singular.py).
vocabulary="scenes" is the miniature world: an object is its shape, as a category is in COCO; what size and colour it has, and how
many there are, is scene_f1's question. Backgrounds are not objects. Known weakness, the original's too: a word is an object
whatever it means, so an orange cat is an orange and a cat.
"""

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import datasets
import evaluate
import numpy as np

from .bootstrap import N_BOOTSTRAP, SEED, intervals
from .coco_objects import OBJECTS, OTHERS, QUALIFIERS
from .singular import nltk_words, singular
from .word_tokenizer import tokenize


SCENES = ("circle", "square", "triangle", "star", "heart", "cross", "boat", "tree")

# the official program's: merged when side by side, whether they are objects or not
OFFICIAL_COMPOUNDS = """
motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light, fire hydrant, stop sign, parking meter,
suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass, hot dog, cell phone, mobile phone, teddy bear,
hair drier, potted plant, laptop computer, home plate, train track
"""
OFFICIAL_QUALIFIERS = {
    "baby adult": "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub",
    "passenger": "jet train",
}
# glas: pattern's singular of glass
OFFICIAL_RENAMED = {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}


class Vocabulary(NamedTuple):
    """`names`: words (or compounds) -> the object they mean; `compounds`: two words -> what they are read as."""

    names: dict[str, str]
    compounds: dict[str, str]

    @property
    def known(self) -> frozenset[str]:
        """Every word that means something, alone or beside another."""
        return frozenset(word for phrase in (*self.names, *self.compounds) for word in phrase.split())


def _phrases(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split(",") if phrase.strip()]


def _qualified(qualifiers: dict[str, str]) -> dict[str, str]:
    """{"baby adult": "cat dog"} -> {"baby cat": "cat", "baby dog": "dog", "adult cat": "cat", "adult dog": "dog"}"""
    pairs = (pair for some, nouns in qualifiers.items() for pair in product(some.split(), nouns.split()))
    return {f"{qualifier} {noun}": noun for qualifier, noun in pairs}


def coco() -> Vocabulary:
    """COCO's objects in this project's own words."""
    names = {}
    for line in OBJECTS.replace("\n    ", " ").strip().splitlines():
        head, words = line.split(":")
        names |= dict.fromkeys([head, *_phrases(words)], head)
    of = {head: " ".join(name for name in names if names[name] == head and " " not in name) for head in names.values()}
    spelled = {some: " ".join(of[head] for head in heads.split()) for some, heads in QUALIFIERS.items()}
    return Vocabulary(names, {pair: pair for pair in (*_phrases(OTHERS), *names) if " " in pair} | _qualified(spelled))


def official(path: str | Path) -> Vocabulary:
    """
    The official program's: a category a line, words after ", ", the first its name. As there, a word with a space too many is
    never found, nor is one of three words; a word in two lines is what the later says.

    Raises ValueError for a file that is not such a list.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a list of synonyms in UTF-8: {error}") from error
    names = {word: words[0] for words in (line.strip().split(", ") for line in lines if line.strip()) for word in words}
    if not any(word != head for word, head in names.items()):
        raise ValueError(f"{path} has no synonyms; expected a category a line: person, girl, boy, ...")
    compounds = {pair: pair for pair in _phrases(OFFICIAL_COMPOUNDS)} | _qualified(OFFICIAL_QUALIFIERS)
    return Vocabulary(names, compounds | OFFICIAL_RENAMED)


def scenes() -> Vocabulary:
    """The miniature world's: shapes."""
    return Vocabulary({shape: shape for shape in SCENES}, {})


def reader(vocabulary: Vocabulary, morphology: str) -> Callable[[str], tuple[list[str], int]]:
    """A function that gives the objects a text names, each as often as it does, and the text's length in words."""
    names, compounds, known = *vocabulary, vocabulary.known

    @cache
    def read(text: str) -> tuple[list[str], int]:
        words = nltk_words(text) if morphology == "nltk" else singular(tokenize(text), morphology, known)
        merged, place = [], 0
        while place < len(words):
            pair = " ".join(words[place : place + 2])
            merged.append(compounds.get(pair, words[place]))
            place += 2 if pair in compounds else 1
        # the seat of a toilet is not a chair
        seat = "seat" if "toilet" in merged else None
        return [names[word] for word in merged if word in names and word != seat], len(merged)

    return read


def counts(
    predictions: list[str],
    references: list[list[str]],
    objects: list[list[str]] | None,
    vocabulary: Vocabulary,
    morphology: str,
) -> np.ndarray:
    """
    For every picture, float (pictures, 7): mentions of what is not there; mentions; whether there is such a mention; objects there
    and named; objects there; objects named; words.

    Raises ValueError for no predictions, references or objects of more or fewer pictures, and, naming the record, for a prediction
    that is not a string, references or objects that are not a list of them, a picture of which nothing is known, and an object that
    the vocabulary does not have.
    """
    if not len(predictions):
        raise ValueError("there are no predictions to score")
    for what, some in (("references", references), ("objects", objects)):
        if some is not None and len(some) != len(predictions):
            raise ValueError(f"{len(predictions)} predictions, but {what} of {len(some)} pictures")
    read = reader(vocabulary, morphology)
    rows = []
    for record, (said, right) in enumerate(zip(predictions, references, strict=True)):
        given = [] if objects is None else objects[record]
        if not isinstance(said, str):
            raise ValueError(f"record {record}: the prediction is {said!r}, not a string")
        for what, some in (("references", right), ("objects", given)):
            if isinstance(some, str) or not all(isinstance(text, str) for text in some):
                raise ValueError(f"record {record}: its {what} are {some!r}, not a list of strings")
        if objects is None and not right:
            raise ValueError(
                f"record {record}: it has no references, and no objects are given; what is there is unknown"
            )
        there = {name for text in right for name in read(text)[0]}
        for thing in given:
            found = [vocabulary.names[thing]] if thing in vocabulary.names else read(thing)[0]
            if not found:
                raise ValueError(f"record {record}: the vocabulary has no object {thing!r}")
            there.update(found)
        mentions, length = read(said)
        invented, named = sum(name not in there for name in mentions), set(mentions)
        rows.append((invented, len(mentions), invented > 0, len(named & there), len(there), len(named), length))
    return np.array(rows, dtype=float)


def _ratio(of: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(of, whole, out=np.zeros_like(of), where=whole > 0)


class Chair(evaluate.Metric):
    """
    `references`: for each picture its reference captions; `objects`: what else is known to be there, as names of categories (COCO's
    instances) or phrases with them ("small red star"). The paper's ground truth is both; with one of them, the other may be empty
    lists, or `objects` be left out.
    """

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": texts, "objects": texts}
            ),
        )

    def add(self, *, prediction: str, references: list[str], objects: list[str] = ()) -> None:
        """One picture, to be scored by `compute()`."""
        self.add_batch(predictions=[prediction], references=[references], objects=[list(objects)])

    def add_batch(
        self, *, predictions: list[str], references: list[list[str]], objects: list[list[str]] | None = None
    ) -> None:
        """Some pictures, to be scored by `compute()`."""
        super().add_batch(
            predictions=predictions,
            references=references,
            objects=[[] for _ in predictions] if objects is None else objects,
        )

    def compute(
        self,
        *,
        predictions: list[str] | None = None,
        references: list[list[str]] | None = None,
        objects: list[list[str]] | None = None,
        vocabulary: str = "coco",
        synonyms: str | Path | None = None,
        morphology: str | None = None,
        n_bootstrap: int = N_BOOTSTRAP,
        seed: int = SEED,
    ) -> dict | None:
        """What `_compute` returns, for the captions given or, without them, for what `add` and `add_batch` were given."""
        if (predictions is None) != (references is None):
            raise ValueError("predictions and references are scored together, but only one of them was given")
        options = {
            "vocabulary": vocabulary,
            "synonyms": synonyms,
            "morphology": morphology,
            "n_bootstrap": n_bootstrap,
            "seed": seed,
        }
        # evaluate writes what it is given to Arrow and reads it back; only what was added in batches or is spread over processes
        # needs that
        if predictions is None:
            return super().compute(**options)
        if self.num_process > 1:
            self.add_batch(predictions=predictions, references=references, objects=objects)
            return super().compute(**options)
        return self._compute(predictions, references, objects, **options)

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        objects: list[list[str]] | None = None,
        vocabulary: str = "coco",
        synonyms: str | Path | None = None,
        morphology: str | None = None,
        n_bootstrap: int = N_BOOTSTRAP,
        seed: int = SEED,
    ) -> dict[str, float | list[float]]:
        """
        {"chair_i", "chair_s", "chair_recall", "chair_precision", "chair_f1", "chair_length"}, each with a `_ci95` by bootstrap over
        pictures, which resamples the sums of a ratio, not ratios.

        vocabulary: "coco" or "scenes". synonyms: the official list's path, in place of this project's. morphology: one of
        singular.py's; by default "wordnet" with `synonyms` and "english" without. Raises ValueError as `counts`, `official`,
        `singular` and `intervals` do, and for a vocabulary that there is not.
        """
        if vocabulary not in ("coco", "scenes"):
            raise ValueError(f"there is no vocabulary {vocabulary!r}; there are coco and scenes")
        if synonyms is not None and vocabulary != "coco":
            raise ValueError(f"synonyms are a list of COCO's objects; vocabulary is {vocabulary!r}")
        if synonyms is not None:
            words = official(synonyms)
        else:
            words = coco() if vocabulary == "coco" else scenes()
        morphology = morphology or ("english" if synonyms is None else "wordnet")
        each = counts(predictions, references, objects, words, morphology)
        invented, mentions, wrong, right, there, named, length = range(7)
        pictures = len(each)
        figures = {
            "chair_i": lambda sums: _ratio(sums[..., invented], sums[..., mentions]),
            "chair_s": lambda sums: sums[..., wrong] / pictures,
            "chair_recall": lambda sums: _ratio(sums[..., right], sums[..., there]),
            "chair_precision": lambda sums: _ratio(sums[..., right], sums[..., named]),
            "chair_f1": lambda sums: _ratio(2 * sums[..., right], sums[..., named] + sums[..., there]),
            "chair_length": lambda sums: sums[..., length] / pictures,
        }
        result: dict[str, float | list[float]] = {}
        spread = intervals(each, list(figures.values()), n_bootstrap, seed)
        for (name, figure), ci95 in zip(figures.items(), spread, strict=True):
            result |= {name: float(figure(each.sum(0))), f"{name}_ci95": ci95}
        return result
