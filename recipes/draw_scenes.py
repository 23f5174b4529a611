"""
Draw pictures of the miniature world into a folder, with their captions: something to try a model on, and an example of how a folder
of one's own pictures is laid out.

    python recipes/draw_scenes.py --count 6 --split test --output pictures
"""

import argparse
from pathlib import Path

from datasets_scripts.scene_drawing import draw
from datasets_scripts.scene_language import captions
from datasets_scripts.scenes import scenes
from trainers.run_folder import write_jsonl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder to write pictures and metadata.jsonl into")
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image_size", type=int, default=60)
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for scene in scenes(args.seed, args.split, args.count):
        draw(scene, args.image_size).save(args.output / f"{scene.image_id}.png")
        rows.append({"file_name": f"{scene.image_id}.png", "captions": captions(scene)})
    write_jsonl(args.output / "metadata.jsonl", rows)


if __name__ == "__main__":
    main()
