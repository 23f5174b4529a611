"""
What preference alignment buys: phase 2 in five ways, from several seeds, beside the model that all begin with.

    python recipes/compare_preferences.py --config recipes/contrastive_gpt2/phase2.yaml --seeds 42 43 44 --output DIR

Each way and seed is one run of recipes/prefer.py in a folder of its own; a run that is there is not run again, one that was stopped
goes on. Writes table.md: means over seeds, with Student's 95 % intervals, of figures on the test split.

Unusual: all ways and seeds begin with one phase 1 model, so seeds tell how sure phase 2 is, not phase 1.
"""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from transformers import HfArgumentParser

from trainers.over_seeds import interval
from trainers.run_folder import read_json, write_text


ROOT = Path(__file__).parents[1]
WAYS = {
    "contrastive_only": {"alpha_start": 1, "alpha_end": 1, "caption_weight": 0},
    "no_preference": {"alpha_start": 1, "alpha_end": 1},  # as phase 1, on as many captions
    "joint_alpha_fixed": {"alpha_start": 0.5, "alpha_end": 0.5},
    "joint_alpha_t": {},
    "dpo": {"loss_type": "dpo", "margin": 0, "beta": 0.1, "alpha_start": 0, "alpha_end": 0, "caption_weight": 0},
}
FIGURES = {  # name in metrics.json -> column
    "normalised_preference_accuracy": "pairs right",
    "normalised_preference_accuracy_invented_object": "invented object",
    "normalised_preference_accuracy_wrong_attribute": "wrong attribute",
    "normalised_preference_accuracy_wrong_relation": "wrong relation",
    "normalised_preference_accuracy_broken_grammar": "broken grammar",
    "win_rate": "win rate",
    "scene_f1": "scene F1",
    "chair_i": "CHAIR_i",
    "cider": "CIDEr",
    "text_to_image_r1": "R@1",
}


@dataclass
class Arguments:
    config: str = "recipes/contrastive_gpt2/phase2.yaml"
    seeds: list[int] = field(default_factory=lambda: [42, 43, 44], metadata={"nargs": "+"})
    ways: list[str] = field(default_factory=lambda: list(WAYS), metadata={"nargs": "+"})
    output: str = "outputs/contrastive_gpt2/comparison"
    accelerate_config: str = str(ROOT / "recipes/accelerate/cpu.yaml")

    def __post_init__(self):
        if unknown := set(self.ways) - set(WAYS):
            raise ValueError(f"ways: {', '.join(sorted(unknown))} is none of {', '.join(WAYS)}")


def train(args: Arguments, way: str, seed: int) -> Path:
    """The folder of a run, which is there or is made."""
    folder = Path(args.output) / f"{way}_{seed}"
    if (folder / "metrics.json").exists():
        return folder
    told = {**WAYS[way], "seed": seed, "output_dir": folder}
    told |= {"resume_from_checkpoint": "true"} if list(folder.glob("checkpoint-*")) else {}
    words = [word for name, value in told.items() for word in (f"--{name}", str(value))]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", args.accelerate_config]
    print(f"\n{way}, seed {seed}", flush=True)
    subprocess.run([*launch, str(ROOT / "recipes/prefer.py"), "--config", args.config, *words], check=True)
    return folder


def beginning(args: Arguments) -> dict:
    """The figures of the model that all begin with: its run's own and, of pairs, recipes/evaluate.py's."""
    recipe = yaml.safe_load(Path(args.config).read_text(encoding="utf-8"))
    folder = Path(args.output) / "before"
    if not (folder / "metrics.json").exists():
        asked = ["--model", recipe["model"], "--dataset", recipe["dataset"], "--split", recipe["test_split"]]
        asked += ["--metrics", "preference_accuracy", "--output", str(folder)]
        asked += ["--num_examples", str(recipe["test_examples"])] if "test_examples" in recipe else []
        subprocess.run([sys.executable, str(ROOT / "recipes/evaluate.py"), *asked], check=True)
    return read_json(Path(recipe["model"]) / "metrics.json") | read_json(folder / "metrics.json")


def table(before: dict, runs: dict[str, list[dict]]) -> str:
    def cell(found: list[dict], name: str) -> str:
        values = np.array([figures[name]["value"] for figures in found if name in figures])
        if not len(values):
            return "–"
        mean, half = interval(values)
        return f"{mean:.3f}" + ("" if np.isnan(half) else f" ± {half:.3f}")

    lines = [f"| | {' | '.join(FIGURES.values())} |", "|---" * (len(FIGURES) + 1) + "|"]
    for way, found in {"phase_1": [before], **runs}.items():
        lines.append(f"| {way} | {' | '.join(cell(found, name) for name in FIGURES)} |")
    return "\n".join(lines)


def main(args: Arguments) -> None:
    before = beginning(args)
    runs = {way: [read_json(train(args, way, seed) / "metrics.json") for seed in args.seeds] for way in args.ways}
    written = table(before, runs)
    write_text(Path(args.output) / "table.md", written + "\n")
    print(f"\n{written}\n\nseeds {', '.join(map(str, args.seeds))}; every run: {args.output}")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
