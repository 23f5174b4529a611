"""
Pictures a second of the grounding pipeline, against the plain loop: one phrase, one crop at a time, with the same models.

    OMP_NUM_THREADS=1 python benchmarks/augment.py --pictures 100 --rounds 3 [--processes]

    ours    grounding.pipeline.augment: all phrases of a picture in one text, pictures and crops in batches
    single  the same, a picture and a crop at a time: must keep the same regions (same phrase, boxes within 0.1 pixels, scores
            within 0.001; or it fails)
    loop    for each phrase the processor, the detector, the processor's own post-processing; for each box CLIP and its processor

The loop asks another question, since GroundingDINO's boxes depend on what it is asked together; so what it keeps is compared, not
asserted: of our kept regions, how many it keeps too (same phrase, IoU over 0.5), and the other way round. Contenders run in turn; a
ratio is the median of the rounds' ratios, by the process's own seconds. --processes times recipes/augment.py itself, started with 1
and with 2 processes, by the wall clock: what it says is worth no more than the idle cores there were.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoModel, AutoModelForZeroShotObjectDetection, AutoProcessor

from datasets_scripts.scenes import Scenes
from grounding.boxes import clipped, crop, iou, suppressed, unfit
from grounding.noun_phrases import chunker, noun_phrases
from grounding.pipeline import Judge, Stages, Thresholds, augment
from measure import machine


ROOT = Path(__file__).parents[1]
SHARED = 1000  # pictures that processes share: many, for they do not begin at one moment


def load(kind: type, folder: str) -> Judge:
    return Judge(kind.from_pretrained(folder, dtype="float32").eval(), AutoProcessor.from_pretrained(folder), folder)


def by_pipeline(rows: list[dict], stages: Stages, how: Thresholds) -> list[tuple]:
    """(picture, phrase, box, detector's score, cosine) of every region kept."""
    records = augment(rows, [row["image_id"] for row in rows], stages, how)
    kept = [one for one in records if one["kind"] == "region" and not one["reason"]]
    return [(one["image_id"], one["phrase"], one["box"], one["detector_score"], one["clip_score"]) for one in kept]


@torch.inference_mode()
def by_loop(rows: list[dict], stages: Stages, how: Thresholds) -> list[tuple]:
    """The same by the calls that a notebook makes."""
    (detector, detecting, _), (believer, believing, _) = stages.detector, stages.believer
    kept = []
    for row in rows:
        picture: Image.Image = row["images"][0]
        boxes, scores, phrases = [], [], []
        for phrase in noun_phrases(row["references"], stages.chunk):
            inputs = detecting(images=picture, text=[[phrase.text]], return_tensors="pt")
            (found,) = detecting.post_process_grounded_object_detection(
                detector(**inputs), inputs["input_ids"], how.box_threshold, how.text_threshold, [picture.size[::-1]]
            )
            for box, score in zip(found["boxes"].tolist(), found["scores"].tolist(), strict=True):
                cut = clipped(tuple(box), *picture.size)
                if not unfit(cut, *picture.size, how.smallest_area, how.largest_area):
                    boxes.append(cut)
                    scores.append(score)
                    phrases.append(phrase.text)
        doubled = suppressed(boxes, scores, how.nms_threshold)
        for i in set(range(len(boxes))) - doubled:
            text = stages.template.format(phrases[i])
            inputs = believing(
                images=crop(picture, boxes[i], how.margin), text=[text], return_tensors="pt", padding="max_length"
            )
            outputs = believer(**{name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")})
            cosine = (outputs.image_embeds * outputs.text_embeds).sum().item()
            if cosine >= how.clip_threshold:
                kept.append((row["image_id"], phrases[i], boxes[i], scores[i], cosine))
    return kept


def unlike(ours: list[tuple], single: list[tuple]) -> str:
    """What differs between two lists of regions that should be one; empty where nothing does."""
    if [one[:2] for one in ours] != [one[:2] for one in single]:
        return f"{len(ours)} regions against {len(single)}, or of other phrases"
    for one, other in zip(ours, single, strict=True):
        apart = max(abs(a - b) for a, b in zip(one[2], other[2], strict=True))
        if apart > 0.1 + 1e-6 or any(abs(one[i] - other[i]) > 0.001 + 1e-6 for i in (3, 4)):
            return f"{one} against {other}"
    return ""


def agreement(some: list[tuple], others: list[tuple]) -> float:
    """The share of `some` that `others` have too."""
    by_picture: dict[str, list[tuple]] = {}
    for one in others:
        by_picture.setdefault(one[0], []).append(one)
    also = [
        any(one[1] == other[1] and iou(one[2], other[2]) > 0.5 for other in by_picture.get(one[0], [])) for one in some
    ]
    return sum(also) / max(1, len(also))


def timed(run, *given) -> tuple[list[tuple], float]:
    start = time.process_time()
    return run(*given), time.process_time() - start


def by_processes(args: argparse.Namespace, number: int) -> float:
    """Seconds from the first shard's beginning to the last one's end, as a run with `number` processes leaves them on disk."""
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
        config = ["--config", str(ROOT / "recipes/grounded/quickstart.yaml"), "--output", folder, "--shard_size", "10"]
        models = [
            "--detector",
            args.detector,
            "--similarity_model",
            args.similarity_model,
            "--max_images",
            str(SHARED),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [*launch, str(ROOT / "recipes/augment.py"), *config, *models]
        subprocess.run(command, check=True, env=environment, capture_output=True, cwd=ROOT)
        ended = sorted(path.stat().st_mtime for path in Path(folder).glob("shards/*.jsonl"))
        return (ended[-1] - ended[0]) * len(ended) / (len(ended) - number)  # the first of each process began unseen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default=str(ROOT / "model_cards/miniature_grounding_dino"))
    parser.add_argument("--similarity_model", default=str(ROOT / "model_cards/miniature_clip_crops"))
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=25)
    parser.add_argument("--processes", action="store_true")
    args = parser.parse_args()

    name, chunk = chunker("rules")
    models = load(AutoModelForZeroShotObjectDetection, args.detector), load(AutoModel, args.similarity_model)
    stages = Stages(chunk, name, *models, template="a {}", detector_batch_size=args.batch_size)
    alone = Stages(chunk, name, *models, template="a {}", detector_batch_size=1, believer_batch_size=1)
    how = Thresholds(smallest_area=0.01)
    rows = list(Scenes(config_name="captions", num_eval=args.pictures).as_streaming_dataset("validation"))
    by_pipeline(rows[:2], stages, how)
    by_loop(rows[:2], stages, how)

    seconds: dict[str, list[float]] = {"ours": [], "single": [], "loop": []}
    for _ in tqdm(range(args.rounds), desc="rounds"):
        ours, spent = timed(by_pipeline, rows, stages, how)
        seconds["ours"].append(spent)
        single, spent = timed(lambda: [one for row in rows for one in by_pipeline([row], alone, how)])
        seconds["single"].append(spent)
        loop, spent = timed(by_loop, rows, stages, how)
        seconds["loop"].append(spent)
        if different := unlike(ours, single):
            raise AssertionError(f"batches keep other regions than single pictures: {different}")

    print(
        f"{machine()}, {args.pictures} pictures, {len(ours)} regions kept, the same a picture at a time; by the loop {len(loop)}"
    )
    for contender in ("single", "loop"):
        ratios = sorted(b / a for a, b in zip(seconds["ours"], seconds[contender], strict=True))
        print(f"{contender}: ours is {median(ratios):.2f} times as fast ({ratios[0]:.2f} - {ratios[-1]:.2f})")
    for contender, spent in seconds.items():
        print(f"{contender}: {args.pictures / median(spent):.2f} pictures/s")
    print(f"of ours the loop keeps {agreement(ours, loop):.3f}, of the loop's ours keeps {agreement(loop, ours):.3f}")
    if args.processes:
        one, two = by_processes(args, 1), by_processes(args, 2)
        rates = f"{SHARED / one:.2f} pictures/s by 1 process, {SHARED / two:.2f} by 2"
        print(f"recipes/augment.py: {rates}: {one / two:.2f} times")


if __name__ == "__main__":
    main()
