"""
Words in the form a list of objects has them in: dogs -> dog, women -> woman, knives -> knife.

CHAIR's programs disagree here, and it moves figures; so there is a choice:

    english   a plural of a word of the list becomes that word, and nothing else changes
    wordnet   what nltk's tagger and WordNetLemmatizer, used by today's programs, make of the words of CHAIR's official list,
              without them: a form that is now verb, now noun is read one way ("skiing" is ski, but not after an article)
    nltk      nltk itself, with its tokenizer, tagger and WordNet, which must be installed
    pattern   what pattern.en.singularize, used by the program of 2018, makes of the words of CHAIR's official list

The last three keep those programs' errors: to WordNet "men" is a word of its own and "vases" are several "vas", so neither is
found; pattern takes the s off "bus" and makes "ty" of "ties".
"""

from collections.abc import Collection, Iterator


MORPHOLOGIES = ("english", "wordnet", "nltk", "pattern")
_INSTALL = "pip install nltk; python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"

_ENDINGS = (  # the first that leads to a known word
    ("men", "man"), ("children", "child"), ("mice", "mouse"), ("geese", "goose"), ("oxen", "ox"),
    ("sses", "ss"), ("sses", "s"), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("oes", "o"), ("ches", "ch"), ("shes", "sh"),
    ("ies", "y"), ("ves", "f"), ("ves", "fe"), ("s", ""),
)  # fmt: skip

# plurals that WordNet, which does not have their singular, leaves as they are
_UNKNOWN = """
    bikers bluejays brindles coworkers firetrucks hairdryers lenovos longboards macbooks netbooks paddleboats pitbulls riverboats
    sailboards shortboards skimboards smartphones soliders stovetops teddybears televisons
"""
_WORDNET = {"men": "men", "vases": "vas", "sports": "sport", "taxies": "taxi"} | {
    word: word for word in _UNKNOWN.split()
}
_VERBS = """
    seated:seat tied:tie tying:tie skiing:ski skateboarding:skateboard snowboarding:snowboard surfboarding:surfboard
    motorcycling:motorcycle taxiing:taxi monitoring:monitor bottled:bottle bowed:bow cupped:cup groomed:groom trained:train
    manned:man sank:sink sunk:sink shipped:ship booked:book born:bear borne:bear
"""
_VERBS = dict(pair.split(":") for pair in _VERBS.split())
_ARTICLES = {"a", "an", "the", "his", "her", "its", "their", "my", "our", "your"}  # a noun follows

# pattern, by the ending; the first that fits
_PATTERN = (
    ("scissors", "scissors"), ("collies", "collies"), ("doggies", "doggies"), ("men", "man"), ("children", "child"),
    ("people", "person"), ("geese", "goose"), ("oxen", "ox"), ("shoes", "shoe"), ("oes", "o"), ("buses", "bus"), ("mice", "mouse"),
    ("xes", "x"), ("ches", "ch"), ("sses", "ss"), ("shes", "sh"),
    ("aies", "aie"), ("eies", "eie"), ("iies", "iie"), ("oies", "oie"), ("uies", "uie"), ("yies", "yie"), ("ies", "y"),
    ("lves", "lf"), ("nives", "nife"), ("lives", "life"), ("wives", "wife"), ("aves", "ave"), ("eves", "eve"), ("oves", "ove"),
    ("s", ""),
)  # fmt: skip


def _ending(word: str, endings: tuple[tuple[str, str], ...]) -> Iterator[str]:
    """The word with its ending replaced, for each of the endings that it has."""
    return (word[: -len(end)] + new for end, new in endings if word.endswith(end))


def singular(words: list[str], morphology: str, known: Collection[str]) -> list[str]:
    """
    The words in the singular; `known` are the words worth arriving at. For "nltk" see `nltk_words`.

    Raises ValueError for a morphology that there is not.
    """
    if morphology == "pattern":
        return [next(_ending(word, _PATTERN), word) for word in words]
    if morphology not in ("english", "wordnet"):
        raise ValueError(f"there is no morphology {morphology!r}; there are {', '.join(MORPHOLOGIES)}")
    found = []
    for place, word in enumerate(words):
        if (
            morphology == "wordnet"
            and word in _VERBS
            and not (place and word[-3:] == "ing" and words[place - 1] in _ARTICLES)
        ):
            word = _VERBS[word]
        elif morphology == "wordnet" and word in _WORDNET:
            word = _WORDNET[word]
        elif word not in known:
            word = next((new for new in _ending(word, _ENDINGS) if new in known), word)
        found.append(word)
    return found


def nltk_words(caption: str) -> list[str]:
    """
    The caption's words as today's programs read them: nltk.word_tokenize, nltk.pos_tag, WordNetLemmatizer.

    Raises ImportError without nltk, LookupError without its data.
    """
    try:
        import nltk
        from nltk.stem import WordNetLemmatizer
    except ImportError as error:
        raise ImportError(f'morphology="nltk" needs nltk: {_INSTALL}') from error
    lemmatizer = WordNetLemmatizer()
    try:
        tagged = nltk.pos_tag(nltk.word_tokenize(caption.lower()))
        # whatever is not an adjective, a verb or an adverb is read as a noun
        return [lemmatizer.lemmatize(word, {"J": "a", "V": "v", "R": "r"}.get(tag[0], "n")) for word, tag in tagged]
    except LookupError as error:
        raise LookupError(f'morphology="nltk" needs the data of nltk: {_INSTALL}') from error
