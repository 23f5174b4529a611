"""
An index of embeddings: the first numbers make a shortlist, all of them put it in order.

    embeddings (n, d) -> first `dim` numbers at unit length -> kept whole, or as int8      (what is ranked)
                      -> first `short_dim` numbers, likewise, or only their signs          (what is shortlisted by)
    query -> the nearest by the short ones, `shortlist` times as many as asked for -> ranked by the long ones

    FOLDER/index.json             what it is, which model it is of, and which two files are its present state
    FOLDER/vectors-0002.faiss     faiss' own file, mapped into memory when it is read
    FOLDER/names-0002.txt         a line an item, JSON

Unusual: it is all faiss (https://github.com/facebookresearch/faiss): a transform that takes the first numbers, a flat or quantised
index of them, and `IndexRefine` on top. Adding writes new files and then replaces index.json, so what is there is always whole; an
index of another model's embeddings is refused by that model's fingerprint.
"""

import json
import os
from pathlib import Path

import faiss
import numpy as np


FORMAT = 1
QUANTIZE = ("none", "int8", "binary")
SHORTLIST = 10  # how many times as many as asked for are ranked again


def _flat(dim: int, quantize: str) -> faiss.Index:
    """Of vectors at unit length, by cosine; signs by how many agree."""
    if quantize == "int8":
        return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    return faiss.IndexLSH(dim, dim, False, False) if quantize == "binary" else faiss.IndexFlatIP(dim)


def _truncating(width: int, dim: int, quantize: str) -> faiss.Index:
    """An index of vectors (n, width) by their first `dim` numbers."""
    index = faiss.IndexPreTransform(_flat(dim, quantize))
    index.prepend_transform(faiss.NormalizationTransform(dim, 2.0))
    index.prepend_transform(faiss.RemapDimensionsTransform(width, dim, False))
    index.metric_type = faiss.METRIC_INNER_PRODUCT  # what the shortlist is ranked again by, also that of signs
    return index


def _learn_range(index: faiss.Index, vectors: np.ndarray) -> None:
    """
    How far the numbers of an int8 index reach: half as far again as those of `vectors`, and at least six times as far as those of
    vectors at unit length do on the average. What is added later may lie elsewhere: sounds after pictures.
    """
    inner = faiss.downcast_index(index.index)
    if not inner.is_trained:
        some = vectors[:, : inner.d] / np.linalg.norm(vectors[:, : inner.d], axis=1, keepdims=True).clip(1e-12)
        reach = np.maximum(1.5 * np.abs(some).max(0), 6 / np.sqrt(inner.d)).clip(max=1).astype(np.float32)
        inner.train(np.stack([-reach, reach]))
    index.is_trained = True


