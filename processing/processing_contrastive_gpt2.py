"""
Contrastive GPT-2 processor: prompts behind a picture's placeholders, and captions to be read alone.

    processor(images=…, text="USER: <image>Describe the picture.\\nASSISTANT: ")  one <image> -> prefix_length placeholders
    processor.encode_text(["a red square."])                                      the words and their end token, padded

Travels to the Hub with: chat_template.py.
"""

from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData

from .chat_template import take_pictures


class ContrastiveGPT2Processor(ProcessorMixin):
    """
    image_processor and tokenizer are any of transformers'; `prefix_length` and `max_text_length` (tokens of a caption that is read
    alone, its end included; the rest is cut) are the model's. Raises ValueError if the tokenizer does not know `image_token`, and
    for videos or sounds.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        prefix_length=10,
        max_text_length=77,
        image_token="<image>",
        chat_template=None,
    ):
        self.prefix_length = prefix_length
        self.max_text_length = max_text_length
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if self.image_token_id is None or self.image_token_id == tokenizer.unk_token_id:
            raise ValueError(
                f"the tokenizer has no token {image_token!r}; ContrastiveGPT2Processor.from_towers adds one"
            )
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_towers(
        cls,
        vision_model: str,
        text_model: str,
        prefix_length: int = 10,
        vision_revision: str | None = None,
        text_revision: str | None = None,
    ) -> "ContrastiveGPT2Processor":
        """
        Join the towers' image processor and tokenizer (Hub ids or folders). A placeholder that is new to the tokenizer needs
        room in the model's embeddings.
        """
        image_processor = AutoImageProcessor.from_pretrained(vision_model, revision=vision_revision)
        tokenizer = AutoTokenizer.from_pretrained(text_model, revision=text_revision)
        image_token, template = take_pictures(tokenizer)
        return cls(image_processor, tokenizer, prefix_length, image_token=image_token, chat_template=template)

    def __call__(self, images=None, text=None, videos=None, audio=None, audios=None, **kwargs):
        # generic evaluators pass every modality, empty where there is none
        if videos or audio or audios:
            raise ValueError("Contrastive GPT-2 sees pictures and reads text; it takes no videos and no audio")
        if isinstance(images, (list, tuple)) and all(isinstance(row, (list, tuple)) and not row for row in images):
            images = None
        return super().__call__(images=images, text=text, **kwargs)

    def encode_text(self, texts: list[str]) -> BatchFeature:
        """Captions to be read alone: input_ids and attention_mask (n, longest) int64, padded on the right, an end token last."""
        read = self.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=self.max_text_length - 1)[
            "input_ids"
        ]
        ended = [{"input_ids": [*ids, self.tokenizer.eos_token_id]} for ids in read]
        return BatchFeature(self.tokenizer.pad(ended, padding_side="right", return_tensors="pt"))

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self.prefix_length

    def count_image_tokens(self, rows: int, columns: int) -> int:
        """How many placeholders a picture's features get, however many they are."""
        return self.prefix_length

    def _get_num_multimodal_tokens(self, image_sizes: list | None = None, **kwargs) -> MultiModalData:
        """How many placeholders pictures of these (height, width) get; what vLLM asks before it runs anything."""
        if image_sizes is None:
            return MultiModalData()
        counts = [self.prefix_length] * len(image_sizes)
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(image_sizes))


ContrastiveGPT2Processor.register_for_auto_class()

__all__ = ["ContrastiveGPT2Processor"]
