"""
A funnel over Matryoshka embeddings beside flat search: queries/s, recall@10 and memory, a million vectors of 1,024 numbers.

    OMP_NUM_THREADS=1 python benchmarks/funnel_search.py --model DIR [--short_dim 128] [--shortlist 10 100] [--output found.json]

    DIR embeds scenes -> mean and covariance of the pictures' and of the words' embeddings
    -> gaussian vectors with these, at unit length -> an index, in blocks -> queries -> who is found, and how soon

    flat      every query with every vector, all numbers: faiss.IndexFlatIP
    funnel    VectorIndex(short_dim): a shortlist by the first numbers, put in order by all of them
    int8      the same with a byte a number
    binary    a shortlist by the signs of all numbers, put in order by a byte a number

Unusual: a million embeddings are drawn, not computed. The covariance is the model's, dimension by dimension, so the first numbers
of what is drawn carry what the first numbers of the model's embeddings carry; both shares are printed. What is not gaussian in them
(clusters, scenes that are alike) is lost. Queries are vectors of the index turned away by noise of the model's covariance until
their mean cosine is `--cosine` (by default the mean cosine of a picture and its words), or, with `--queries text`, drawn as words
are, which belong to no vector in particular.

Each round asks flat and every contender the same new queries, in calls of `--batch_sizes`; a ratio is the median of the rounds'
ratios, with the least and the greatest behind it. Recall@10 is the share of flat's ten that are among a contender's ten, the mean
over all queries, with the half-width of its 95 % interval. Flat and one contender are held at a time: 10 GB at the most.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import faiss
import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

import modeling  # noqa: F401  teaches the Auto classes our models
import processing  # noqa: F401
from datasets_scripts import load_rows
from measure import machine, resident
from processing.vector_index import VectorIndex
from trainers.retrieval_evaluation import embed_rows
from trainers.run_folder import write_json


COUNT = 10  # of which recall is measured
BLOCKS = 16  # a power of two: faiss doubles what it holds, so that nothing is held in vain at the end
CALLS = 16  # queries a round at least
CONTENDERS = {"funnel": "none", "int8": "int8", "binary": "binary"}  # quantize


@dataclass
class Gaussian:
    mean: np.ndarray  # (d,)
    factor: np.ndarray  # (d, d); factor.T @ factor is the covariance

    @classmethod
    def of(cls, embeddings: np.ndarray) -> "Gaussian":
        """That of embeddings (n, d). Raises ValueError for fewer than two."""
        if len(embeddings) < 2:
            raise ValueError(f"a covariance needs two embeddings, there are {len(embeddings)}")
        values, vectors = np.linalg.eigh(np.cov(embeddings.astype(np.float64), rowvar=False))
        factor = np.sqrt(values.clip(min=0))[:, None] * vectors.T
        return cls(embeddings.mean(0).astype(np.float32), factor.astype(np.float32))

    def noise(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, d), of mean 0."""
        return rng.standard_normal((count, len(self.mean)), dtype=np.float32) @ self.factor

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return self.mean + self.noise(count, rng)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def embed_scenes(folder: str, scenes: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """
    The first `dim` numbers, at unit length, of the pictures' and the words' embeddings of as many scenes: (scenes, dim) each, a
    picture and its words in one row. Raises ValueError for a model that is no aligner or gives fewer numbers.
    """
    model = AutoModel.from_pretrained(folder, dtype="float32").eval()
    if not hasattr(model, "get_text_features"):
        raise ValueError(f"{folder} is a {model.config.model_type!r}: it embeds nothing; name an aligner")
    if not 0 < dim <= model.config.embed_dim:
        raise ValueError(f"--dim {dim}: embeddings of {folder} have 1 to {model.config.embed_dim} numbers")
    rows = load_rows("scenes", "test", rows="alignment", num_train=1, num_eval=scenes)
    found = embed_rows(model, AutoProcessor.from_pretrained(folder), rows)
    pictures, words = (unit(found.items[name][found.rows[name], :dim].numpy()) for name in ("image", "text"))
    return pictures, words


def turned(vectors: np.ndarray, like: Gaussian, cosine: float, rng: np.random.Generator) -> np.ndarray:
    """
    Vectors (n, d) at unit length plus noise of that covariance, at unit length: their mean cosine with what they were is `cosine`.
    Raises ValueError for a cosine that noise of this covariance does not lead to.
    """
    noise, low, high = like.noise(len(vectors), rng), 0.0, 1e4
    for _ in range(60):  # more noise, less cosine
        middle = (low + high) / 2
        if (unit(vectors + middle * noise) * vectors).sum(1).mean() > cosine:
            low = middle
        else:
            high = middle
    if high == 1e4 or not 0 < cosine < 1:
        raise ValueError(
            f"--cosine {cosine}: noise of the model's covariance leads to no such cosine; name one nearer 1"
        )
    return unit(vectors + high * noise)


def shares(vectors: np.ndarray, dims: list[int]) -> list[float]:
    """Which part of their squared length is in the first so many numbers."""
    squares = np.square(vectors, dtype=np.float64).sum(0)
    return [float(squares[:dim].sum() / squares.sum()) for dim in dims]


def build_flat(like: Gaussian, count: int, rng: np.random.Generator) -> faiss.Index:
    index = faiss.IndexFlatIP(len(like.mean))
    for block in np.array_split(np.arange(count), BLOCKS):
        index.add(unit(like.draw(len(block), rng)))
    return index


def build(name: str, flat: faiss.Index, short_dim: int) -> VectorIndex:
    """The contender of that name, of the vectors that flat holds. Of signs, all make the shortlist."""
    index = VectorIndex("drawn", flat.d, CONTENDERS[name], None if name == "binary" else short_dim)
    for block in np.array_split(np.arange(flat.ntotal), BLOCKS):
        index.add(flat.reconstruct_n(int(block[0]), len(block)), [str(i) for i in block])
    return index


def asking(index: VectorIndex, shortlist: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda queries: index.search_ids(queries, COUNT, shortlist)[1]


def in_calls(search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray, batch: int) -> np.ndarray:
    return np.concatenate([search(queries[start : start + batch]) for start in range(0, len(queries), batch)])


def recall(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Positions (m, count) each -> the mean share of what is expected that is found, and half its 95 % interval."""
    each = np.array([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), expected.tolist(), strict=True)])
    return float(each.mean()), float(1.96 * each.std() / np.sqrt(len(each)))


def race(searches: dict[str, Callable], queries: np.ndarray, batch: int, rounds: int) -> dict[str, list[float]]:
    """Queries/s of each in each round, in which all are asked the same; the first round is not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in searches}
    asked = max(batch, CALLS)
    for number in range(rounds + 1):
        some = queries.take(range(number * asked, (number + 1) * asked), axis=0, mode="wrap")
        for name, search in searches.items():
            start = time.perf_counter()
            in_calls(search, some, batch)
            speeds[name].append(asked / (time.perf_counter() - start))
    return {name: each[1:] for name, each in speeds.items()}


def compare(args: argparse.Namespace, flat: faiss.Index, queries: np.ndarray) -> list[dict]:
    """A row for each contender, shortlist and size of a call."""
    largest, rows = max(args.batch_sizes), []
    expected = in_calls(lambda some: flat.search(some, COUNT)[1], queries, largest)
    for name in args.contenders:
        start = time.perf_counter()
        index = build(name, flat, args.short_dim)
        built = time.perf_counter() - start
        found = {factor: asking(index, factor) for factor in args.shortlist}
        recalls = {factor: recall(in_calls(search, queries, largest), expected) for factor, search in found.items()}
        for batch in args.batch_sizes:
            searches = {"flat": lambda some: flat.search(some, COUNT)[1], **found}
            speeds = race(searches, queries, batch, args.rounds)
            for factor in args.shortlist:
                ratios = [ours / other for ours, other in zip(speeds[factor], speeds["flat"], strict=True)]
                row = {"contender": name, "shortlist": factor * COUNT, "batch": batch}
                row |= {"recall": recalls[factor][0], "recall_ci95_half": recalls[factor][1]}
                row |= {"queries_s": median(speeds[factor]), "flat_queries_s": median(speeds["flat"])}
                row |= {"ratio": median(ratios), "ratio_least": min(ratios), "ratio_greatest": max(ratios)}
                row |= {"bytes": index.bytes_a_vector() * flat.ntotal, "flat_bytes": 4 * flat.d * flat.ntotal}
                rows.append(row | {"seconds_to_build": built})
                print(told(rows[-1]), flush=True)
        del index, found, searches  # before the next is built
    return rows


def told(row: dict) -> str:
    return (
        f"ratio {row['contender']} / flat, shortlist {row['shortlist']}, {row['batch']} a call: {row['ratio']:.2f} "
        f"({row['ratio_least']:.2f} to {row['ratio_greatest']:.2f}) queries/s, {row['queries_s']:.1f} against "
        f"{row['flat_queries_s']:.1f}; recall@{COUNT} {row['recall']:.4f} ± {row['recall_ci95_half']:.4f}; "
        f"{row['bytes'] / 1e9:.3f} GB against {row['flat_bytes'] / 1e9:.3f}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a trained Matryoshka aligner")
    parser.add_argument("--scenes", type=int, default=4000, help="how many are embedded for the covariance")
    parser.add_argument("--num_vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--short_dim", type=int, default=128, help="how many numbers make the shortlist")
    parser.add_argument("--shortlist", type=int, nargs="+", default=[10], help="how many times ten are put in order")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--queries", choices=["perturbed", "text"], default="perturbed")
    parser.add_argument(
        "--cosine", type=float, help="of a perturbed query; default: a picture's with its words, by DIR"
    )
    parser.add_argument("--num_queries", type=int, default=512)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 64], help="queries a call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where the figures and their protocol go, as JSON")
    return parser.parse_args()