class VectorIndex:
    """
    model: fingerprint of the model whose embeddings these are. dim: how many of their numbers are kept; quantize: "none", "int8",
    or "binary": int8, shortlisted by signs. short_dim: how many make the shortlist (None: there is none, and every query is
    compared with everything; of signs: all).

    Raises ValueError for settings that contradict one another.
    """

    def __init__(self, model: str, dim: int, quantize: str = "none", short_dim: int | None = None):
        if quantize not in QUANTIZE:
            raise ValueError(f"quantize must be one of {', '.join(QUANTIZE)}; got {quantize!r}")
        if short_dim is not None and not 0 < short_dim <= dim:
            raise ValueError(f"short_dim={short_dim} must be between 1 and dim={dim}")
        self.model, self.dim, self.quantize, self.short_dim = model, dim, quantize, short_dim
        self.names: list[str] = []
        self.state = 0  # how often it has been saved
        self.mapped = False
        long = _truncating(dim, dim, "int8" if quantize == "binary" else quantize)
        self._parts = [long]  # faiss does not keep what it refers to
        self._index: faiss.Index = long
        if quantize == "binary" or (short_dim is not None and short_dim < dim):
            short = _truncating(dim, short_dim or dim, quantize)
            self._parts.append(short)
            self._index = faiss.IndexRefine(short, long)

    def __len__(self) -> int:
        return len(self.names)

    def add(self, embeddings: np.ndarray, names: list[str]) -> None:
        """
        embeddings (n, width), of which the first `dim` numbers are kept; a name for each. Raises ValueError for too few numbers,
        other than finite ones, and another number of names.
        """
        vectors = self._first(embeddings)
        if len(names) != len(vectors):
            raise ValueError(f"{len(vectors)} embeddings and {len(names)} names")
        if self.mapped:
            raise ValueError("this index is mapped into memory, to be read; load it with mapped=False to add to it")
        if not len(vectors):
            return
        if not self._index.is_trained:
            for part in self._parts:
                _learn_range(part, vectors)
            self._index.is_trained = True
        self._index.add(vectors)
        self.names += names

    def search(self, queries: np.ndarray, count: int = 10, shortlist: int = SHORTLIST) -> list[list[tuple[str, float]]]:
        """
        For each query (m, width) the nearest items and their similarity, best first. shortlist: how many times `count` are ranked
        again. Raises ValueError as `add` does, and for an index that holds nothing.
        """
        if not len(self):
            raise ValueError("the index holds nothing yet")
        scores, found = self.search_ids(queries, count, shortlist)
        return [
            [(self.names[i], float(score)) for i, score in zip(ids, row, strict=True) if i >= 0]
            for ids, row in zip(found, scores, strict=True)
        ]

    def search_ids(
        self, queries: np.ndarray, count: int = 10, shortlist: int = SHORTLIST
    ) -> tuple[np.ndarray, np.ndarray]:
        """Similarities and positions, (m, count) each."""
        vectors, count = self._first(queries), min(count, len(self))
        if not isinstance(self._index, faiss.IndexRefine):
            return self._index.search(vectors, count)
        factor = min(shortlist, len(self) / count)
        return self._index.search(vectors, count, params=faiss.IndexRefineSearchParameters(k_factor=factor))

    def _first(self, embeddings: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(embeddings, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] < self.dim:
            raise ValueError(f"embeddings must be (n, at least {self.dim}), are {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise ValueError(f"embedding {int(np.argwhere(~np.isfinite(vectors))[0][0])} holds what is no number")
        return np.ascontiguousarray(vectors[:, : self.dim])

    def bytes_a_vector(self) -> float:
        """What an item takes in memory, all parts together."""
        long, short = {"none": (4.0, 4.0), "int8": (1.0, 1.0), "binary": (1.0, 1 / 8)}[self.quantize]
        return long * self.dim + short * ((self.short_dim or self.dim) if len(self._parts) > 1 else 0)

    def save(self, folder: str | Path) -> None:
        """Write it; what was there before stays whole until the new files are, and goes then."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.state += 1
        vectors, names = (
            folder / f"{what}-{self.state:04d}.{kind}" for what, kind in (("vectors", "faiss"), ("names", "txt"))
        )
        faiss.write_index(self._index, f"{vectors}.tmp")
        Path(f"{names}.tmp").write_text(
            "".join(json.dumps(name, ensure_ascii=False) + "\n" for name in self.names), "utf-8"
        )
        told = {
            "format": FORMAT,
            "model": self.model,
            "dim": self.dim,
            "quantize": self.quantize,
            "short_dim": self.short_dim,
        }
        told |= {"state": self.state, "count": len(self)}
        (folder / "index.json.tmp").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
        for path in (vectors, names, folder / "index.json"):
            with open(f"{path}.tmp", "rb") as file:
                os.fsync(file.fileno())
            os.replace(f"{path}.tmp", path)
        for path in (*folder.glob("vectors-*.faiss"), *folder.glob("names-*.txt")):
            if path not in (vectors, names):
                path.unlink()

    @classmethod
    def load(cls, folder: str | Path, model: str | None = None, mapped: bool = True) -> "VectorIndex":
        """
        The index of a folder. model: the fingerprint of the model that asks. mapped: the vectors stay in their file and are read as
        they are needed, and nothing can be added.

        Raises FileNotFoundError where there is none, ValueError for one of another model or format, and one whose files disagree.
        """
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise FileNotFoundError(f"{folder} holds no index: there is no index.json in it")
        told = json.loads((folder / "index.json").read_text("utf-8"))
        if told.get("format") != FORMAT:
            raise ValueError(f"{folder}: an index of format {told.get('format')}; this reads {FORMAT}. Build it anew")
        if model is not None and model != told["model"]:
            raise ValueError(
                f"{folder} holds embeddings of another model ({told['model'][:12]}…, asked with {model[:12]}…): what is near in "
                "one space is not in another. Build it anew with this model, or search with that one"
            )
        index = cls(told["model"], told["dim"], told["quantize"], told["short_dim"])
        index.state = told["state"]
        index.names = [
            json.loads(line) for line in (folder / f"names-{index.state:04d}.txt").read_text("utf-8").splitlines()
        ]
        index.mapped = mapped
        flags = faiss.IO_FLAG_MMAP_IFC if mapped else 0
        index._index = faiss.read_index(str(folder / f"vectors-{index.state:04d}.faiss"), flags)
        if not index._index.ntotal == len(index.names) == told["count"]:
            raise ValueError(
                f"{folder}: {told['count']} items, {index._index.ntotal} vectors, {len(index.names)} names"
            )
        return index


__all__ = ["VectorIndex"]
