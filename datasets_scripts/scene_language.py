"""
What is said of a miniature scene: five differently worded captions, questions with answers, preference pairs.

Unusual: captions name every object, in reading order, so scene F1 against the truth is exact: a noun phrase is always
"[size] [colour] [shape]", plural when twins are grouped. The five wordings differ in what else they say (background, count,
places, relations) and in a few synonyms (little, big).

    Scene -> captions(scene): list of five str
          -> questions(scene, round): list of {question, answer, kind}   kinds: existence, colour, count, position
          -> preferences(scene): list of {chosen, rejected, flaw}   flaws: invented_object, wrong_attribute,
                                                                     wrong_relation, broken_grammar
          -> notes(scene, rng): str, rough notes that hold the same facts; what a language model reads in place of a picture
"""

from itertools import groupby
from random import Random

from datasets_scripts.scene_description import COLOURS, SHAPES, SIZES, Scene, SceneObject


ON = {
    "meadow": "in a meadow", "beach": "on a beach", "sea": "on the sea", "snow": "in the snow", "night": "in the night sky",
}  # fmt: skip
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
NUMBERS = ("no", "one", "two", "three", "four")
OTHER_SIZE_WORDS = {"small": "little", "large": "big"}
IS_THERE = "Is there {} in the picture?"


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _grouped(objects: tuple[SceneObject, ...], other_words: bool = False) -> str:
    """Twins that follow each other in reading order are counted together."""
    parts = []
    for (size, colour, shape), twins in groupby(objects, key=lambda thing: thing.triple):
        size, count = OTHER_SIZE_WORDS[size] if other_words else size, len(list(twins))
        phrase = f"{size} {colour} {shape}"
        parts.append(with_article(phrase) if count == 1 else f"{NUMBERS[count]} {plural(phrase)}")
    return _and(parts)


def place(thing: SceneObject) -> str:
    return PLACES[thing.row][thing.column]


def relation(first: SceneObject, second: SceneObject) -> str:
    """How `first` lies to `second`: by rows when they differ, otherwise by columns."""
    if first.row != second.row:
        return "above" if first.row < second.row else "below"
    return "to the left of" if first.column < second.column else "to the right of"


def related(scene: Scene, rel: str | None = None) -> str:
    """The caption that says how the first two objects lie to each other (or, given `rel`, claims they lie so)."""
    first, second, *rest = scene.objects
    text = f"{with_article(first.phrase)} {rel or relation(first, second)} {with_article(second.phrase)}"
    return f"{text}, with {_grouped(tuple(rest))}" if rest else text


def captions(scene: Scene) -> list[str]:
    """Five references, each naming all objects."""
    things, on = scene.objects, ON[scene.background]
    verb = "are" if len(things) > 1 and things[0].triple == things[1].triple else "is"
    sized = [with_article(f"{OTHER_SIZE_WORDS[o.size]} {o.colour} {o.shape} {place(o)}") for o in things]
    return [
        f"{_grouped(things)} {on}.",
        f"there {verb} {_grouped(things)} {on}.",
        f"a picture of {_grouped(things, other_words=True)}.",
        f"{related(scene) if len(things) > 1 else with_article(things[0].phrase) + ' ' + place(things[0])}, {on}.",
        f"{_and(sized)}.",
    ]


def questions(scene: Scene, round: int = 0) -> list[dict[str, str]]:
    """
    Four questions, one of each kind where the scene allows it. Existence is asked of present and absent in equal parts. Other
    rounds ask of other things, as chance has it.
    """
    rng = Random(f"questions/{scene.image_id}" + (f"/{round}" if round else ""))
    thing = scene.objects[int(rng.random() * len(scene.objects))]
    present = {(o.colour, o.shape) for o in scene.objects}
    absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in present]
    there = rng.random() < 0.5
    colour, shape = (thing.colour, thing.shape) if there else absent[int(rng.random() * len(absent))]
    counted = SHAPES[int(rng.random() * len(SHAPES))] if rng.random() < 0.3 else thing.shape
    count = sum(o.shape == counted for o in scene.objects)
    asked = [
        ("existence", IS_THERE.format(with_article(f"{colour} {shape}")), "yes" if there else "no"),
        ("count", f"How many {plural(counted)} are there?", NUMBERS[count]),
    ]
    if sum((o.size, o.shape) == (thing.size, thing.shape) for o in scene.objects) == 1:
        asked.append(("colour", f"What colour is the {thing.size} {thing.shape}?", thing.colour))
    if sum(o.triple == thing.triple for o in scene.objects) == 1:
        asked.append(("position", f"Where is the {thing.phrase}?", place(thing)))
    return [{"kind": kind, "question": question, "answer": answer} for kind, question, answer in asked]


def preferences(scene: Scene) -> list[dict[str, str]]:
    """Pairs in which the rejected side differs from the chosen in exactly the one way that `flaw` names."""
    rng = Random(f"preferences/{scene.image_id}")
    things, on = scene.objects, ON[scene.background]

    def other(options: tuple, not_this: str) -> str:
        left = [option for option in options if option != not_this]
        return left[int(rng.random() * len(left))]

    chosen = f"{_grouped(things)} {on}."
    kinds = {o.triple for o in things}
    absent = [(z, c, s) for z in SIZES for c in COLOURS for s in SHAPES if (z, c, s) not in kinds]
    size, colour, shape = absent[int(rng.random() * len(absent))]
    invented = SceneObject(shape, colour, size, 2, 2, 0, 0)
    pairs = [("invented_object", chosen, f"{_grouped((*things, invented))} {on}.")]

    while True:  # change one attribute of one object into something that is not there
        i = int(rng.random() * len(things))
        attribute, options = (("colour", COLOURS), ("size", SIZES), ("shape", SHAPES))[int(rng.random() * 3)]
        changed = things[i]._replace(**{attribute: other(options, getattr(things[i], attribute))})
        if changed.triple not in kinds:
            break
    pairs.append(("wrong_attribute", chosen, f"{_grouped((*things[:i], changed, *things[i + 1 :]))} {on}."))

    if len(things) > 1 and things[0].triple != things[1].triple:
        opposite = {
            "above": "below",
            "below": "above",
            "to the left of": "to the right of",
            "to the right of": "to the left of",
        }
        wrong = opposite[relation(things[0], things[1])]
        pairs.append(("wrong_relation", f"{related(scene)}.", f"{related(scene, wrong)}."))

    words = chosen[:-1].split()
    i = int(rng.random() * (len(words) - 1))
    while words[i] == words[i + 1]:
        i = (i + 1) % (len(words) - 1)
    words[i], words[i + 1] = words[i + 1], words[i]
    pairs.append(("broken_grammar", chosen, " ".join(words) + "."))
    return [{"flaw": flaw, "chosen": good, "rejected": bad} for flaw, good, bad in pairs]


def notes(scene: Scene, rng: Random, places: bool) -> str:
    """
    The scene as somebody's rough notes: text from which caption and answers can be read, for language models that never see a
    picture. Words of a phrase may come in any order; with `places`, now and then the objects too.
    """
    parts = []
    for thing in scene.objects:
        words = list(thing.triple) if rng.random() < 0.5 else _shuffle(list(thing.triple), rng)
        parts.append(" ".join(words) + (f" {place(thing)}" if places else ""))
    if places and rng.random() < 0.2:
        parts = _shuffle(parts, rng)
    return ", ".join([scene.background, *parts])


def _shuffle(items: list, rng: Random) -> list:
    keyed = [(rng.random(), item) for item in items]
    return [item for _, item in sorted(keyed, key=lambda pair: pair[0])]
