"""
Our caption metrics beside pycocoevalcap: the same captions, the same scores, and how much sooner.

    python benchmarks/caption_metrics.py [--captions 5000] [--captions-json captions_val2017.json]

Ours is timed with everything `compute` does: tokenisation for each metric and 1000 bootstrap resamples for each figure. The peer
is timed as COCO's evaluation runs it: PTBTokenizer (Java) for references and predictions, then Bleu, Rouge and Cider; and also
without Java, its scorers given the tokens. What starting Java twice costs is shown by two calls on one word. Prints seconds
and ratios; fails when a score differs by more than 1e-4.
"""

import argparse
import contextlib
import io
import json
import random
import time
from pathlib import Path

import evaluate
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer


METRICS = Path(__file__).parents[1] / "metrics"
WHO = """
    man; woman; young boy; little girl; dog; brown dog; black cat; group of people; couple of kids; surfer;
    baseball player; skateboarder; chef; bride and groom; police officer; herd of elephants; flock of sheep;
    giraffe; zebra; large brown bear; teddy bear; bus driver
"""
DOES = """
    riding; standing next to; sitting on; looking at; holding; walking past; jumping over; playing with;
    lying beside; leaning against; posing in front of; waiting near; eating; carrying; running towards
"""
WHAT = """
    a red bus; the old wooden bench; a skateboard; a tennis racket; an umbrella; a slice of pizza; a clock tower;
    two parked motorcycles; a kite; a surf board; the kitchen sink; a laptop computer; a stop sign; a train;
    someone's birthday cake; a well-lit room; a fire hydrant; a pair of scissors; a glass vase; a T-shirt;
    the man's bicycle; a bowl of fruit, bread and cheese
"""
WHERE = """
    on a sunny day; in the park; on a city street; at the beach; in a field of tall grass; near the water;
    in the snow; at night; during a game; in a living room; under a cloudy sky; on the side of the road;
    at 5 p.m.; in front of a crowd; by the window; while others watch; that isn't very big; in the U.S.;
    at 10:30; in black and white
"""


def _phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in text.split(";")]


def pseudo_captions(pictures: int) -> list[list[str]]:
    """Six captions of each picture, made of phrases; a picture's captions share their subject, most of them their object."""
    rng = random.Random(0)
    whos, does, whats, wheres = map(_phrases, (WHO, DOES, WHAT, WHERE))
    result = []
    for _ in range(pictures):
        who, what = rng.choice(whos), rng.choice(whats)
        result.append(
            [
                f"{rng.choice(['A', 'The', 'One', 'There is a'])} {rng.choice([who, who, rng.choice(whos)])} {rng.choice(does)} "
                f"{rng.choice([what, what, rng.choice(whats)])} {rng.choice(wheres)}{rng.choice(['.', '.', '', ' .'])}"
                for _ in range(6)
            ]
        )
    return result


def real_captions(path: Path, pictures: int) -> list[list[str]]:
    """Each picture's captions in COCO's captions_*.json, over and over until there are enough pictures."""
    captions: dict[int, list[str]] = {}
    for row in json.loads(path.read_text())["annotations"]:
        captions.setdefault(row["image_id"], []).append(row["caption"])
    usable = [texts for texts in captions.values() if len(texts) > 1]
    return [usable[i % len(usable)] for i in range(pictures)]


def ours(modules: list, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    result = {}
    for module in modules:
        result |= module.compute(predictions=predictions, references=references)
    return {name: value for name, value in result.items() if not name.endswith("_ci95")}


def tokens(texts: list[list[str]]) -> dict[int, list[str]]:
    return PTBTokenizer().tokenize({i: [{"caption": text} for text in right] for i, right in enumerate(texts)})


def peer_scores(said: dict[int, list[str]], right: dict[int, list[str]]) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):  # Bleu prints
        bleu = Bleu(4).compute_score(right, said)[0]
    rouge, cider = Rouge().compute_score(right, said)[0], Cider().compute_score(right, said)[0]
    return {f"bleu_{n}": value for n, value in enumerate(bleu, 1)} | {"rouge_l": rouge, "cider": cider}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions-json", type=Path, help="COCO's captions_*.json instead of pseudo-captions")
    parser.add_argument("--captions", type=int, default=5000, help="how many are scored, each against its references")
    args = parser.parse_args()
    captions = (
        real_captions(args.captions_json, args.captions) if args.captions_json else pseudo_captions(args.captions)
    )
    predictions, references = [texts[0] for texts in captions], [texts[1:] for texts in captions]

    # imported before the clock starts, as the peer's classes are
    modules = [evaluate.load(str(METRICS / name), keep_in_memory=True) for name in ("bleu", "rouge_l", "cider")]
    start = time.perf_counter()
    values = ours(modules, predictions, references)
    our_seconds = time.perf_counter() - start

    start = time.perf_counter()
    right, said = tokens(references), tokens([[text] for text in predictions])
    java_seconds = time.perf_counter() - start
    start = time.perf_counter()
    tokens([["word"]]), tokens([["word"]])
    idle_seconds = time.perf_counter() - start
    start = time.perf_counter()
    expected = peer_scores(said, right)
    scorer_seconds = time.perf_counter() - start

    for name, value in expected.items():
        print(f"{name:8} ours {values[name]:.6f}  pycocoevalcap {value:.6f}")
        assert abs(values[name] - value) <= 1e-4, f"{name} differs"
    print(f"{args.captions} captions, {sum(map(len, references))} references; seconds:")
    print(f"  ours (tokens, scores, intervals)  {our_seconds:8.2f}")
    print(f"  pycocoevalcap                     {java_seconds + scorer_seconds:8.2f}  of which Java {java_seconds:.2f}")
    print(f"    starting Java twice             {idle_seconds:8.2f}")
    print(f"ratio                          {(java_seconds + scorer_seconds) / our_seconds:.1f}")
    print(f"ratio without Java's start-up  {(java_seconds - idle_seconds + scorer_seconds) / our_seconds:.1f}")
    print(f"ratio to its scorers alone     {scorer_seconds / our_seconds:.1f}")


if __name__ == "__main__":
    main()
