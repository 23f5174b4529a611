"""
From rows and answers to batches: what a reward model reads of answers to prompts about pictures. For any HF vision–language model.

    row {images, prompt} + answers          -> AnswerCollator.inputs -> input_ids (answers * rows, t), …, pictures once a row
    row {images, prompt, chosen, rejected}  -> PreferenceCollator    -> the same, and which rows can be used

Unusual: as for captions, prompt and answer are tokenised apart and nothing is cut; an answer is read to its end-of-turn token,
where its reward is read off. A row that cannot be used keeps its place in the batch, counts nothing and is named in `skipped`.
"""

from typing import Any

import torch
from torch import Tensor

from datasets_scripts.open_picture import UnreadablePicture
from trainers.captioning_data import TOKEN_TYPES, CaptioningCollator, _words


SIDES = ("chosen", "rejected")


class AnswerCollator(CaptioningCollator):
    """Rows, and as many answers to each, as a reward model reads them."""

    def inputs(self, rows: list[dict], seen: list[list], answers: list[list[list[dict]]]) -> dict[str, Any]:
        """`written`, without what only a model that writes the answers needs."""
        return self.written(rows, seen, answers)[0]

    def written(
        self, rows: list[dict], seen: list[list], answers: list[list[list[dict]]]
    ) -> tuple[dict[str, Any], list[int]]:
        """
        A batch: all rows with their first answers, then all with their second ones, …, padded on the right; pictures once a row.
        And where in each row of the batch its answer starts.

        seen: each row's opened pictures. answers: for each of k answers, each row's (turns). Raises ValueError as `prompt_text` and
        `completion_text` do.
        """
        pairs = [(row, said) for some in answers for row, said in zip(rows, some, strict=True)]
        texts = [self._texts(row | {"completion": said}) for row, said in pairs]
        read = self._read([prompt for prompt, _ in texts[: len(rows)]], seen)
        prompts = [list(map(int, ids)) for ids in read.pop("input_ids")] * len(answers)
        read.pop("attention_mask", None)
        said = self.processor.tokenizer([answer for _, answer in texts], add_special_tokens=False)["input_ids"]
        types = {name: list(read.pop(name)) * len(answers) for name in TOKEN_TYPES if name in read}
        batch = {name: _tensor(value) for name, value in read.items()}
        batch["input_ids"], there = self._padded([p + s for p, s in zip(prompts, said, strict=True)])
        batch["attention_mask"] = there.long()
        for name, rows_types in types.items():
            batch[name] = torch.zeros_like(batch["input_ids"])
            for line, some in zip(batch[name], rows_types, strict=True):
                line[: len(some)] = torch.as_tensor(some)
        return batch | {"answers": len(answers)}, list(map(len, prompts))


def _tensor(values: Any) -> Tensor:
    tensors = isinstance(values, (list, tuple)) and isinstance(values[0], Tensor)
    return torch.stack(list(values)) if tensors else torch.as_tensor(values)


class PreferenceCollator(AnswerCollator):
    """
    Preference rows -> a batch: chosen answers, then rejected ones; `labels` (b,), -100 where a row cannot be used and 1 elsewhere,
    which Trainer counts over a step; `margin` (b,), 0 for a row without; `row`, its name. The rest is as for CaptioningCollator.
    """

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        rows, names, seen, skipped = list(rows), [row_name(row) for row in rows], [], {}
        for where, row in enumerate(rows):
            try:
                seen.append(self._see(row))
                if problem := _problem(row):
                    skipped[where] = problem
            except UnreadablePicture as problem:
                skipped[where] = str(problem)
                seen.append(None)
        self._skip(rows, seen, skipped)
        batch = self._both_sides(rows, seen)
        if self.max_length is not None:
            lengths = batch["attention_mask"].sum(1).view(2, -1).amax(0).tolist()
            long = {i: f"{n} tokens, over {self.max_length}" for i, n in enumerate(lengths) if n > self.max_length}
            if long.keys() - skipped.keys():
                skipped = long | skipped
                self._skip(rows, seen, long)
                batch = self._both_sides(rows, seen)
        batch["labels"] = torch.tensor([-100 if where in skipped else 1 for where in range(len(rows))])
        batch["margin"] = torch.tensor([float(row.get("margin") or 0) for row in rows])
        batch["row"] = names
        if skipped:
            named = {
                where: {k: rows[where][k] for k in ("image_id", "flaw") if rows[where].get(k)} for where in skipped
            }
            batch["skipped"] = [named[where] | {"problem": problem} for where, problem in skipped.items()]
        return batch

    def _both_sides(self, rows: list[dict], seen: list) -> dict[str, Any]:
        return self.inputs(rows, seen, [[row[side] for row in rows] for side in SIDES])

    def _skip(self, rows: list[dict], seen: list, skipped: dict[int, str]) -> None:
        flaws = {where: rows[where].get("flaw") for where in skipped}
        super()._skip(rows, seen, skipped)
        for where, flaw in flaws.items():
            rows[where] |= {"flaw": flaw, **dict.fromkeys(SIDES, rows[where]["completion"])}


def row_name(row: dict) -> str:
    """What tells a pair from the others: the id of its picture and, of several about one picture, the flaw."""
    return f"{row.get('image_id')} ({row['flaw']})" if row.get("flaw") else str(row.get("image_id"))


def _problem(row: dict) -> str | None:
    """Why nothing can be learned from what is said in a row."""
    said = ["\n".join(map(_words, row[side])).strip() for side in SIDES]
    for side, words in zip(SIDES, said, strict=True):
        if not words:
            return f"the {side} side is empty"
    return "both sides say the same" if said[0] == said[1] else None
