"""
POPE's questions about any pictures whose objects are known (Li et al., 2023, https://arxiv.org/abs/2305.10355; the rule is that of
https://github.com/AoiDragon/POPE, utils.py).

    {"7": ["dog", "ball", "tree"], ...}  ->  Is there a dog in the image? yes / Is there an umbrella in the image? no / ...

Of each picture, its first objects are asked of, and after each one object that is not there:

    random       any
    popular      the one that is in most pictures
    adversarial  the one that is in most pictures together with the object just asked of; any, when none is left

What is counted is the pictures that are asked about. No object is asked of twice in a picture.

Fixed here: questions depend on nothing but their pictures and `seed`, not on the order of a folder or a dictionary (of two equally
frequent objects the first in the alphabet is asked of); an object listed twice counts once; a picture that holds so many objects
that too few are absent is left out instead of searched for ever; "an" does not make an "imange" of the image.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from random import Random

from datasets import Dataset

from datasets_scripts.scene_language import IS_THERE


logger = logging.getLogger(__name__)

STRATEGIES = ("random", "popular", "adversarial")
TEMPLATE = "Is there {} in the image?"
# by sound: an hour, but a unicycle
_AN = re.compile(r"(?!uni(?!n|m)|use|ute|uri|uk|ufo|eu|ew|one\b)[aeiou]|hour|heir|honest|honou?r", re.IGNORECASE)


def pope_questions(
    objects: Mapping[str, Sequence[str]],
    strategies: Sequence[str] = STRATEGIES,
    per_image: int = 3,
    seed: int = 0,
    template: str = TEMPLATE,
) -> list[dict[str, str]]:
    """
    For each strategy, `per_image` questions whose answer is yes and as many whose answer is no about each picture, in the order of
    the ids: {"image_id", "question", "answer", "strategy"}. `objects`: picture id -> names of what is there.

    Pictures with fewer than `per_image` objects there, or absent, are left out; the log says how many. Raises ValueError for a
    strategy that there is not, for objects that are a string, and if no picture is left.
    """
    for strategy in strategies:
        if strategy not in STRATEGIES:
            raise ValueError(f"there is no strategy {strategy!r}; there are {', '.join(STRATEGIES)}")
    if per_image < 1:
        raise ValueError(f"per_image is {per_image}; at least one object of a picture must be asked of")
    for image_id, there in objects.items():
        if isinstance(there, str):
            raise ValueError(f"picture {image_id}: its objects are the string {there!r}, not a list of names")
    pictures = _askable({image_id: list(dict.fromkeys(objects[image_id])) for image_id in sorted(objects)}, per_image)

    frequency = Counter(name for there in pictures.values() for name in there)
    together: dict[str, Counter[str]] = {name: Counter() for name in frequency}
    for there in pictures.values():
        for name in there:
            together[name].update(other for other in there if other != name)
    everything, popular = sorted(frequency), _by_count(frequency)
    companions = {name: _by_count(others) for name, others in together.items()}

    rows = []
    for strategy in strategies:
        for image_id, there in pictures.items():
            rng, taken = Random(f"pope/{seed}/{strategy}/{image_id}"), set(there)
            for present in there[:per_image]:
                preferred = {"random": [], "popular": popular, "adversarial": companions[present]}[strategy]
                absent = next((name for name in preferred if name not in taken), None)
                if absent is None:
                    left = [name for name in everything if name not in taken]
                    absent = left[int(rng.random() * len(left))]
                taken.add(absent)
                for name, answer in ((present, "yes"), (absent, "no")):
                    question = template.format(f"{'an' if _AN.match(name) else 'a'} {name}")
                    rows.append({"image_id": image_id, "question": question, "answer": answer, "strategy": strategy})
    return rows


def questions_about(rows: Dataset, seed: int = 0) -> tuple[list[dict[str, str]], dict]:
    """
    The questions of every strategy about rows in canonical columns, from the phrases of their `regions`, and how they came about:
    {"template", "per_image", "seed", "pictures", "left_out", "fingerprint"}.

    Three objects a picture, as in the paper, by its template. Of scenes, whose phrases are "small red star" and most of which hold
    fewer than three kinds: one "red star", in the words of the world's own questions. It is drawn, because the first would always
    be the topmost. Raises ValueError for rows without regions, for two rows of one picture that disagree, and as `pope_questions`.
    """
    world = "scene" in rows.column_names
    objects: dict[str, list[str]] = {}
    for row in rows.select_columns([name for name in ("image_id", "regions") if name in rows.column_names]):
        image_id, regions = row["image_id"], row.get("regions", [])
        names = [region["phrase"] for region in regions]
        if world:
            rng = Random(f"pope/{seed}/{image_id}")
            names = [name.split(" ", 1)[1] for name in names]
            names = sorted(names, key=lambda name: rng.random())
        if objects.setdefault(image_id, names) != names:
            raise ValueError(f"picture {image_id} is in two rows whose regions differ; what is there?")
    if not any(objects.values()):
        raise ValueError("POPE asks of what the `regions` of rows name, and no row has any; leave pope out")
    how = {"template": IS_THERE if world else TEMPLATE, "per_image": 1 if world else 3, "seed": seed}
    asked = pope_questions(objects, **how)
    pictures = len({question["image_id"] for question in asked})
    digest = sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()
    return asked, how | {"pictures": pictures, "left_out": len(objects) - pictures, "fingerprint": digest[:16]}


def _askable(pictures: dict[str, list[str]], per_image: int) -> dict[str, list[str]]:
    """The pictures of which so many objects are there, and so many absent. Raises ValueError if there are none."""
    total = len(pictures)
    few = [image_id for image_id, there in pictures.items() if len(there) < per_image]
    pictures = {image_id: there for image_id, there in pictures.items() if len(there) >= per_image}
    full: list[str] = []
    while True:  # leaving out a picture can take objects out of the world, so that others are full too
        everything = {name for there in pictures.values() for name in there}
        crowded = {image_id for image_id, there in pictures.items() if len(everything) - len(there) < per_image}
        if not crowded:
            break
        full += sorted(crowded)
        pictures = {image_id: there for image_id, there in pictures.items() if image_id not in crowded}
    _report(f"pictures with fewer than {per_image} objects left out", few)
    _report(f"pictures in which fewer than {per_image} of all objects are absent left out", full)
    if not pictures:
        raise ValueError(
            f"none of {total} pictures can be asked about: {len(few)} have fewer than {per_image} objects, in "
            f"{len(full)} fewer than {per_image} of all objects are absent; lower per_image or add pictures"
        )
    return pictures


def _by_count(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))


def _report(what: str, image_ids: list[str]) -> None:
    if image_ids:
        more = ", …" if len(image_ids) > 3 else ""
        logger.warning("%d %s (%s%s)", len(image_ids), what, ", ".join(map(str, image_ids[:3])), more)
