"""
SPIN VLM processor: pictures and a question in one conversation, `USER: <image>\\n{question}\\nASSISTANT:`.

The one <image> of a picture becomes as many placeholders as the vision tower gives tokens (`image_seq_length`).
"""

from transformers import AutoImageProcessor, ProcessorMixin, ViTImageProcessor


TEMPLATE = (
    "{%- for message in messages -%}{{ message['role'].upper() + ':' }}"
    "{%- if message['content'] is string -%}{{ ' ' + message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{{ ' <image>' if part['type'] == 'image' else ('\\n' if not loop.first else ' ') + part['text'] }}"
    "{%- endfor -%}{%- endif -%}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)


class SpinVLMProcessor(ProcessorMixin):
    """
    image_processor and tokenizer are any of transformers'. Raises ValueError if the tokenizer does not know `image_token`, and
    for videos or sounds.
    """

    def __init__(
        self, image_processor=None, tokenizer=None, image_seq_length=197, image_token="<image>", chat_template=TEMPLATE
    ):
        self.image_seq_length = image_seq_length
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if self.image_token_id is None or self.image_token_id == tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no token {image_token!r}; add it as a special token")
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_vision(
        cls, vision_model: str, tokenizer, image_seq_length: int, vision_revision: str | None = None
    ) -> "SpinVLMProcessor":
        """With the preprocessing of a vision tower: a Hub id, timm's among them, or a folder."""
        images = AutoImageProcessor.from_pretrained(vision_model, revision=vision_revision)
        if hasattr(
            images, "data_config"
        ):  # timm's transforms cannot be saved: the same settings in transformers' terms
            images = _from_timm(images.data_config)
        return cls(images, tokenizer, image_seq_length)

    def __call__(self, images=None, text=None, videos=None, audio=None, audios=None, **kwargs):
        # generic evaluators pass every modality, empty where there is none
        if videos or audio or audios:
            raise ValueError("the SPIN VLM sees pictures and reads text; it takes no videos and no audio")
        if isinstance(images, (list, tuple)) and all(isinstance(row, (list, tuple)) and not row for row in images):
            images = None
        return super().__call__(images=images, text=text, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self.image_seq_length

    def count_image_tokens(self, rows: int, columns: int) -> int:
        """How many placeholders features of (rows, columns) get."""
        return rows * columns


def _from_timm(config: dict) -> ViTImageProcessor:
    """timm's mean, spread and filter; the whole picture is shown instead of its middle, which may cut off what is named."""
    height, width = config["input_size"][-2:]
    return ViTImageProcessor(
        size={"height": height, "width": width},
        resample={"nearest": 0, "bilinear": 2, "bicubic": 3}.get(config["interpolation"], 3),
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
    )


SpinVLMProcessor.register_for_auto_class()

__all__ = ["SpinVLMProcessor"]
