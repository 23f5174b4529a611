"""
OSSight processor: writes as many image placeholders as the vision tower yields patches.

    "<image> Describe the picture." + one 60x60 picture, patch 10 -> 36 placeholders; the model overwrites each with a patch

Travels to the Hub with: chat_template.py.
"""

from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin
from transformers.image_utils import get_image_size
from transformers.processing_utils import MultiModalData

from .chat_template import take_pictures


class OSSightProcessor(ProcessorMixin):
    """
    image_processor and tokenizer are any of transformers'; `patch_size` is the vision tower's, in pixels, and
    `pixel_shuffle` and `tokens_per_block` the model's. Raises ValueError if the
    tokenizer does not know `image_token`, and for videos or sounds.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size=16,
        pixel_shuffle=1,
        tokens_per_block=1,
        image_token="<image>",
        chat_template=None,
    ):
        self.patch_size = patch_size
        self.pixel_shuffle = pixel_shuffle
        self.tokens_per_block = tokens_per_block
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if self.image_token_id is None or self.image_token_id == tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no token {image_token!r}; OSSightProcessor.from_towers adds one")
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_towers(
        cls,
        vision_model: str,
        text_model: str,
        patch_size: int,
        pixel_shuffle: int = 1,
        tokens_per_block: int = 1,
        vision_revision: str | None = None,
        text_revision: str | None = None,
    ) -> "OSSightProcessor":
        """
        Join the towers' image processor and tokenizer (Hub ids or folders). A placeholder that is new to the tokenizer needs
        room in the model's embeddings.
        """
        image_processor = AutoImageProcessor.from_pretrained(vision_model, revision=vision_revision)
        tokenizer = AutoTokenizer.from_pretrained(text_model, revision=text_revision)
        image_token, template = take_pictures(tokenizer)
        return cls(
            image_processor, tokenizer, patch_size, pixel_shuffle, tokens_per_block, image_token, chat_template=template
        )

    def __call__(self, images=None, text=None, videos=None, audio=None, audios=None, **kwargs):
        # generic evaluators pass every modality, empty where there is none
        if videos or audio or audios:
            raise ValueError("OSSight sees pictures and reads text; it takes no videos and no audio")
        if isinstance(images, (list, tuple)) and all(isinstance(row, (list, tuple)) and not row for row in images):
            images = None
        return super().__call__(images=images, text=text, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        if "spatial_shapes" in image_inputs:  # patches of a picture that kept its aspect ratio (SigLIP 2 NaFlex)
            rows, columns = image_inputs["spatial_shapes"][image_idx]
            return self.image_token * int(rows * columns * self.tokens_per_block)
        height, width = get_image_size(image_inputs["pixel_values"][image_idx])
        return self.image_token * self._tokens(height, width)

    def count_image_tokens(self, rows: int, columns: int) -> int:
        """How many placeholders a picture of so many patches gets."""
        return (rows // self.pixel_shuffle) * (columns // self.pixel_shuffle) * self.tokens_per_block

    def _tokens(self, height: int, width: int) -> int:
        return self.count_image_tokens(height // self.patch_size, width // self.patch_size)

    def _get_num_multimodal_tokens(self, image_sizes: list | None = None, **kwargs) -> MultiModalData:
        """How many placeholders pictures of these (height, width) get; what vLLM asks before it runs anything."""
        if image_sizes is None:
            return MultiModalData()
        size = getattr(self.image_processor, "crop_size", None) or self.image_processor.size
        tokens = self._tokens(size["height"], size["width"])
        return MultiModalData(num_image_tokens=[tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes))


OSSightProcessor.register_for_auto_class()

__all__ = ["OSSightProcessor"]
