"""
Merge a LoRA into the model it was trained on: a folder with base and adapter becomes a folder with a whole model.

    python recipes/merge.py --model outputs/ossight/s1_lora --output outputs/ossight/s1_merged

The base is loaded unquantised, so a LoRA that was trained beside 4-bit weights is merged into the full-precision ones. What has
changed is carried by the new folder; towers that have not may still be named by Hub id and commit.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from peft import PeftModel
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

import modeling  # noqa: F401  teaches the Auto classes our models: the working tree wins over code saved with a checkpoint
import processing  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder with base and adapter")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    folder = args.model.resolve()
    if not (folder / "adapter_config.json").is_file():
        raise SystemExit(f"{folder} holds no adapter_config.json: there is nothing to merge")

    # 1. The base alone: beside an adapter, transformers loads both.
    with TemporaryDirectory() as base:
        for path in folder.iterdir():
            if path.is_file() and not path.name.startswith("adapter_"):
                (Path(base) / path.name).symlink_to(path)
        config = AutoConfig.from_pretrained(base)
        for tower in (getattr(config, "towers", None) or {}).values():
            tower.pop("quantization", None)
        model = AutoModelForImageTextToText.from_pretrained(base, config=config, dtype=args.dtype)

    # 2. Merge, and save what has changed with the rest.
    model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    model.save_pretrained(args.output)
    AutoProcessor.from_pretrained(folder).save_pretrained(args.output)
    print(f"merged: {args.output}")


if __name__ == "__main__":
    main()
