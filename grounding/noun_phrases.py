"""
The things that captions speak of, as phrases to ask a detector for.

    captions of one picture -> chunk -> raw noun chunks, with their articles
                            -> noun_phrases -> [Phrase(text, caption)], each thing once

    "A couple of dogs on a brown leather couch.", "Two dogs in a big room"
        -> dogs (0), brown leather couch (0), big room (1)

The chunks come of spaCy's parser, or of rules that need no model: a caption is cut at the words that no noun phrase has
(prepositions, verbs, adverbs), and what lies between is one. The rules are English, as the word lists are.

Unusual:
- A phrase is what can be boxed. Words for the picture ("photo", "background"), for places in it ("left side"), for what has no
  edges ("sky", "grass", "beach") and for what cannot be seen ("day", "game") are no phrases. They are judged by the last word:
  "night sky" is dropped, "sky blue car" is not.
- A quantity is not a thing: "a slice of pizza" is a pizza. A bowl, a plate or a crowd is: "a bowl of fruit" is a bowl and fruit.
- "no people" is not asked for.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple
from unicodedata import normalize

from grounding.caption_words import (
    ABSTRACT,
    ADJECTIVES,
    ADVERBS,
    AUXILIARIES,
    DETERMINERS,
    ED_NOUNS,
    EXPANSES,
    ING_FIRST,
    ING_NOUNS,
    IRREGULAR,
    LY_NOT_ADVERBS,
    NUMBERS,
    PARTICIPLES,
    PICTURE,
    PLACES,
    PREPOSITIONS,
    PRONOUNS,
    QUANTITIES,
    VERBS,
)


RULES_VERSION = 1  # of the rules and the word lists together
SPACY_MODEL = "en_core_web_sm"
LONGEST = 6  # words; of a longer phrase the last are kept, for there the noun is

_WORD = r"[^\W_]+(?:['-][^\W_]+)*"
_WORDS = re.compile(_WORD)
_TOKENS = re.compile(_WORD + r"|[^\w\s]")
_STOPS = PREPOSITIONS | AUXILIARIES | ADVERBS | PRONOUNS
_VERBS_S = frozenset(re.sub("(?<=[^aeiou])y$", "ie", re.sub("(s|x|z|ch|sh|o)$", r"\1e", verb)) + "s" for verb in VERBS)


class Phrase(NamedTuple):
    """`text`: lower case, 1 to 6 words, no punctuation but ' and - within a word; `caption`: the first that said it, from 0."""

    text: str
    caption: int


def _plain(text: str) -> str:
    return normalize("NFC", text.lower()).replace("’", "'")


@cache
def _key(word: str) -> str:
    """The same for a noun's singular and plural, and else of no meaning: dog, dogs -> dog; cookie, cookies -> cooky."""
    word = re.sub("men$", "man", IRREGULAR.get(word, word))
    if word.endswith("s") and not word.endswith(("ss", "us")):
        word = word[:-1]
    word = re.sub("(?<=[sxzo])e$|(?<=[cs]h)e$", "", word)
    return re.sub("ie$", "y", re.sub("[vf]e?$", "f", word))


_NOT_ASKED = frozenset(_key(word) for word in PICTURE | EXPANSES | ABSTRACT)
_QUANTITIES = frozenset(_key(word) for word in QUANTITIES)
# as they stand: "short" and "light" are none, "shorts" and "lights" are
_NO_NOUNS = PLACES | ADJECTIVES | PRONOUNS | NUMBERS | DETERMINERS | {"and"}


@cache
def _opens(word: str) -> bool:
    return word in DETERMINERS or word in NUMBERS or word.isdigit()


@cache
def _is_plural(word: str) -> bool:
    return word in IRREGULAR or word.endswith("men") or (word.endswith("s") and not word.endswith(("ss", "us", "is")))


@cache
def _is_adverb(word: str) -> bool:
    return word in ADVERBS or (word.endswith("ly") and len(word) > 4 and word not in LY_NOT_ADVERBS)


@cache
def _is_ing(word: str) -> bool:
    return word.endswith("ing") and len(word) > 4 and word not in ING_NOUNS


@cache
def _is_participle(word: str) -> bool:
    return word in PARTICIPLES or (word.endswith("ed") and len(word) > 3 and word not in ED_NOUNS)


@cache
def _may_be_modified(word: str) -> bool:
    """Could this be the noun, or lead to the noun, that a participle before it describes?"""
    return word[:1].isalnum() and not (word in _STOPS or _opens(word) or _is_adverb(word) or _is_ing(word))


