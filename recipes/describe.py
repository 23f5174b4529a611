"""
Describe pictures: files, or folders of them.

    python recipes/describe.py --model DIR_OR_HUB_ID photo.jpg folder/ --output captions.jsonl
    python recipes/describe.py --model DIR_OR_HUB_ID --prompt "What colour is the boat?" photo.jpg
    python recipes/describe.py --model DIR_OR_HUB_ID --reward_model DIR_OR_HUB_ID --best_of 8 photo.jpg

Prints a line a picture, and with --output also writes them as JSON lines {"file", "caption"}, as they are made: a run that is
stopped loses nothing, and run again it goes on with the pictures that are left. A file that is no picture is named and skipped.
With --reward_model the caption is the best, by reward, of the greedy one and several sampled ones; its line then has "reward" too.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import modeling  # noqa: F401  teaches the Auto classes our models: the working tree wins over code saved with a checkpoint
import processing  # noqa: F401
from datasets_scripts.canonical import PROMPT
from datasets_scripts.open_picture import UnreadablePicture, open_picture
from modeling.attention_amplification import PAIConfig, enable_pai
from modeling.contrastive_decoding import VCDConfig, enable_vcd
from modeling.head_suppression import chosen_spin, enable_spin
from trainers.captioning_evaluation import generate_captions
from trainers.chat_turns import complete_turns
from trainers.reward_scores import best_of, load_reward_model


SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def files(paths: list[Path]) -> Iterator[Path]:
    """The files named, and every picture in the folders named, in order. Raises FileNotFoundError for a path that is not there."""
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"{path} is not there")


def load(path: Path) -> Image.Image | None:
    """An upright RGB picture, or None (said on stderr) where the file holds none."""
    try:
        return open_picture(path)
    except UnreadablePicture as problem:
        print(f"skipped {problem}", file=sys.stderr)
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path, help="files and folders")
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--revision", help="of a Hub id: branch, tag or commit")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--output", type=Path, help="JSON lines to write, or to go on with")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--reward_model", help="folder or Hub id: keep the caption that it gives the highest reward")
    parser.add_argument("--reward_revision", help="of its Hub id: branch, tag or commit")
    parser.add_argument("--best_of", type=int, help="how many captions are sampled, beside the greedy one; default 8")
    parser.add_argument("--temperature", type=float, help="that they are sampled at; default 1.0")
    parser.add_argument("--seed", type=int, help="of the samples; default 0")
    methods = parser.add_mutually_exclusive_group()
    methods.add_argument(
        "--spin", nargs="*", metavar="NAME=VALUE",
        help="suppress heads that look away from the picture: keep_ratio=0.9 suppression=0.08 …; nothing: as the model keeps it",
    )  # fmt: skip
    methods.add_argument(
        "--vcd", nargs="*", metavar="NAME=VALUE",
        help="subtract what the model would say of a noised picture: alpha=1.0 noise_step=500 …",
    )  # fmt: skip
    methods.add_argument(
        "--pai", nargs="*", metavar="NAME=VALUE",
        help="amplify attention to the picture, subtract what the model would say without: alpha=0.2 gamma=1.1 …",
    )  # fmt: skip
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="for models that are not ours; pin --revision then"
    )
    args = parser.parse_args()
    sampling = {name: getattr(args, name) for name in ("temperature", "seed") if getattr(args, name) is not None}
    if args.reward_model is None and (args.best_of is not None or sampling):
        parser.error("--best_of, --temperature and --seed need --reward_model, which says what is best")

    # 1. What is asked for, less what an earlier run has done.
    done = set()
    if args.output and args.output.exists():
        lines = args.output.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a kill can leave half a line
        done = {json.loads(line)["file"] for line in whole}
        args.output.write_text("".join(whole), encoding="utf-8")
    wanted = [path for path in files(args.pictures) if str(path) not in done]
    if done:
        print(f"{len(done)} pictures described already, {len(wanted)} to go", file=sys.stderr)

    # 2. The model.
    common = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=args.dtype, **common).eval().to(device)
    processor = AutoProcessor.from_pretrained(args.model, **common)
    complete_turns(processor)  # as recipes/caption.py trains them
    judge = args.reward_model and load_reward_model(args.reward_model, **common | {"revision": args.reward_revision})

    if args.spin is not None:
        enable_spin(model, chosen_spin(model, args.spin))
    if args.vcd is not None:
        enable_vcd(model, VCDConfig.from_words(args.vcd))
    if args.pai is not None:
        enable_pai(model, PAIConfig.from_words(args.pai))

    # 3. Describe, a batch at a time.
    turns = [{"role": "user", "content": args.prompt}]
    for start in range(0, len(wanted), args.batch_size):
        some = [(path, load(path)) for path in wanted[start : start + args.batch_size]]
        some = [(path, picture) for path, picture in some if picture is not None]
        if not some:
            continue
        rows = [{"prompt": turns, "images": [picture], "image_id": str(path)} for path, picture in some]
        how = {"max_new_tokens": args.max_new_tokens, "num_beams": args.num_beams, "do_sample": False}
        how |= {"batch_size": args.batch_size, "progress": False}
        if judge:
            found = best_of(
                model, processor, *judge, rows, 8 if args.best_of is None else args.best_of, **sampling, **how
            )
            said = [max(zip(rewards, captions, strict=True), key=lambda pair: pair[0]) for captions, rewards in found]
            said = [{"caption": caption, "reward": round(reward, 6)} for reward, caption in said]
        else:
            said = [{"caption": caption} for caption in generate_captions(model, processor, rows, **how)]
        lines = [{"file": str(path), **one} for (path, _), one in zip(some, said, strict=True)]
        for line in lines:
            print(f"{line['file']}\t{line['caption']}", flush=True)
        if args.output:
            with args.output.open("a", encoding="utf-8") as output:
                output.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


if __name__ == "__main__":
    main()
