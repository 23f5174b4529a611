"""
Which of two is better: of a pair, by what a vision–language model (any HF one) holds likelier; of two runs' captions, by a judge.

    row {images, prompt, chosen, rejected} -> log p(chosen | picture, prompt), log p(rejected | …) -> preference_accuracy, by flaw
    captions, an earlier run's captions    -> truth, reward model or language model               -> win_rate, win_rate_shuffled

Unusual:
- The words of a pair are scored twice: summed (which favours what is short) and a token (which does not).
- What is compared with an earlier run is compared with itself too, its captions moved to other pictures: a judge by whom that is
  no loss does not look at pictures.
"""

from dataclasses import dataclass
from hashlib import sha256
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from trainers.captioning_data import CaptioningCollator, prompt_text
from trainers.captioning_evaluation import dataset_fingerprint
from trainers.dataset_rows import said
from trainers.run_folder import read_jsonl, write_json, write_jsonl
from trainers.scoring import JUDGE, PREFERENCE, as_figures, load_metric, metric_version, scene_f1s


logger = logging.get_logger(__name__)

SIDES = ("chosen", "rejected")
COLUMNS = ("images", "prompt", *SIDES, "image_id", "flaw")


@torch.no_grad()
def score_pairs(
    model: Any, processor: Any, rows: Dataset, batch_size: int = 25, progress: bool = True, strict: bool = False
) -> dict[str, Tensor]:
    """
    Log-probabilities (rows,) float32 of each row's two completions, given its pictures and prompt: "chosen" and "rejected" summed
    over their tokens, the one that ends the turn included; "chosen_mean" and "rejected_mean", a token. NaN of a row that cannot be
    used: a picture that cannot be read, a completion without words. batch_size: rows, of which either side is read by itself.

    Raises ValueError, naming the row, for one that cannot be used if `strict`; for a log-probability that is no finite number; and
    for a model whose logits are not one a token.
    """
    training = model.training
    model.eval()
    collate = CaptioningCollator(processor, strict=strict, is_encoder_decoder=model.config.is_encoder_decoder)
    parts: dict[str, list[Tensor]] = {name: [] for side in SIDES for name in (side, f"{side}_mean")}
    for start in tqdm(range(0, len(rows), batch_size), desc="scoring pairs", disable=not progress, leave=False):
        batch = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
        for side in SIDES:
            inputs = collate([row | {"completion": row[side]} for row in batch])
            for lost in inputs.pop("skipped", []):
                logger.warning(f"a pair of {lost['image_id']} is not scored: of {side}, {lost['problem']}")
            total, count = completion_log_probabilities(model, inputs)
            for row, wrong in zip(batch, (count > 0) & ~total.isfinite(), strict=True):
                if wrong:
                    raise ValueError(
                        f"row {row['image_id']}: of {side} the log-probability in {model.dtype} is no number"
                    )
            parts[side].append(total.masked_fill(count == 0, torch.nan))
            parts[f"{side}_mean"].append(parts[side][-1] / count)
    model.train(training)
    scores = {name: torch.cat(some) for name, some in parts.items()}
    unused = scores["chosen"].isnan() | scores["rejected"].isnan()
    return {name: some.masked_fill(unused, torch.nan) for name, some in scores.items()}


