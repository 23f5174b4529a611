"""
Load a saved folder as a stranger would, and check that nothing is lost.

    python recipes/stranger.py --model outputs/ossight/quickstart

A fresh interpreter that cannot import this repository, with an empty Hugging Face cache, loads the folder by `trust_remote_code`
alone; it has to arrive at the logits that are computed here, from the working tree.
"""

import argparse
from pathlib import Path

import modeling  # noqa: F401  here the working tree speaks for the folder
import processing  # noqa: F401
from trainers.stranger import ask, ask_as_a_stranger, compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder")
    folder = parser.parse_args().model.resolve()
    compare(ask(str(folder)), ask_as_a_stranger(str(folder), "main"), str(folder))
    print(f"a stranger loads {folder} and gets the same logits")


if __name__ == "__main__":
    main()
