"""
CLIPScore (Hessel et al., 2021, https://arxiv.org/abs/2104.08718): how near a caption stands to its picture, by a CLIP you name.

    picture -> v        "A photo depicts " + caption -> c        "A photo depicts " + each reference -> r

    clip_score      2.5 * max(cos(c, v), 0)
    ref_clip_score  the harmonic mean of that and max(0, the largest cos(c, r)); where there are references

each a mean over pictures. https://github.com/jmhessel/clipscore prefixes both sides so, and cuts what the text tower cannot hold.

Unusual: any model with get_image_features and get_text_features may be named, and none is there by default. 2.5 was chosen for CLIP
ViT-B/32, whose cosines lie between 0 and 0.4; another model's figures lie elsewhere, and figures of two models cannot be compared.
The official program differs in that it computes in float16 on a GPU (here always float32), and says NaN for a ref_clip_score of two
parts that are both 0 (here 0).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np

from .bootstrap import N_BOOTSTRAP, SEED, interval
from .clip_embedder import ClipEmbedder


PREFIX = "A photo depicts "
WEIGHT = 2.5


def clip_scores(pictures: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """CLIPScore (n,) of embeddings (n, d) at unit length."""
    return WEIGHT * np.clip((pictures * captions).sum(1), 0, None)


def ref_clip_scores(scores: np.ndarray, captions: np.ndarray, references: list[np.ndarray]) -> np.ndarray:
    """RefCLIPScore (n,) of CLIPScores (n,), captions (n, d) and each caption's references (k, d), all at unit length."""
    nearest = np.array([max(0.0, (some @ one).max()) for one, some in zip(captions, references, strict=True)])
    whole = scores + nearest
    return np.divide(2 * scores * nearest, whole, out=np.zeros_like(whole), where=whole > 0)


class ClipScore(evaluate.Metric):
    """`predictions`: captions; `references`: for each, captions by people, or an empty list for all of them."""

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Sequence(datasets.Value("string"))
        features = {"predictions": datasets.Value("string"), "references": texts}
        return evaluate.MetricInfo(description=__doc__, citation="", features=datasets.Features(features))

    def compute(
        self, *, predictions: list[str] | None = None, references: list[list[str]] | None = None, **options
    ) -> dict | None:
        """What `_compute` returns, for the captions given or, without them, for what `add` and `add_batch` were given."""
        if predictions is None or self.num_process > 1:
            return super().compute(predictions=predictions, references=references, **options)
        return self._compute(predictions, references, **options)

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]] | None = None,
        images: Sequence[Any] | None = None,
        clip_model: str | Path | None = None,
        revision: str | None = None,
        prefix: str = PREFIX,
        batch_size: int = 64,
        trust_remote_code: bool = False,
        n_bootstrap: int = N_BOOTSTRAP,
        seed: int = SEED,
    ) -> dict:
        """
        The figures above, each with a `_ci95` by bootstrap over pictures and, as `_items`, its value of each picture; and
        `clip_score_protocol`, with the number of texts that were cut (`truncated`).

        images: for each caption a PIL picture, a file or its bytes; a sequence that opens them when asked keeps memory small.
        clip_model: folder or Hub id; revision: of a Hub id. prefix: "" for none.

        Raises ValueError for no captions, no images, no model, lists of different lengths, what is no text, a picture without
        references among others that have some, and embeddings that are no finite numbers.
        """
        self._check(predictions, references, images, clip_model)
        embedder = ClipEmbedder(str(clip_model), revision, trust_remote_code)
        seen = embedder.pictures(images, batch_size).numpy()
        said, cut = embedder.texts([prefix + caption for caption in predictions], batch_size)
        said = said.numpy()
        for what, some in (("picture", seen), ("caption", said)):
            if len(wrong := np.flatnonzero(~np.isfinite(some).all(1))):
                raise ValueError(f"record {wrong[0]}: {clip_model} embeds its {what} as what is no finite number")
        items = {"clip_score": clip_scores(seen, said)}
        if any(references or ()):
            texts = [prefix + text for right in references for text in right]
            right, more = embedder.texts(texts, batch_size)
            ends = np.cumsum([len(some) for some in references])[:-1]
            items["ref_clip_score"] = ref_clip_scores(items["clip_score"], said, np.split(right.numpy(), ends))
            cut += more
        result: dict = {}
        for name, each in items.items():
            each = each.astype(float)
            ci95 = interval(each[:, None] / len(each), lambda sums: sums[..., 0], n_bootstrap, seed)
            result |= {name: float(each.mean()), f"{name}_ci95": ci95, f"{name}_items": each.tolist()}
        told = {"model": str(clip_model), "revision": revision, "prefix": prefix, "truncated": cut}
        return result | {"clip_score_protocol": told}

    @staticmethod
    def _check(predictions, references, images, clip_model) -> None:
        if clip_model is None:
            raise ValueError(
                "clip_score needs a model, and there is no default: pass clip_model, a folder or Hub id; the paper's is "
                "openai/clip-vit-base-patch32"
            )
        if not len(predictions):
            raise ValueError("there are no predictions to score")
        if images is None:
            raise ValueError("clip_score looks at pictures: pass images")
        for what, some in (("references", references), ("images", images)):
            if some is not None and len(some) != len(predictions):
                raise ValueError(f"{len(predictions)} predictions, but {what} of {len(some)} pictures")
        for record, text in enumerate(predictions):
            if not isinstance(text, str):
                raise ValueError(f"record {record}: the prediction is {text!r}, not a string")
        for record, right in enumerate(references or ()):
            if isinstance(right, str) or not all(isinstance(text, str) for text in right):
                raise ValueError(f"record {record}: the references are {right!r}, not a list of strings")
            if not right and any(references):
                raise ValueError(f"record {record} has no references, and others have; leave all of them out")
