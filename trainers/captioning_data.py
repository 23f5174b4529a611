"""
From canonical rows to batches: conversations with pictures become prompts, labels and pixels. For any HF vision–language model.

    row {images, prompt, completion} -> "…<image>…user…assistant…"
        -> input_ids, attention_mask, pixel_values (or vision_features, cached), labels (-100 on the prompt)

Unusual:
- Prompt and completion are tokenised apart and joined as ids, so the boundary between what is read and what is learned is exact
  whatever the tokenizer would have merged; nothing is ever truncated, because a cut can fall inside a picture.
- Pictures are opened here, one batch at a time. A row that cannot be used (unreadable picture, no words, too many) keeps its
  place in the batch with nothing to learn, and is named in `skipped`: shapes stay, every process goes on, nothing is silent.
- Special tokens written out in the data ("<image>" in a caption) are text, not commands.
"""

from typing import Any

import torch
from PIL import Image

from datasets_scripts.open_picture import UnreadablePicture, open_picture


BLANK = Image.new("RGB", (32, 32), (128, 128, 128))  # what a row that is skipped shows
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")  # what processors say of each token; of a completion's: 0
PLACE = "<image>"  # how LLaVA's data says in a prompt where a picture stands, whatever the model's own token is


def with_pictures(messages: list[dict], num_images: int) -> list[dict]:
    """
    Put a picture part before the text of the first user message for each image, unless the messages already place them: by
    parts, or, as LLaVA's data does, by as many "<image>" in the users' text as there are pictures. Raises ValueError if parts
    place another number than there are.
    """
    messages = [_placed(message) for message in messages] if _written(messages) == num_images else messages
    placed = sum(
        part["type"] == "image" for m in messages if not isinstance(m["content"], str) for part in m["content"]
    )
    if placed == num_images:
        missing = 0
    elif placed == 0:
        missing = num_images
    else:
        raise ValueError(f"the prompt places {placed} pictures and the row has {num_images}")
    out = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        if message["role"] == "user" and missing:
            parts = [{"type": "image"}] * missing + parts
            missing = 0
        out.append({"role": message["role"], "content": parts})
    return out


def _written(messages: list[dict]) -> int:
    return sum(m["content"].count(PLACE) for m in messages if m["role"] == "user" and isinstance(m["content"], str))