def _belongs(run: list[str], word: str, before: str, after: str) -> bool:
    """Is `word` part of the noun phrase whose words so far are `run`?"""
    if not word[0].isalnum() or word in _STOPS or _is_adverb(word):
        return False
    due = bool(run) and all(_opens(one) or one in ADJECTIVES for one in run)  # "a big": the noun is still to come
    if _is_ing(word):  # "a flying kite", "parking meter", not "a man flying a kite"
        return (due or word in ING_FIRST) and _may_be_modified(after)
    if _is_participle(word):  # "a large stuffed bear", not "motorcycle parked in", "a bus painted red"
        return _may_be_modified(after) and (due or not run or after not in ADJECTIVES)
    if due:  # "the stands are packed"
        return True
    if word in VERBS:  # "a fruit stand", not "birds perch", "a boy and girl play frisbee", "girls blow up a raft"
        goes_on = _may_be_modified(after) or _opens(after) or after in ADVERBS or after in ("up", "down", "off", "out")
        return bool(run) and not _is_plural(run[-1]) and not goes_on
    if word in _VERBS_S:
        return False
    if after in DETERMINERS:  # "a woman <verb>s a", "to <verb> the"
        return not (run and _is_plural(word)) and before != "to"
    return True


def _rules(caption: str) -> list[str]:
    """The caption's noun chunks, with their articles, in order."""
    chunks: list[list[str]] = [[]]
    tokens = _TOKENS.findall(_plain(caption))
    for before, word, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
        run = chunks[-1]
        described = bool(run) and run[-1] in ADJECTIVES
        if described and word == "and" and after in ADJECTIVES:  # "a black and white cat"
            run.append(word)
        elif described and word == "," and _opens(run[0]) and _may_be_modified(after) and after not in VERBS:
            continue  # "a furry, black bear"
        elif _opens(word):
            if not all(map(_opens, run)):
                chunks.append([])
            chunks[-1].append(word)
        elif _belongs(run, word, before, after):
            run.append(word)
        elif run:
            chunks.append([])
    return [" ".join(run) for run in chunks if not all(map(_opens, run))]


def _spacy() -> tuple[str, Callable[[str], list[str]]]:
    try:
        import spacy
    except ImportError as error:
        raise ImportError(
            f"noun chunks by spaCy need it: pip install spacy; python -m spacy download {SPACY_MODEL}"
        ) from error
    try:
        pipeline = spacy.load(SPACY_MODEL, exclude=["ner", "lemmatizer"])
    except OSError as error:
        raise OSError(f"spaCy has no model {SPACY_MODEL}: python -m spacy download {SPACY_MODEL}") from error

    def chunk(caption: str) -> list[str]:
        return [chunk.text for chunk in pipeline(caption).noun_chunks if chunk.root.pos_ in ("NOUN", "PROPN")]

    return f"spacy {spacy.__version__} {SPACY_MODEL} {pipeline.meta['version']}", chunk


def chunker(kind: str | None = None) -> tuple[str, Callable[[str], list[str]]]:
    """
    The name, with versions, of what finds noun chunks, and the function from a caption to its chunks, in order. `kind`: "spacy",
    "rules", or None for spaCy where it and its model are installed and the rules elsewhere.

    Raises ValueError for another kind; for "spacy", ImportError without spaCy and OSError without its model.
    """
    if kind is None:
        kind = "spacy" if find_spec("spacy") and find_spec(SPACY_MODEL) else "rules"
    if kind == "spacy":
        return _spacy()
    if kind == "rules":
        return f"rules {RULES_VERSION}", _rules
    raise ValueError(f"there is no chunker {kind!r}; there are spacy and rules")


def _is_no_noun(word: str) -> bool:
    """Alone, or with its like alone; in "parking lot" or "table top" it is one."""
    return word in _NO_NOUNS or _key(word) in _QUANTITIES


def _phrase(chunk: str) -> list[str]:
    """The words of a chunk to ask a detector for; none where there is nothing to ask for."""
    words = _WORDS.findall(_plain(chunk))
    if words[:1] == ["no"]:
        return []
    if "of" in words:
        words = words[len(words) - words[::-1].index("of") :]
    while words and _opens(words[0]):
        words = words[1:]
    nothing = not words or len(words[-1]) < 2 or all(map(_is_no_noun, words))
    if nothing or _key(words[-1]) in _NOT_ASKED:
        return []
    return words[-LONGEST:]


def noun_phrases(captions: Sequence[str], chunk: Callable[[str], list[str]]) -> list[Phrase]:
    """
    The things that `captions` of one picture speak of, in the order in which they are first said; `chunk` is what `chunker` gave.
    "dog" and "dogs" are one thing, "dog" and "white dog" two.
    """
    said: dict[tuple[str, ...], Phrase] = {}
    for number, caption in enumerate(captions):
        for words in map(_phrase, chunk(caption)):
            if words:
                said.setdefault((*words[:-1], _key(words[-1])), Phrase(" ".join(words), number))
    return list(said.values())
