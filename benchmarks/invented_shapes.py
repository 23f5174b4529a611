"""
What is invented in the miniature world: something that is not there at all, or something that is there, taken for another shape?

    python benchmarks/invented_shapes.py outputs/spin/finetune [more runs] [--split test_biased]

Reads the predictions.jsonl of runs of recipes/caption.py. A mention ("red boat") is invented if the scene has no such shape; it is
a mistaken one if an object of that colour is there that the caption does not name.
"""

import argparse
import re
from pathlib import Path

from datasets_scripts import load_rows
from datasets_scripts.scene_description import COLOURS, SHAPES
from trainers.run_folder import read_jsonl


MENTION = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})s?\b")


def invented(caption: str, phrases: list[str]) -> tuple[int, int, int]:
    """Of a caption and the phrases of what is there: mentions, those invented, and those of them that are mistaken."""
    said, there = MENTION.findall(caption), [MENTION.search(phrase).groups() for phrase in phrases]
    wrong = [(colour, shape) for colour, shape in said if shape not in {shape for _, shape in there}]
    unnamed = {colour for colour, shape in there if (colour, shape) not in said}
    return len(said), len(wrong), sum(colour in unnamed for colour, _ in wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--split", default="test_biased")
    args = parser.parse_args()
    rows = load_rows("scenes", args.split, rows="image").select_columns(["image_id", "regions"])
    truth = {row["image_id"]: [region["phrase"] for region in row["regions"]] for row in rows}
    counts = [
        invented(row["prediction"], truth[row["image_id"]])
        for run in args.runs
        for row in read_jsonl(run / "predictions.jsonl")
    ]
    mentions, wrong, mistaken = (sum(column) for column in zip(*counts, strict=True))
    print(f"{mentions} mentions, {wrong} invented ({wrong / mentions:.1%}); {mistaken} of these are a thing that is there "
          f"and is not named otherwise, by another shape ({mistaken / max(1, wrong):.0%})")  # fmt: skip


if __name__ == "__main__":
    main()
