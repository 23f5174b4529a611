"""
Captions generated, then scored. For any HF vision–language model; used while training, at its end, and by recipes/evaluate.py.

    rows -> generate_captions -> predictions -> score -> {name: {"value", "ci95", "n"}} -> metrics.json

Unusual: `scene_f1` is scored against the scene's truth (the phrases of a row's `regions`), everything else against `references`.
The blind control gives every row the *next* row's pictures: what is left of a score is what the language model guesses unseen.
"""

import json
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from datasets_scripts.open_picture import UnreadablePicture
from trainers.captioning_data import pictures_of, prompt_text
from trainers.pictures import contact_sheet
from trainers.run_folder import write_json, write_jsonl


logger = logging.get_logger(__name__)

METRICS = Path(__file__).parents[1] / "metrics"
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
        tokens = model.generate(**inputs, pad_token_id=tokenizer.pad_token_id, **generation)
        said = iter(tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
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


def _evaluate_library() -> ModuleType:
    """The library, not recipes/evaluate.py, which stands first on the path of every recipe."""
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if Path(entry or ".").resolve() != METRICS.with_name("recipes")]
    try:
        import evaluate  # heavy, and not needed to train
    finally:
        sys.path[:] = path
    return evaluate


def score(metrics: list[str], predictions: list[str], rows: Dataset) -> dict[str, dict]:
    """
    Every figure of every metric (folders under metrics/): {"cider": {"value": x, "ci95": [lo, hi], "n": pictures}, ...}.

    Raises ValueError for a metric there is no folder of, and for `scene_f1` on rows that know no truth.
    """
    evaluate = _evaluate_library()
    figures = {}
    for name in metrics:
        if not (METRICS / name).is_dir():
            there = ", ".join(sorted(path.name for path in METRICS.iterdir() if path.is_dir()))
            raise ValueError(f"there is no metric {name!r}; there are {there}")
        if name == "scene_f1":
            references = [[region["phrase"] for region in regions] for regions in rows["regions"]]
            if not all(references):
                raise ValueError("scene_f1 compares with a scene's regions, and some rows have none; leave it out")
        else:
            references = list(rows["references"])
        module = evaluate.load(str(METRICS / name), keep_in_memory=True)
        result = module.compute(predictions=predictions, references=references)
        for key, value in result.items():
            if not key.endswith("_ci95"):
                ci95 = [round(end, 6) for end in result[f"{key}_ci95"]]
                figures[key] = {"value": round(value, 6), "ci95": ci95, "n": len(predictions)}
    return figures


def dataset_fingerprint(rows: Dataset) -> str:
    """A hash of what was asked of which pictures and what was held to be right; changes with any of them."""
    digest = sha256()
    for column in ("image_id", "prompt", "references"):
        digest.update(json.dumps(list(rows[column]), ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def _code_version(folder: Path) -> str:
    """A hash of a metric's code, helpers included."""
    return sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()[:12]


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
    **generation,
) -> dict:
    """
    Caption and score `rows`; write metrics.json (with `protocol`, and what decides the numbers), predictions.jsonl and
    contact_sheet.png. `blind_control` adds blind_scene_f1 or, without scenes, blind_cider. Rows whose pictures cannot be read are
    left out and named in the protocol; `strict` raises ValueError instead.
    """
    generation = {"do_sample": False, "max_new_tokens": 64} | generation
    captions = generate_captions(model, processor, rows, batch_size, strict=strict, **generation)
    unreadable = [i for i, caption in zip(rows["image_id"], captions, strict=True) if caption is None]
    predictions, rows = only_seen(captions, rows)
    figures = score(metrics, predictions, rows)
    if blind_control:
        name = "scene_f1" if "scene_f1" in metrics else "cider"
        unseen = generate_captions(model, processor, rows, batch_size, blind=True, **generation)
        figures[f"blind_{name}"] = score([name], unseen, rows)[name]
    versions = {name: _code_version(METRICS / name) for name in metrics}
    protocol = {
        **protocol,
        "fingerprint": dataset_fingerprint(rows),
        "num_examples": len(rows),
        "prompt": prompt_text(processor, rows[0]),
        "generation": generation,
        "batch_size": batch_size,
        "dtype": str(model.dtype),
        "metric_versions": versions,
    }
    if unreadable:
        protocol["unreadable"] = unreadable
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "metrics.json", {**figures, "protocol": protocol})
    write_jsonl(
        output_dir / "predictions.jsonl",
        (
            {"image_id": image_id, "prediction": said, "references": right}
            for image_id, said, right in zip(rows["image_id"], predictions, rows["references"], strict=True)
        ),
    )
    sheet(rows, predictions, output_dir / "contact_sheet.png")
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