def _placed(message: dict) -> dict:
    """A user's "a <image> b" as parts."""
    if message["role"] != "user" or not isinstance(message["content"], str) or PLACE not in message["content"]:
        return message
    parts = []
    for number, text in enumerate(message["content"].split(PLACE)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return {**message, "content": parts}


def _words(message: dict) -> str:
    content = message["content"]
    return (content if isinstance(content, str) else "".join(part.get("text", "") for part in content)).strip()


def _as_text(processor: Any, messages: list[dict]) -> list[dict]:
    """The messages with special tokens in their words broken by an invisible space, so that they are read as words."""

    def harmless(text: str) -> str:
        for token in {getattr(processor, "image_token", None), *processor.tokenizer.all_special_tokens} - {None}:
            if len(token) > 1 and token in text:
                text = text.replace(token, f"{token[0]}\u200b{token[1:]}")
        return text

    return [
        {**m, "content": [part | {"text": harmless(part["text"])} if "text" in part else part for part in m["content"]]}
        for m in messages
    ]


def pictures_of(row: dict) -> list[Image.Image]:
    """The pictures of a row, opened, upright and RGB. Raises UnreadablePicture (a ValueError) that names the file."""
    return [open_picture(picture) for picture in row["images"]]


def prompt_text(processor: Any, row: dict) -> str:
    """The prompt of a row up to where the assistant speaks, with one placeholder a picture."""
    messages = _as_text(processor, with_pictures(row["prompt"], len(row["images"])))
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def completion_text(processor: Any, row: dict) -> str:
    """What the assistant says, to its end-of-turn token. Raises ValueError if the template does not extend the prompt."""
    prompt = prompt_text(processor, row)
    messages = with_pictures(row["prompt"], len(row["images"])) + with_pictures(row["completion"], 0)
    messages = _as_text(processor, messages)
    whole = processor.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(prompt):
        raise ValueError(f"the chat template rewrites the prompt once it is answered:\n{prompt!r}\n{whole!r}")
    # templates close a turn with a newline that the model need not say: its turn ends where generation stops
    return whole[len(prompt) :].rstrip("\n")


class CaptioningCollator:
    """
    Rows -> a training batch, padded on the right; labels are the completion's tokens.

    max_length: rows of more tokens, pictures' included, are skipped. strict: raise ValueError, naming row and cause, where a row
    would be skipped. features: cached vision features; then `images` holds their indices. is_encoder_decoder: prompts and
    completions stay apart, as input_ids and labels, instead of following one another.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        strict: bool = False,
        features: Any = None,
        is_encoder_decoder: bool = False,
    ):
        self.processor = processor
        self.is_encoder_decoder = is_encoder_decoder
        self.max_length = max_length
        self.strict = strict
        self.features = features
        self._ends: dict = {}  # (prompt, pictures) -> its text, and what surrounds its completion: templates are slow

    def _texts(self, row: dict) -> tuple[str, str]:
        content = row["completion"][0]["content"]
        if len(row["completion"]) > 1 or not isinstance(content, str):
            return prompt_text(self.processor, row), completion_text(self.processor, row)
        key = (str(row["prompt"]), len(row["images"]))
        if key not in self._ends:
            if len(self._ends) > 1000:  # questions: as many prompts as rows
                self._ends.clear()
            said = completion_text(self.processor, row | {"completion": [{"role": "assistant", "content": "\0"}]})
            before, _, after = said.partition("\0")
            self._ends[key] = prompt_text(self.processor, row), before, after
        prompt, before, after = self._ends[key]
        clean = _as_text(self.processor, [{"content": [{"type": "text", "text": content.strip()}]}])
        return prompt, before + clean[0]["content"][0]["text"] + after

    def _see(self, row: dict) -> list:
        """Opened pictures, or cached features (rows, columns, d_v)."""
        return pictures_of(row) if self.features is None else [self.features[i] for i in row["images"]]

    def _read(self, prompts: list[str], seen: list[list]) -> dict:
        """Prompts with their placeholders written out, as ids, and the pictures as the model takes them."""
        if self.features is None:
            return self.processor(images=seen if any(seen) else None, text=prompts, add_special_tokens=False)
        token = self.processor.image_token
        count = self.processor.count_image_tokens(*self.features.grid)
        texts = [prompt.replace(token, token * count) for prompt in prompts]
        read = {"input_ids": self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]}
        return read | {"vision_features": torch.stack([one for row in seen for one in row])}

    def _encode(self, rows: list[dict], seen: list[list]) -> tuple[dict, list[list[int]], list[list[int]]]:
        texts = [self._texts(row) for row in rows]
        read = self._read([prompt for prompt, _ in texts], seen)
        prompts = [list(map(int, ids)) for ids in read.pop("input_ids")]
        read.pop("attention_mask", None)
        said = self.processor.tokenizer([completion for _, completion in texts], add_special_tokens=False)["input_ids"]
        return read, prompts, said

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        rows, seen, skipped = list(rows), [], {}
        for place, row in enumerate(rows):
            try:
                seen.append(self._see(row))
                if not any(_words(message) for message in row["completion"]):
                    skipped[place] = "the completion is empty"
            except UnreadablePicture as problem:
                skipped[place] = str(problem)
                seen.append(None)
        self._skip(rows, seen, skipped)
        pixels, prompts, said = self._encode(rows, seen)
        if self.max_length is not None:
            lengths = [len(p) + len(c) for p, c in zip(prompts, said, strict=True)]
            long = {i: f"{n} tokens, over {self.max_length}" for i, n in enumerate(lengths) if n > self.max_length}
            if long.keys() - skipped.keys():
                skipped |= long
                self._skip(rows, seen, long)
                pixels, prompts, said = self._encode(rows, seen)

        types = {name: pixels.pop(name) for name in TOKEN_TYPES if name in pixels}
        batch = {key: torch.as_tensor(_stacked(value)) for key, value in pixels.items()}
        unlearned = torch.tensor([place in skipped for place in range(len(rows))])[:, None]
        if self.is_encoder_decoder:
            batch["input_ids"], read = self._padded(prompts)
            answers, learned = self._padded(said)
        else:
            batch["input_ids"], read = self._padded([p + c for p, c in zip(prompts, said, strict=True)])
            starts = torch.tensor([len(p) for p in prompts])[:, None]
            answers, learned = batch["input_ids"], read & (torch.arange(read.shape[1]) >= starts)
        batch["attention_mask"] = read.long()
        for name, of_prompts in types.items():
            batch[name] = torch.zeros_like(batch["input_ids"])
            for line, some in zip(batch[name], of_prompts, strict=True):
                line[: len(some)] = torch.as_tensor(some)
        batch["labels"] = answers.masked_fill(~learned | unlearned, -100)
        if skipped:
            batch["skipped"] = [
                {"image_id": rows[place].get("image_id"), "problem": problem} for place, problem in skipped.items()
            ]
        return batch

    def _padded(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids, padded on the right, and which of them are not padding (bool): two of (b, longest)."""
        width, pad = max(map(len, ids)), self.processor.tokenizer.pad_token_id
        lengths = torch.tensor([len(row) for row in ids])[:, None]
        return torch.tensor([row + [pad] * (width - len(row)) for row in ids]), torch.arange(width) < lengths

    def _skip(self, rows: list[dict], seen: list, skipped: dict[int, str]) -> None:
        """Put a blank picture and no words in the place of these rows. Raises ValueError if `strict`."""
        for place, problem in skipped.items():
            image_id = rows[place].get("image_id")
            if self.strict:
                raise ValueError(f"row {image_id}: {problem}")
            rows[place] = {
                "image_id": image_id,
                "images": [None],
                "prompt": [{"role": "user", "content": ""}],
                "completion": [{"role": "assistant", "content": ""}],
            }
            seen[place] = [BLANK if self.features is None else self.features.blank]


def _stacked(values: Any) -> Any:
    return (
        torch.stack(list(values))
        if isinstance(values, (list, tuple)) and isinstance(values[0], torch.Tensor)
        else values
    )
