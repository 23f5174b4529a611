"""
Retrieval: embed what rows hold, each different picture, text and sound once, and look for what belongs to it.

    rows {image, text, audio} -> embed_rows -> Embedded: modality -> (items, d), and which items share a row
                              -> retrieval_figures -> {"text_to_image_r1": {"value", "ci95", "n"}, "text_to_image_r1@64": …}

Unusual: of two rows that hold the same text, both pictures are right; a picture with five captions is one item, and any of its
captions is right.
"""

from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from modeling.matryoshka import truncate
from trainers.contrastive_data import COLUMNS, PARTS, ContrastiveCollator, key_of
from trainers.feature_shards import each_once
from trainers.run_folder import write_json
from trainers.scoring import load_metric, metric_version


FIGURES = ("r1", "r5", "r10", "median_rank")


@dataclass
class Embedded:
    items: dict[str, Tensor]  # modality -> (items, embed_dim), at unit length
    rows: dict[str, Tensor]  # modality -> (rows,) index of each row's item, -1 for none
    skipped: int  # what could not be read


@torch.no_grad()
def embed(
    model: Any, processor: Any, modality: str, values: list, batch_size: int = 250, progress: bool = True
) -> tuple[Tensor, Tensor, int]:
    """
    Pictures, texts or sounds (None: none), each different one embedded once: (items, embed_dim), for each value the index of its
    item or -1, and how many could not be read.
    """
    once, _, here = each_once(values, lambda value: key_of(modality, value))
    once = [{modality: value} for value in once]
    here = [-1 if i is None else i for i in here]
    training, device = model.training, next(model.parameters()).device
    model.eval()
    collate, parts, place, skipped = ContrastiveCollator(processor), [], 0, 0
    read = torch.full((len(once) + 1,), -1)  # the last: of a value that is none
    for start in tqdm(range(0, len(once), batch_size), desc=f"embedding {modality}", disable=not progress, leave=False):
        batch = collate(once[start : start + batch_size])
        skipped += batch.pop("skipped", 0)
        there = batch.pop(f"{modality}_there").nonzero()[:, 0]
        batch.pop(f"{modality}_key")
        if len(there):
            read[start + there] = torch.arange(place, place + len(there))
            place += len(there)
            out = getattr(model, f"get_{modality}_features")(
                **{name: value.to(device) for name, value in batch.items()}
            )
            parts.append(out.pooler_output.float().cpu())
    model.train(training)
    items = torch.cat(parts) if parts else torch.zeros(0, model.config.embed_dim)
    return items, read[torch.tensor(here, dtype=torch.long)], skipped


def embed_rows(model: Any, processor: Any, rows: Dataset, batch_size: int = 250, progress: bool = True) -> Embedded:
    """Raises ValueError for rows with fewer than two of the columns image, text and audio that the model has a tower for."""
    modalities = [name for name in COLUMNS if name in rows.column_names and PARTS[name] in model.towers()]
    if len(modalities) < 2:
        raise ValueError(f"retrieval needs two of the columns image, text and audio; there are {rows.column_names}")
    out = {name: embed(model, processor, name, list(rows[name]), batch_size, progress) for name in modalities}
    items, index, skipped = ({name: some[i] for name, some in out.items()} for i in range(3))
    return Embedded(items, index, sum(skipped.values()))


def nested_dims(model: Any) -> list[int]:
    """The widths at which a model's embeddings were trained; of one that is not Matryoshka, its only one."""
    return getattr(model.config, "matryoshka_dimensions", [model.config.embed_dim])


def retrieval_figures(embedded: Embedded, dims: list[int], n_bootstrap: int = 1000) -> dict[str, dict]:
    """Every direction that rows connect, at full width and, with the suffix "@dim", at each of `dims`."""
    metric, figures = load_metric("retrieval"), {}
    for query, gallery in permutations(embedded.items, 2):
        both = (embedded.rows[query] >= 0) & (embedded.rows[gallery] >= 0)
        right: dict[int, set[int]] = {}
        for one, other in zip(embedded.rows[query][both].tolist(), embedded.rows[gallery][both].tolist(), strict=True):
            right.setdefault(one, set()).add(other)
        if not right:
            continue
        asked = sorted(right)
        references = [sorted(right[one]) for one in asked]
        full = embedded.items[gallery].shape[1]
        for dim in [full, *(dim for dim in dims if dim != full)]:
            queries, found = (truncate(embedded.items[name], dim) for name in (query, gallery))
            similarity = (queries[asked] @ found.T).numpy()
            result = metric.compute(predictions=similarity, references=references, n_bootstrap=n_bootstrap)
            for name in FIGURES:
                figures[f"{query}_to_{gallery}_{name}" + ("" if dim == full else f"@{dim}")] = {
                    "value": round(result[name], 6),
                    "ci95": [round(end, 6) for end in result[f"{name}_ci95"]],
                    "n": len(asked),
                }
    return figures


def evaluate_retrieval(
    model: Any,
    processor: Any,
    rows: Dataset,
    folder: Path,
    protocol: dict,
    batch_size: int = 250,
    dims: list[int] | None = None,
) -> dict[str, dict]:
    """
    Figures of every direction and of `dims` (default: the model's Matryoshka dimensions), written to `folder`/metrics.json with
    what decides them. Of rows with a `label`, whose text says no more than it, `zero_shot_accuracy`: how often a picture's or
    sound's nearest text is its class's. Raises ValueError for dims that the embeddings have not.
    """
    embedded = embed_rows(model, processor, rows, batch_size)
    figures = retrieval_figures(embedded, dims or nested_dims(model))
    if "label" in rows.column_names:
        modality = "image" if "image" in embedded.items else "audio"
        r1 = f"{modality}_to_text_r1"  # and with "@dim", but no "r10"
        figures = {n.replace(r1, "zero_shot_accuracy"): f for n, f in figures.items() if n.partition("@")[0] == r1}
    sizes = {name: len(some) for name, some in embedded.items.items()}
    told = {"gallery": sizes, "skipped": embedded.skipped, "fingerprint": rows._fingerprint}
    told |= {"metrics": {"retrieval": metric_version("retrieval")}}
    write_json(Path(folder) / "metrics.json", {**figures, "protocol": protocol | told})
    return figures
