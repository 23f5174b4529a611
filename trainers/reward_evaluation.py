"""
Preference rows judged by a reward model, and captions chosen by it.

    rows   -> judge_pairs -> rewards of both sides     -> preference_figures -> preference_accuracy, over all and by flaw
    scenes -> best_of     -> captions, and the rewards -> best_of_figures    -> how much better the best is than others

Unusual: intervals draw pictures, with all their pairs.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from trainers.captioning_data import _words
from trainers.captioning_evaluation import SHEET
from trainers.pictures import contact_sheet
from trainers.reward_data import SIDES, PreferenceCollator
from trainers.reward_scores import best_of, to
from trainers.run_folder import write_json, write_jsonl
from trainers.scoring import PREFERENCE, as_figures, load_metric, metric_version, scene_f1s, score


@torch.no_grad()
def judge_pairs(
    model: Any,
    collator: PreferenceCollator,
    rows: Dataset,
    batch_size: int = 50,
    progress: bool = True,
    blind: bool = False,
) -> tuple[list[dict | None], list[dict]]:
    """
    For each row its rewards {"image_id", "flaw", "chosen", "rejected"}, or None where it cannot be used; and those that cannot,
    with their problem. `blind` shows each row the pictures of the row half of the rows further on. Raises ValueError, naming the
    rows, for a reward that is no finite number.
    """
    training, judged, skipped = model.training, [], []
    model.eval()
    label, half = "judging blind" if blind else "judging", len(rows) // 2
    for start in tqdm(range(0, len(rows), batch_size), desc=label, disable=not progress, leave=False):
        here = range(start, min(start + batch_size, len(rows)))
        some = [rows[i] for i in here]
        if blind:
            some = [row | {"images": rows[(i + half) % len(rows)]["images"]} for i, row in zip(here, some, strict=True)]
        batch = collator(some)
        skipped += batch.pop("skipped", [])
        used, names, _ = batch.pop("labels") != -100, batch.pop("row"), batch.pop("margin")
        rewards = model(**to(batch, model.device)).logits[:, 0].float().cpu().view(2, -1)
        must_be_finite(rewards.sum(0), used, names, "reward")
        for row, there, chosen, rejected in zip(some, used.tolist(), *rewards.tolist(), strict=True):
            pair = {"image_id": row.get("image_id"), "flaw": row.get("flaw"), "chosen": chosen, "rejected": rejected}
            judged.append(pair if there else None)
    model.train(training)
    return judged, skipped


def must_be_finite(values: Tensor, used: Tensor, names: list[str], what: str) -> None:
    """Raises ValueError, naming the rows, where one of those that are used is not."""
    wrong = (used & ~torch.isfinite(values)).tolist()
    if any(wrong):
        named = ", ".join(name for name, bad in zip(names, wrong, strict=True) if bad)
        raise ValueError(
            f"the {what} of {named} is not finite. If that happens at once, look at these rows; if it happens late, lower the "
            "learning rate"
        )


def preference_figures(judged: list[dict]) -> dict[str, dict]:
    """preference_accuracy, over all pairs and by flaw, and preference_margin."""
    columns = {f"{side}_scores": [pair[side] for pair in judged] for side in SIDES}
    told = {"kinds": [pair["flaw"] for pair in judged], "groups": [str(pair["image_id"]) for pair in judged]}
    return as_figures(load_metric(PREFERENCE).compute(**columns, **told), len(judged))


def evaluate_preferences(
    model: Any,
    collator: PreferenceCollator,
    rows: Dataset,
    output_dir: Path,
    protocol: dict,
    batch_size: int = 50,
    blind_control: bool = False,
) -> dict[str, dict]:
    """
    Judge `rows`; write metrics.json (with `protocol`), predictions.jsonl and contact_sheet.png. Returns the figures.
    `blind_control` judges them once more with other rows' pictures: what is left is what words alone give away. Raises ValueError
    where no row can be used.
    """
    judged, skipped = judge_pairs(model, collator, rows, batch_size)
    used = [(row, pair) for row, pair in zip(rows, judged, strict=True) if pair is not None]
    if not used:
        raise ValueError(f"none of the {len(rows)} pairs can be used; the first: {skipped[0]['problem']}")
    figures = preference_figures([pair for _, pair in used])
    if blind_control:
        unseen, _ = judge_pairs(model, collator, rows, batch_size, blind=True)
        blind = preference_figures([pair for pair in unseen if pair is not None])
        figures |= {f"blind_{name}": figure for name, figure in blind.items() if PREFERENCE in name}
    lines = []
    for row, pair in used:
        said = {side: _words(row[side][-1]) for side in SIDES}
        rewards = {f"reward_{side}": round(pair[side], 6) for side in SIDES}
        lines.append({"image_id": pair["image_id"], "flaw": pair["flaw"], **said, **rewards})
    write_jsonl(output_dir / "predictions.jsonl", lines)
    shown = [(row, line) for (row, _), line in zip(used, lines, strict=True) if row["images"]][:SHEET]
    if shown:
        texts = [[(side, f"{line[f'reward_{side}']:+.2f} {line[side]}") for side in SIDES] for _, line in shown]
        contact_sheet([collator._see(row)[0] for row, _ in shown], texts, output_dir / "contact_sheet.png")
    protocol = {**protocol, "num_pairs": len(used), "batch_size": batch_size, "dtype": str(model.dtype)}
    protocol["metric_versions"] = {PREFERENCE: metric_version(PREFERENCE)}
    if skipped:
        protocol["skipped"] = skipped
    write_json(output_dir / "metrics.json", {**figures, "protocol": protocol})
    return figures


def best_of_figures(rows: Dataset, count: int, **how) -> dict[str, dict]:
    """
    What the best of `count` captions by reward is worth, for scenes, whose truth is known: scene F1 of it, of the greedy caption,
    of one sample, of the best by truth (`oracle`); and by how much the F1 of its captions, each apart, exceeds the greedy one's
    and a sample's. how: as for `best_of`. Raises ValueError for rows that are no scenes.
    """
    scene_f1s([""] * len(rows), rows)  # rows without a truth are to be refused before all is captioned
    found = best_of(rows=rows, count=count, **how)
    used = rows.select([i for i, some in enumerate(found) if some is not None])
    captions, rewards = zip(*(some for some in found if some is not None), strict=True)
    truth = torch.tensor([scene_f1s(list(said), used) for said in zip(*captions, strict=True)])  # (1 + count, rows)
    chosen = torch.tensor(rewards).argmax(1)
    ways = {"greedy": torch.zeros_like(chosen), "sample": torch.ones_like(chosen)}
    ways |= {f"best_of_{count}": chosen, f"oracle_of_{count}": truth.argmax(0)}
    figures = {}
    for name, places in ways.items():
        said = [some[place] for some, place in zip(captions, places.tolist(), strict=True)]
        figures[f"{name}_scene_f1"] = score(["scene_f1"], said, used)["scene_f1"]
    best = truth.gather(0, chosen[None])[0].tolist()
    for other, theirs in (("greedy", truth[0]), ("sample", truth[1:].mean(0))):
        compared = load_metric("win_rate").compute(scores=best, baseline_scores=theirs.tolist(), judge="truth")
        figures[f"best_of_{count}_gain_over_{other}"] = as_figures(compared, len(used))["mean_difference"]
    return figures
