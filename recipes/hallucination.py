"""
Who invents less? Greedy decoding against head suppression (SPIN), VCD and PAI, on models trained alike from different seeds.

    python recipes/hallucination.py --models outputs/spin/seed_0 outputs/spin/seed_1 outputs/spin/seed_2 --output DIR

Every setting is scored on every model and split; of each method, that setting is chosen on --choose_on whose CHAIR_i is lowest
among those that cost at most one point of object F1 there (means over the models). Writes results.jsonl (a line as soon as it is
known: the same command goes on where it was stopped), table.md and plot.png.

Intervals are over models: Student's t for their mean, of differences taken model by model.
"""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

import modeling  # noqa: F401  teaches the Auto classes our models
import processing  # noqa: F401
from datasets_scripts import load_rows
from datasets_scripts.pope_questions import questions_about
from modeling.attention_amplification import PAIConfig, pai
from modeling.contrastive_decoding import VCDConfig, vcd
from modeling.head_suppression import SpinConfig, spin
from trainers.captioning_evaluation import answer_questions, generate_captions
from trainers.over_seeds import interval
from trainers.run_folder import write_jsonl, write_text
from trainers.scoring import score, score_answers


METHODS = {"greedy": None, "spin": (SpinConfig, spin), "vcd": (VCDConfig, vcd), "pai": (PAIConfig, pai)}
F1_ALLOWED = 0.01  # what a chosen setting may cost


@dataclass
class Arguments:
    models: list[str] = field(metadata={"nargs": "+"})  # folders or Hub ids, equal but for their seed
    output: str = "outputs/spin/hallucination"
    dataset: str = "scenes"
    data_dir: str | None = None
    choose_on: str = "validation"
    split: str = "test"
    num_examples: int = 500
    batch_size: int = 100
    max_new_tokens: int = 64
    settings: list[str] | None = (
        field(  # "spin keep_ratio=0.9 suppression=0.1"; default: the sweep of recipes/spin/README.md
            default=None, metadata={"nargs": "+"}
        )
    )


def sweep() -> list[str]:
    spins = [
        f"spin keep_ratio={keep} suppression={alpha} score={how}"
        for how in ("logits", "mass")
        for keep in (0.875, 0.75, 0.5)
        for alpha in (0.0, 0.1, 0.5)
    ]
    vcds = [f"vcd alpha={alpha} noise_step={step}" for alpha in (0.5, 1.0) for step in (500, 999)]
    pais = [f"pai alpha={alpha} gamma={gamma} start_layer=0" for alpha in (0.2, 0.5, 1.0) for gamma in (1.0, 1.1)]
    return ["greedy", *spins, *vcds, *pais]


def attending(model: torch.nn.Module, setting: str):
    """The context in which a model generates as a setting says. Raises ValueError for one that is not known."""
    method, *words = setting.split()
    if method not in METHODS:
        raise ValueError(f"{setting!r}: the method is one of {', '.join(METHODS)}")
    if METHODS[method] is None:
        return nullcontext()
    config, context = METHODS[method]
    return context(model, config.from_words(words))


def measure(model, processor, rows, questions, args: Arguments) -> dict[str, float]:
    """Figures of captions and answers as they are generated now."""
    ask = {"batch_size": args.batch_size, "do_sample": False, "progress": False}
    began = time.perf_counter()
    captions = generate_captions(model, processor, rows, max_new_tokens=args.max_new_tokens, **ask)
    seconds = time.perf_counter() - began
    tokens = sum(map(len, processor.tokenizer(captions, add_special_tokens=False)["input_ids"]))
    figures = score(["chair", *(["scene_f1"] if "scene" in rows.column_names else [])], captions, rows)
    answers = answer_questions(model, processor, rows, questions, max_new_tokens=8, **ask)
    figures = {name: figure["value"] for name, figure in (figures | score_answers(questions, answers)).items()}
    for name in ("accuracy", "f1", "yes_ratio"):
        parts = [figures[f"pope_{strategy}_{name}"] for strategy in ("random", "popular", "adversarial")]
        figures[f"pope_{name}"] = float(np.mean(parts))
    return figures | {"tokens_per_second": tokens / seconds}