def main() -> None:
    args, load = arguments(), os.getloadavg()[0]
    rng = np.random.default_rng(args.seed)

    # 1. What a trained model's embeddings look like.
    pictures, words = embed_scenes(args.model, args.scenes, args.dim)
    of_pictures, of_words = Gaussian.of(pictures), Gaussian.of(words)
    pairs = float((pictures * words).sum(1).mean())

    # 2. As many as are asked for, that look like them.
    flat = build_flat(of_pictures, args.num_vectors, rng)
    cosine = args.cosine if args.cosine is not None else pairs
    if args.queries == "text":
        queries, how = unit(of_words.draw(args.num_queries, rng)), "drawn as the words' embeddings are"
    else:
        chosen = rng.choice(args.num_vectors, args.num_queries, replace=args.num_queries > args.num_vectors)
        queries = turned(flat.reconstruct_batch(chosen), of_pictures, cosine, rng)
        how = f"perturbed to a mean cosine of {cosine:.3f}"
    dims = sorted({min(args.dim, 2**power) for power in range(4, 14)})
    drawn = shares(flat.reconstruct_n(0, min(10_000, args.num_vectors)), dims)

    here = machine(threads=faiss.omp_get_max_threads())
    print(f"{args.num_vectors} vectors of {args.dim} numbers on {here}; faiss {faiss.__version__}, ", end="")
    print(f"torch {torch.__version__}; load {load:.1f} before")
    print(f"spectrum of {args.model}, {args.scenes} scenes; a picture and its words: mean cosine {pairs:.3f}")
    for dim, own, other in zip(dims, shares(pictures, dims), drawn, strict=True):
        print(f"  the first {dim:5} numbers: {own:.3f} of the squared length, of what is drawn {other:.3f}")
    print(f"{args.num_queries} queries, {how}; medians of {args.rounds} rounds; short_dim {args.short_dim}", flush=True)

    # 3. Each contender beside flat.
    rows = compare(args, flat, queries)
    print(f"load {os.getloadavg()[0]:.1f} after; this process held {resident('VmHWM') * 2**20 / 1e9:.1f} GB at most")
    if args.output is not None:
        protocol = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        protocol |= {"cosine": cosine, "pairs_cosine": pairs, "machine": here, "faiss": faiss.__version__}
        protocol["shares"] = {dim: list(both) for dim, *both in zip(dims, shares(pictures, dims), drawn, strict=True)}
        write_json(args.output, {"rows": rows, "protocol": protocol})


if __name__ == "__main__":
    main()
