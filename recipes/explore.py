"""
What is in a dataset, in pictures: one page that can be sent to a colleague, and its figures beside it as JSON.

    python recipes/explore.py --dataset pixmo --data_dir FOLDER --output report.html
    python recipes/explore.py --dataset classes --data_dir FOLDER --rows alignment --output report.html
    python recipes/explore.py --dataset scenes --num_examples 300 --output report.html

Of every split: how many rows and pictures, how long captions are and of which words, sizes of pictures, sounds and regions; what is
unreadable, what is there twice, what is in train and in test; and a sample to look at. Works for all that load_rows reads.

Unusual: the page needs no network and runs no script. Ctrl-C ends the reading and still writes the report of what was read; a
second one ends the run and writes nothing.
"""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from datasets_scripts import load_rows, split_names
from trainers.dataset_page import page, rows_shown
from trainers.dataset_reading import Split, read_split
from trainers.dataset_report import counted, describe
from trainers.dataset_rows import rows_at, some_rows
from trainers.dataset_statistics import DISTANCE
from trainers.run_folder import read_settings, write_json, write_text


@dataclass
class Arguments:
    dataset: (
        str  # scenes; pictures, flickr8k, pixmo, classes … (with --data_dir); or a Hub id: all that load_rows reads
    )
    output: str  # the page to write, NAME.html; its figures go to NAME.json
    data_dir: str | None = None
    dataset_options: str | None = None  # of the builder, as JSON: '{"train_from": "val2017"}'
    columns: str | None = None  # of a Hub id without canonical columns: '{"image": "jpg", "caption": "txt"}'
    split: list[str] | None = field(default=None, metadata={"nargs": "+"})  # default: all that there are
    rows: str = (
        "image"  # one row a picture, captions being its references; "caption" or "alignment": as training reads it
    )
    num_examples: int | None = None  # of each split so many rows, drawn at random; of a stream the first
    streaming: bool = False  # read as it comes, instead of whole first
    hash_distance: int = DISTANCE  # bits by which perceptual hashes of near-duplicates may differ
    seed: int = 0  # of what is drawn at random
    workers: int | None = None  # threads that open pictures; None: as many as there are cores


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within it, the first Ctrl-C makes the function it gives true; the second is an interrupt as always."""
    asked = []

    def ask(*_) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def main(args: Arguments) -> None:
    # 1. Which splits there are.
    output = Path(args.output)
    if output.suffix != ".html":
        raise ValueError(f"output: {args.output} must end in .html; the figures go beside it as .json")
    if args.num_examples is not None and args.num_examples < 1:
        raise ValueError(f"num_examples must be at least 1; is {args.num_examples}")
    options = read_settings("dataset_options", args.dataset_options)
    columns = read_settings("columns", args.columns) or None

    def load(split: str):
        return load_rows(args.dataset, split, args.rows, args.data_dir, args.streaming, columns, **options)

    names = args.split or split_names(args.dataset, args.rows, args.data_dir, columns, **options)

    # 2. Read them.
    read, rows = [], {}
    root = args.data_dir and os.path.abspath(os.path.expanduser(args.data_dir))
    with ThreadPoolExecutor(args.workers or os.cpu_count()) as pool:
        for name in names:
            rows[name] = load(name)
            some, numbers, there = some_rows(rows[name], args.num_examples, f"rows/{args.seed}/{name}")
            split = Split(name, numbers, there)
            with interruptible() as stop:
                read_split(split, some, pool, root, args.rows != "caption", stop)
            read.append(split)
            if split.stopped:
                break

    # 3. The figures, and the rows that the page shows.
    figures = {"dataset": asdict(args), "splits_there": names, **describe(read, args.hash_distance, args.seed)}
    if len(read) < len(names):
        figures["notes"].append(f"Not read: {', '.join(names[len(read) :])}.")
    shown = {name: rows_at(rows[name], numbers) for name, numbers in rows_shown(figures).items()}

    # 4. The page.
    write_json(output.with_suffix(".json"), figures)
    write_text(output, page(figures, shown))
    for warning in figures["warnings"]:
        print(f"- {warning}")
    splits = ", ".join(f"{counted(split.read, 'row')} of {split.name}" for split in read)
    print(f"{splits}: {output} ({output.stat().st_size / 1e6:.1f} MB), {output.with_suffix('.json')}")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
