"""
What is known of a data set that is published as links: which pictures are there, and what came of every link.

    FOLDER/images/3f/9c01….jpg   a picture, byte for byte as published; where it lies follows from its link alone
    FOLDER/links.jsonl           a line a link: bytes and sha256, or why it is dead
    urls -> Links(FOLDER).completeness -> "15 of 20 pictures there (75.0 %); 5 dead links: 4 404, 1 timeout"

link_download.py brings them.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from datasets_scripts.class_folders import PICTURES


PICTURES_IN, JOURNAL = "images", "links.jsonl"


@dataclass(frozen=True)
class Completeness:
    """Of `asked` links, how many pictures are there, and how many links are dead for which reason."""

    asked: int
    there: int
    dead: dict[str, int]

    @property
    def unasked(self) -> int:
        return self.asked - self.there - sum(self.dead.values())

    def __str__(self) -> str:
        line = f"{self.there:,} of {self.asked:,} pictures there ({100 * self.there / max(1, self.asked):.1f} %)"
        if self.dead:
            reasons = ", ".join(f"{count:,} {why}" for why, count in self.dead.items())
            line += f"; {sum(self.dead.values()):,} dead links: {reasons}"
        return line + (f"; {self.unasked:,} not asked for yet" if self.unasked else "")


def name_of(url: str) -> str:
    """
    Where a link's picture lies under images/: "3f/9c01….jpg", by the link's SHA-256, in 256 folders. The ending is the link's if it
    is a picture's, else .jpg, and promises nothing: what opens pictures here goes by their bytes.
    """
    digest = sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    ending = PurePosixPath(url.split("?")[0].split("#")[0]).suffix.lower()
    return f"{digest[:2]}/{digest[2:34]}{ending if ending in PICTURES else '.jpg'}"


class Links:
    """What is known of links whose pictures lie in a folder. `came`: url -> bytes of its picture, or why it is dead."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.came: dict[str, int | str] = {}
        journal = self.folder / JOURNAL
        with journal.open("rb") if journal.exists() else open(os.devnull, "rb") as lines:
            for line in lines:
                try:
                    told = json.loads(line)
                    self.came[told["url"]] = told["dead"] if "dead" in told else told["bytes"]
                except (ValueError, KeyError, TypeError):
                    continue  # cut off by a kill: nothing is known of that link, so it is asked for again

    def path(self, url: str) -> Path:
        return self.folder / PICTURES_IN / name_of(url)

    def there(self, url: str) -> bool:
        """Whether its picture is there, of the size that came."""
        try:
            size = os.stat(self.path(url)).st_size
        except OSError:
            return False
        came = self.came.get(url)
        return size == came if isinstance(came, int) else size > 0

    def completeness(self, urls: Iterable[str]) -> Completeness:
        asked, there, dead = 0, 0, Counter()
        for url in urls:
            asked += 1
            if self.there(url):
                there += 1
            elif isinstance(why := self.came.get(url), str):
                dead[why] += 1
        return Completeness(asked, there, dict(dead.most_common()))
