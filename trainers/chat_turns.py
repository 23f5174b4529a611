"""
Chat templates that say less than a language model was taught: LLaVA-1.5's writes neither the start of a text nor the end of a turn.

    USER: <image>\\nDescribe the picture. ASSISTANT: A dog.         as its template has it
    <s>USER: <image>\\nDescribe the picture. ASSISTANT: A dog.</s>  as it was trained, and as it stops

Unusual: the template is amended, not the code that uses it, so that it travels with the processor: whoever takes the saved folder
(transformers, TRL, vLLM) writes the same. Who adds the start too, as tokenizers do when they are called, has to leave one off;
transformers' apply_chat_template sees to it.
"""

from typing import Any

from trainers.captioning_data import completion_text, prompt_text


ENDED = (  # each answer's last text is followed by the end; content is parts, or a text
    "{%- set said = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- if message['role'] != 'assistant' -%}{%- set said.messages = said.messages + [message] -%}"
    "{%- elif message['content'] is string -%}"
    "{%- set said.messages = said.messages + [dict(message, content=message['content'] + eos_token)] -%}"
    "{%- else -%}{%- set part = dict(message['content'][-1], text=message['content'][-1]['text'] + eos_token) -%}"
    "{%- set said.messages = said.messages + [dict(message, content=message['content'][:-1] + [part])] -%}"
    "{%- endif -%}{%- endfor -%}{%- set messages = said.messages -%}"
)


def complete_turns(processor: Any) -> None:
    """
    Amend the processor's chat template where what it writes lacks the token that its tokenizer begins texts with, or where an
    answer ends in none of the tokenizer's special tokens. Others stay as they are.
    """
    tokenizer = processor.tokenizer
    row = {"images": [None], "prompt": [{"role": "user", "content": "a"}]}
    row["completion"] = [{"role": "assistant", "content": "b"}]
    starts, begins = tokenizer.bos_token, tokenizer("a")["input_ids"][:1]
    if starts and begins == [tokenizer.bos_token_id] and not prompt_text(processor, row).startswith(starts):
        processor.chat_template = "{{- bos_token -}}" + processor.chat_template
    said = completion_text(processor, row).rstrip()
    if tokenizer.eos_token and not said.endswith(tuple(tokenizer.all_special_tokens)):
        whole = ENDED + processor.chat_template
        written = "{%- set written -%}" + whole + "{%- endset -%}{{- written | replace(eos_token + ' ', eos_token) -}}"
        processor.chat_template = written