class Results:
    """What is known, in results.jsonl: (model, split, setting) -> figures."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.jsonl"
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        write_jsonl(self.path, rows)  # without the half line that a kill can leave
        self.known = {(row["model"], row["split"], row["setting"]): row for row in rows}

    def add(self, model: str, split: str, setting: str, figures: dict) -> None:
        row = {"model": model, "split": split, "setting": setting, **{k: round(v, 6) for k, v in figures.items()}}
        self.known[model, split, setting] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, args: Arguments, split: str, setting: str, name: str) -> np.ndarray:
        return np.array([self.known[model, split, setting][name] for model in args.models])


def choose(results: Results, args: Arguments, settings: list[str]) -> dict[str, str]:
    """The setting of each method that invents least on `choose_on` among those that cost at most F1_ALLOWED there, if any."""
    chosen = {}
    plain = results.of(args, args.choose_on, "greedy", "chair_f1").mean()
    for method in METHODS:
        mine = [s for s in settings if s.split()[0] == method]
        cheap = [s for s in mine if results.of(args, args.choose_on, s, "chair_f1").mean() >= plain - F1_ALLOWED]
        if cheap:
            chosen[method] = min(cheap, key=lambda s: results.of(args, args.choose_on, s, "chair_i").mean())
    return chosen


def table(results: Results, args: Arguments, settings: list[str], split: str, chosen: dict[str, str]) -> str:
    head = [
        "setting",
        "CHAIR_i",
        "change",
        "object F1",
        "F1 lost",
        "CHAIR_s",
        "recall",
        "words",
        "POPE accuracy",
        "yes",
        "tokens/s",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for setting in settings:

        def shown(name: str, digits: int = 3, setting: str = setting) -> str:
            mean, half = interval(results.of(args, split, setting, name))
            return f"{mean:.{digits}f}" + ("" if np.isnan(half) else f" ± {half:.{digits}f}")

        both = [results.of(args, split, one, "chair_i") for one in (setting, "greedy")]
        change, width = interval(both[0] / both[1] - 1)
        lost, lost_width = interval(np.subtract(*(results.of(args, split, s, "chair_f1") for s in ("greedy", setting))))
        cells = [
            f"**{setting}**" if setting in chosen.values() else setting, shown("chair_i"), f"{change:+.0%} ± {width:.0%}",
            shown("chair_f1"), f"{lost:+.3f} ± {lost_width:.3f}", shown("chair_s"), shown("chair_recall"), shown("chair_length", 1),
            shown("pope_accuracy"), shown("pope_yes_ratio"), shown("tokens_per_second", 0),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace(" ± nan%", "").replace(" ± nan", "")


def plot(results: Results, args: Arguments, settings: list[str], chosen: dict[str, str], path: Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, split in zip(axes, (args.choose_on, args.split), strict=True):
        for method, colour in zip(METHODS, ("black", "tab:red", "tab:blue", "tab:green"), strict=True):
            mine = [s for s in settings if s.split()[0] == method]
            if not mine:
                continue
            x, y = ([results.of(args, split, s, n).mean() for s in mine] for n in ("chair_f1", "chair_i"))
            axis.scatter(x, y, c=colour, label=method, s=[90 if s in chosen.values() else 25 for s in mine], alpha=0.8)
        axis.set_title(f"{split}: mean of {len(args.models)} models (large: chosen on {args.choose_on})", fontsize=9)
        axis.set_xlabel("object F1")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("CHAIR_i (invented mentions / mentions)")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(args: Arguments) -> None:
    # 1. What is known already, and what is left to measure.
    settings = args.settings or sweep()
    settings = settings if "greedy" in settings else ["greedy", *settings]
    results = Results(Path(args.output))
    splits = dict.fromkeys((args.choose_on, args.split))
    todo = [(m, sp, s) for m in args.models for sp in splits for s in settings if (m, sp, s) not in results.known]

    # 2. Measure it.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = {split: load_rows(args.dataset, split, rows="image", data_dir=args.data_dir) for split in splits}
    rows = {split: some.select(range(min(args.num_examples, len(some)))) for split, some in rows.items()}
    questions = {split: questions_about(some)[0] for split, some in rows.items()}
    loaded = None
    for name, split, setting in tqdm(todo, desc="settings"):
        if loaded != name:
            model = AutoModelForImageTextToText.from_pretrained(name, dtype="float32").eval().to(device)
            processor, loaded = AutoProcessor.from_pretrained(name), name
        with attending(model, setting):
            results.add(name, split, setting, measure(model, processor, rows[split], questions[split], args))

    # 3. Choose on one split, report both.
    chosen = choose(results, args, settings)
    parts = [
        f"{split} ({len(rows[split])} pictures)\n\n{table(results, args, settings, split, chosen)}" for split in splits
    ]
    write_text(Path(args.output) / "table.md", "\n\n".join(parts) + "\n")
    plot(results, args, settings, chosen, Path(args.output) / "plot.png")
    print("\n\n".join(parts))
    print(f"\nchosen on {args.choose_on}: {chosen}\ntable, plot and every figure: {args.output}")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
