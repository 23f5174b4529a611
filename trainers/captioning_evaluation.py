"""
Captions generated, then scored. For any HF vision–language model; used while training, at its end, and by recipes/evaluate.py.

    rows -> generate_captions                   -> predictions -> score         -> {name: {"value", "ci95", "n"}} -> metrics.json
    rows -> questions_about -> answer_questions -> answers     -> score_answers -> the same, for pope

Unusual: the blind control gives every row the *next* row's pictures: what is left of a score is what the language model guesses
unseen.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from datasets_scripts.canonical import turns
from datasets_scripts.open_picture import UnreadablePicture
from datasets_scripts.pope_questions import questions_about
from trainers.captioning_data import pictures_of, prompt_text
from trainers.pictures import contact_sheet
from trainers.run_folder import write_json, write_jsonl
from trainers.scoring import CLIP, JUDGE, check_clip, clip_scored, judged, metric_version, score, score_answers


logger = logging.get_logger(__name__)

SHEET = 24  # pictures on a contact sheet


@torch.no_grad()
def generate_captions(
    model: Any,
    processor: Any,
    rows: Dataset,
    batch_size: int = 50,
    blind: bool = False,
    progress: bool = True,
    strict: bool = False,
    **generation,
) -> list[str | None]:
    """
    One caption a row, None where its pictures cannot be read (`strict`: a ValueError); `blind` shows it the next row's pictures
    instead. Further keywords go to `model.generate`.
    """
    training = model.training
    model.eval()
    tokenizer = processor.tokenizer
    captions: list[str | None] = []
    label = "captioning blind" if blind else "captioning"
    for start in tqdm(range(0, len(rows), batch_size), desc=label, disable=not progress, leave=False):
        here = range(start, min(start + batch_size, len(rows)))
        batch = [rows[i] for i in here]
        if blind:
            batch = [row | {"images": rows[(i + 1) % len(rows)]["images"]} for i, row in zip(here, batch, strict=True)]
        opened = [_open(row, strict) for row in batch]
        batch = [row for row, pictures in zip(batch, opened, strict=True) if pictures is not None]
        seen = [pictures for pictures in opened if pictures is not None]
        if not seen:
            captions += [None] * len(opened)
            continue
        inputs = processor(
            images=seen if any(seen) else None,
            text=[prompt_text(processor, row) for row in batch],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(model.device)
        how = {"use_cache": True} | generation  # Trainer turns the cache off in the model it trains
        tokens = model.generate(**inputs, pad_token_id=tokenizer.pad_token_id, **how)
        # what follows a start token, or the prompt
        begin = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        said = iter(tokenizer.batch_decode(tokens[:, begin:], skip_special_tokens=True))
        captions += [None if pictures is None else next(said).strip() for pictures in opened]
    model.train(training)
    return captions


def _open(row: dict, strict: bool) -> list | None:
    try:
        return pictures_of(row)
    except UnreadablePicture as problem:
        if strict:
            raise ValueError(f"row {row['image_id']}: {problem}") from problem
        logger.warning(f"row {row['image_id']} is not captioned: {problem}")
        return None


def only_seen(captions: list[str | None], rows: Dataset) -> tuple[list[str], Dataset]:
    """Captions and rows less those whose pictures could not be read. Raises ValueError if none is left."""
    seen = [i for i, caption in enumerate(captions) if caption is not None]
    if not seen:
        raise ValueError("none of the pictures to be captioned can be read")
    return [captions[i] for i in seen], rows if len(seen) == len(rows) else rows.select(seen)


def answer_questions(
    model: Any,
    processor: Any,
    rows: Dataset,
    questions: list[dict[str, str]],
    batch_size: int = 50,
    strict: bool = False,
    progress: bool = True,
    **generation,
) -> list[str | None]:
    """
    One answer a question ({"image_id", "question", ...}) about the pictures of the row with that id, None where they cannot be
    read. What several strategies ask alike is asked once. The rest is as for `generate_captions`.
    """
    place = {image_id: i for i, image_id in enumerate(rows["image_id"])}
    asked = list(dict.fromkeys((question["image_id"], question["question"]) for question in questions))
    said: dict[tuple[str, str], str | None] = {}
    for start in tqdm(range(0, len(asked), batch_size), desc="asking", disable=not progress, leave=False):
        some = asked[start : start + batch_size]
        batch = [rows[place[image_id]] | turns(question, "") for image_id, question in some]
        answers = generate_captions(model, processor, batch, batch_size, progress=False, strict=strict, **generation)
        said |= zip(some, answers, strict=True)
    return [said[question["image_id"], question["question"]] for question in questions]


def dataset_fingerprint(rows: Dataset, columns: tuple[str, ...] = ("image_id", "prompt", "references")) -> str:
    """A hash of what was asked of which pictures and what was held to be right; changes with any of them."""
    digest = sha256()
    for column in columns:
        digest.update(json.dumps(list(rows[column]), ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def evaluate_captions(
    model: Any,
    processor: Any,
    rows: Dataset,
    metrics: list[str],
    output_dir: Path,
    protocol: dict,
    batch_size: int = 50,
    blind_control: bool = False,
    strict: bool = False,
    synonyms: str | Path | None = None,
    judge_url: str | None = None,
    judge_model: str | None = None,
    clip_model: str | None = None,
    clip_revision: str | None = None,
    baseline: Any = None,
    **generation,
) -> dict:
    """
    Caption and score `rows`, and for pope ask about them; write metrics.json (with `protocol`, and what decides the numbers), for
    captions predictions.jsonl and contact_sheet.png, for pope pope.jsonl.

    `blind_control` adds blind_scene_f1 or, without scenes, blind_cider. synonyms: of COCO's objects, for chair. judge_url and
    judge_model: whom llm_judge asks. clip_model: by what clip_score looks. baseline: a Baseline (preference_evaluation.py), an
    earlier run to compare with. Rows whose pictures cannot be read are left out and named in the protocol; `strict` raises
    ValueError instead. Raises ValueError as `score`, `judged`, `clip_scored`, `Baseline`, `questions_about` and `score_answers` do;
    for `blind_control`, `synonyms`, `clip_model` and `baseline` where there is nothing to use them for.
    """
    # what is asked for in vain is to be known before hours of captioning
    captioned = [name for name in metrics if name not in ("pope", JUDGE, CLIP)]
    if JUDGE in metrics and not (judge_url and judge_model):
        raise ValueError("llm_judge asks a server, and there is no default: say whom (judge_url and judge_model)")
    check_clip(metrics, rows, clip_model)
    versions = {name: metric_version(name) for name in [*metrics, *(["win_rate"] if baseline else [])]}
    speaks = any(name != "pope" for name in metrics)
    if (blind_control or baseline) and not speaks:
        raise ValueError("blind_control and baseline are of captions, and pope alone captions none; leave one out")
    if baseline is not None:
        baseline.check(rows, output_dir)
    if synonyms is not None:
        if "chair" not in metrics:
            raise ValueError(f"synonyms are for the metric chair; asked for are {', '.join(metrics)}")
        versions["synonyms"] = sha256(Path(synonyms).read_bytes()).hexdigest()[:12]
    questions, how = questions_about(rows) if "pope" in metrics else ([], {})
    score(captioned, [""] * len(rows), rows, synonyms)

    generation = {"do_sample": False, "max_new_tokens": 64} | generation
    figures, told = {}, {}
    used, unreadable = rows, []
    if speaks:
        captions = generate_captions(model, processor, rows, batch_size, strict=strict, **generation)
        unreadable += [i for i, caption in zip(rows["image_id"], captions, strict=True) if caption is None]
        predictions, used = only_seen(captions, rows)
        figures |= score(captioned, predictions, used, synonyms)
        if JUDGE in metrics:
            figures |= judged(predictions, used, judge_url, judge_model)
        if CLIP in metrics:
            found, told[CLIP] = clip_scored(predictions, used, clip_model, clip_revision)
            figures |= found
        if baseline is not None:
            found, told["win_rate"] = baseline.compare(captions, rows, batch_size)
            figures |= found
        if blind_control:
            name = "scene_f1" if "scene_f1" in metrics else "cider"
            unseen = generate_captions(model, processor, used, batch_size, blind=True, **generation)
            figures[f"blind_{name}"] = score([name], unseen, used)[name]
        written = zip(used["image_id"], predictions, used["references"], strict=True)
        write_jsonl(
            output_dir / "predictions.jsonl",
            ({"image_id": image_id, "prediction": said, "references": right} for image_id, said, right in written),
        )
        sheet(used, predictions, output_dir / "contact_sheet.png")
    if questions:
        answers = answer_questions(model, processor, rows, questions, batch_size, strict=strict, **generation)
        answered = list(zip(questions, answers, strict=True))
        figures |= score_answers(questions, answers)
        lost = {question["image_id"] for question, said in answered if said is None}
        if lost:
            unreadable += [image_id for image_id in used["image_id"] if image_id in lost]
            used = used.select([i for i, image_id in enumerate(used["image_id"]) if image_id not in lost])
        write_jsonl(output_dir / "pope.jsonl", (question | {"prediction": said} for question, said in answered))

    protocol = {
        **protocol,
        "fingerprint": dataset_fingerprint(used),
        "num_examples": len(used),
        **({"prompt": prompt_text(processor, rows[0])} if speaks else {}),
        **({"judge": {"base_url": judge_url, "model": judge_model}} if JUDGE in metrics else {}),
        **({"pope": how} if questions else {}),
        **told,
        "generation": generation,
        "batch_size": batch_size,
        "dtype": str(model.dtype),
        "metric_versions": versions,
    }
    if unreadable:
        protocol["unreadable"] = unreadable
    write_json(output_dir / "metrics.json", {**figures, "protocol": protocol})
    return figures


def sheet(rows: Dataset, predictions: list[str], path: Path) -> None:
    """The first pictures with what was said and what is right under each."""
    first = rows.select(range(min(SHEET, len(rows))))
    some = [(row, said) for row, said in zip(first, predictions, strict=False) if row["images"]]
    lines = [[("predicted", said), ("reference", row["references"][0])] for row, said in some]
    if some:
        contact_sheet([pictures_of(row)[0] for row, _ in some], lines, path)


def report(figures: dict) -> str:
    """The figures as a Markdown table, as the READMEs hold them."""
    rows = [
        f"| {k} | {v['value']:.4f} | {v['ci95'][0]:.4f} – {v['ci95'][1]:.4f} | {v['n']} |" for k, v in figures.items()
    ]
    return "\n".join(["| metric | value | 95 % interval | n |", "|---|---|---|---|", *rows])
