"""
Chat templates for pictures: the language model's own, behind a preamble that flattens multimodal content
([{"type": "image"}, {"type": "text", "text": ...}]) into the string such templates expect; so every instruction-tuned language
model is addressed as it was trained to be, and one that never was in a plain way.
"""

from transformers import PreTrainedTokenizerBase


FLATTEN = (
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}{%- set said = namespace(text='') -%}"
    "{%- if message['content'] is string -%}{%- set said.text = message['content'] -%}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- set said.text = said.text + ('IMAGE_TOKEN' if part['type'] == 'image' else part['text']) -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=said.text)] -%}{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
PLAIN = (  # for a language model that was never taught to chat
    "{%- for message in messages -%}{{ message['role'].upper() + ': ' }}"
    "{%- if message['role'] == 'assistant' -%}{{ message['content'] + eos_token }}"
    "{%- else -%}{{ message['content'] + '\\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT: ' }}{%- endif -%}"
)


def take_pictures(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """
    The tokenizer's placeholder for a picture and the chat template, which it gives up: a processor keeps the one there is.

    The placeholder is its own image token where it has one (Qwen's <|image_pad|>), otherwise a new "<image>", for which the
    model's embeddings must be resized. A tokenizer without padding pads with its end.
    """
    known = tokenizer.get_vocab()
    image_token = next((token for token in ("<image>", "<|image_pad|>") if token in known), None)
    if image_token is None:
        image_token = "<image>"
        tokenizer.add_special_tokens({"additional_special_tokens": [image_token]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    template = FLATTEN.replace("IMAGE_TOKEN", image_token) + (tokenizer.chat_template or PLAIN)
    tokenizer.chat_template = None
    return image_token, template


__all__ = ["FLATTEN", "PLAIN", "take_pictures"]