def completion_log_probabilities(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """
    A batch of CaptioningCollator -> sum over the labelled tokens of their log-probabilities, float32, and their number: both (b,),
    on the CPU. The model is asked for logits where there are labels only, if it can be (`logits_to_keep`).

    Raises ValueError for a model whose logits are not one a token.
    """
    batch = {name: value.to(model.device) for name, value in batch.items()}
    labels = batch.pop("labels")
    if model.config.is_encoder_decoder:
        targets, logits = labels, model(**batch, labels=labels).logits
    else:
        targets = labels[:, 1:]  # of the token at i tell the logits at i - 1
        columns = (targets != -100).any(0).nonzero()[:, 0]
        targets = targets[:, columns]
        if "logits_to_keep" in signature(model.forward).parameters:
            logits = model(**batch, logits_to_keep=columns).logits
        else:
            whole = model(**batch).logits
            logits = whole[:, columns] if whole.shape[1] == labels.shape[1] else whole
    if logits.shape[1] != targets.shape[1]:
        places = f"{logits.shape[1]} places where {targets.shape[1]} were asked for"
        raise ValueError(f"{type(model).__name__} gives logits at {places}: it is not known which token each is of")
    sums = []
    for row, right in zip(logits, targets, strict=True):  # one by one: in float32, a row is all that there is room for
        there = right != -100
        some = row[there].float()
        sums.append((some.gather(1, right[there, None])[:, 0] - some.logsumexp(-1)).sum())
    return torch.stack(sums).cpu(), (targets != -100).sum(1).cpu()


def evaluate_preferences(
    model: Any, processor: Any, rows: Dataset, folder: Path, protocol: dict, batch_size: int = 25, strict: bool = False
) -> dict[str, dict]:
    """
    How often the model holds the chosen side likelier than the rejected one, of all pairs and by `flaw`: `preference_accuracy…` and
    `preference_margin` by summed log-probabilities, `normalised_preference_…` by those a token. Intervals draw all pairs about one
    picture together. Written to `folder`/metrics.json with what decides them; every pair with its scores to predictions.jsonl.

    Pairs that cannot be used are left out and named in the protocol; `strict` raises ValueError instead. Raises ValueError for rows
    without the columns of preferences, and as `score_pairs` does.
    """
    if missing := set(COLUMNS) - set(rows.column_names):
        raise ValueError(f"preference pairs need the columns {', '.join(COLUMNS)}; missing are {sorted(missing)}")
    scores = score_pairs(model, processor, rows, batch_size, strict=strict)
    used = [i for i, lost in enumerate(scores["chosen"].isnan().tolist()) if not lost]
    if not used:
        raise ValueError(f"not one of {len(rows)} pairs can be scored: are the pictures there?")
    unreadable = [rows[i]["image_id"] for i in sorted(set(range(len(rows))) - set(used))]
    rows, scores = rows.select(used), {name: some[used].tolist() for name, some in scores.items()}
    figures = {}
    for prefix, ending in (("", ""), ("normalised_", "_mean")):
        told = {"kinds": list(rows["flaw"]), "groups": list(rows["image_id"])}
        told |= {f"{side}_scores": scores[side + ending] for side in SIDES}
        found = as_figures(load_metric(PREFERENCE).compute(**told), len(used))
        figures |= {prefix + name: figure for name, figure in found.items()}
    written = (
        {"image_id": row["image_id"], "flaw": row["flaw"]}
        | {side: said(row[side]) for side in SIDES}
        | {f"{name}_log_probability": round(some[i], 6) for name, some in scores.items()}
        for i, row in enumerate(rows.select_columns(["image_id", "flaw", *SIDES]))
    )
    write_jsonl(Path(folder) / "predictions.jsonl", written)
    protocol = {
        **protocol,
        "fingerprint": dataset_fingerprint(rows, ("image_id", "prompt", *SIDES)),
        "num_examples": len(rows),
        "prompt": prompt_text(processor, rows[0]),
        "score": "log-probability of a side's tokens, the end of the turn included; normalised: a token",
        "batch_size": batch_size,
        "dtype": str(model.dtype),
        "metric_versions": {PREFERENCE: metric_version(PREFERENCE)},
    } | ({"unreadable": unreadable} if unreadable else {})
    write_json(Path(folder) / "metrics.json", {**figures, "protocol": protocol})
    return figures


@dataclass
class Baseline:
    """
    An earlier run's captions of the same pictures (`folder` holds its predictions.jsonl), and who judges which are better: the
    reward model, if one is named; else, of scenes, the truth; else the language model at judge_url.
    """

    folder: str | Path
    reward_model: str | Path | None = None
    judge_url: str | None = None
    judge_model: str | None = None

    def check(self, rows: Dataset, output_dir: str | Path) -> None:
        """Raises what `judge` and `captions` do, and ValueError for a run that is to be written over the baseline."""
        if Path(self.folder).resolve() == Path(output_dir).resolve():
            raise ValueError(f"baseline: this run is written to the same folder, {self.folder}; write it elsewhere")
        self.judge(rows)
        self.captions(rows)

    def captions(self, rows: Dataset) -> list[str | None]:
        """
        Its caption of each row, None where it has none (a picture that it could not read). Raises FileNotFoundError without
        predictions.jsonl, and ValueError where that is of other rows, in another order, or empty.
        """
        path = Path(self.folder) / "predictions.jsonl"
        waiting, captions = read_jsonl(path)[::-1], []
        for image_id, right in zip(rows["image_id"], rows["references"], strict=True):
            same = waiting and (waiting[-1].get("image_id"), waiting[-1].get("references")) == (image_id, right)
            captions.append(waiting.pop()["prediction"] if same else None)
        if waiting or all(caption is None for caption in captions):
            first = waiting[-1].get("image_id") if waiting else "none"
            problem = f"its image_id {first} has no match here in its place, with the same references"
            raise ValueError(f"baseline: {path} is of other rows: {problem}. Score both runs on the same split")
        return captions

    def judge(self, rows: Dataset) -> str:
        """Who judges, in words. Raises ValueError where nobody does."""
        if self.reward_model is not None:
            return f"reward model {self.reward_model}"
        if _captions_scenes(rows):
            return "truth: scene_f1 of each caption against its scene"
        if self.judge_url and self.judge_model:
            return f"llm_judge: {self.judge_model} at {self.judge_url}, each pair in both orders"
        raise ValueError(
            "baseline: these captions' truth is not known; name a judge: reward_model, or judge_url with judge_model"
        )

    def compare(self, captions: list[str | None], rows: Dataset, batch_size: int = 50) -> tuple[dict[str, dict], dict]:
        """
        `win_rate` of captions (None: none) against the baseline's, over the rows that both have, `win_rate_shuffled` of captions
        against the same ones moved on by half of the rows, each with the mean difference; and what the protocol is to say of it.
        """
        judge, pairs = self.judge(rows), list(zip(captions, self.captions(rows), strict=True))
        both = [i for i, pair in enumerate(pairs) if None not in pair]
        if not both:
            raise ValueError(f"baseline: no row has a caption of this run and one of {self.folder}")
        rows, ours, theirs = rows.select(both), [pairs[i][0] for i in both], [pairs[i][1] for i in both]
        half, figures = len(ours) // 2, {}
        others = {"win_rate": theirs, "win_rate_shuffled": ours[half:] + ours[:half]}
        if self.reward_model is not None or _captions_scenes(rows):
            mine, *rest = self._alone([ours, *others.values()], rows, batch_size)
            scores = [(mine, some) for some in rest]
        else:
            scores = [self._by_language_model(ours, some, rows) for some in others.values()]
        for name, (mine, some) in zip(others, scores, strict=True):
            result = load_metric("win_rate").compute(scores=mine, baseline_scores=some, judge=judge)
            found = as_figures(result, len(mine))
            counts = {key: result[key] for key in ("wins", "ties", "losses", "sign_test_p")}
            figures |= {name: found["win_rate"] | counts, f"{name}_difference": found["mean_difference"]}
        told = {"judge": judge, "baseline": str(self.folder), "compared": len(both)}
        told["baseline_sha256"] = sha256((Path(self.folder) / "predictions.jsonl").read_bytes()).hexdigest()[:12]
        return figures, told

    def _alone(self, sides: list[list[str]], rows: Dataset, batch_size: int) -> list[list[float]]:
        """Scores of several captions of each row, one by one."""
        if self.reward_model is None:
            return [scene_f1s(captions, rows) for captions in sides]
        from trainers.reward_scores import reward_scores

        captions = [caption for side in sides for caption in side]  # all at once, so the model is loaded once
        scores = reward_scores(self.reward_model, concatenate_datasets([rows] * len(sides)), captions, batch_size)
        return [scores[i * len(rows) : (i + 1) * len(rows)] for i in range(len(sides))]

    def _by_language_model(self, ours: list[str], others: list[str], rows: Dataset) -> tuple[list[float], list[float]]:
        """Points of either side, of the pairs whose verdicts can be read: a mean of both orders'."""
        asked = [prompt[-1]["content"] for prompt in rows["prompt"]]
        whom = {"base_url": self.judge_url, "model": self.judge_model}
        told = {"references": list(rows["references"]), "against": others, "questions": asked, **whom}
        verdicts = load_metric(JUDGE).compute(predictions=ours, **told)["llm_judge_verdicts"]
        points = {"first": 1.0, "tie": 0.5, "second": 0.0}
        read = [(one["winner"], other["winner"]) for one, other in verdicts if one is not None and other is not None]
        won = [(points[one] + 1 - points[other]) / 2 for one, other in read]
        return won, [1 - point for point in won]


def _captions_scenes(rows: Dataset) -> bool:
    """Whether these rows ask for captions of the miniature world: the truth of an answer is another."""
    return "scene" in rows.column_names and "kind" not in rows.column_names
