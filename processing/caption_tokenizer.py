"""
Tokenizers for a decoder that is trained from nothing: learned from captions, or made of a word -> id vocabulary.

    train_tokenizer(texts, vocab_size)      byte-level BPE: any text can be written, frequent words are one token
    import_vocabulary("vocab.json")         {"<pad>": 0, "a": 5, "dog": 17, …}: word by word, ids as the file has them
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
IMAGE = "<image>"
_OTHER_NAMES = {  # what vocabularies of captioning tutorials call them
    "pad_token": ("<pad>", "<PAD>", "[PAD]", "pad", "<|pad|>"),
    "bos_token": ("<bos>", "<start>", "<BOS>", "<START>", "<sos>", "<SOS>", "<s>", "[CLS]", "<startseq>", "startseq"),
    "eos_token": ("<eos>", "<end>", "<EOS>", "<END>", "</s>", "[SEP]", "<endseq>", "endseq"),
    "unk_token": ("<unk>", "<UNK>", "[UNK]", "unk", "<oov>", "<OOV>"),
}


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Any tokenizer with the special tokens that a decoder and its pictures need; what it has already is left as it is."""
    for role, token in SPECIAL.items():
        if getattr(tokenizer, role) is None and role != "unk_token":
            tokenizer.add_special_tokens({role: token})
    if tokenizer.pad_token_id == tokenizer.eos_token_id:  # an end that is padding would never be learned
        tokenizer.add_special_tokens({"pad_token": SPECIAL["pad_token"]})
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    tokenizer.chat_template = None  # one template, the processor's
    return tokenizer


def _wrapped(core: Tokenizer, special: dict[str, str]) -> PreTrainedTokenizerFast:
    return prepare_tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **special)
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int = 8000) -> PreTrainedTokenizerFast:
    """Raises ValueError for a vocab_size that has no room for the 256 bytes and five special tokens."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [*SPECIAL.values(), IMAGE]
    if vocab_size < len(bytes_) + len(special):
        raise ValueError(f"vocab_size must be at least {len(bytes_) + len(special)}, got {vocab_size}")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=bytes_, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return _wrapped(core, SPECIAL)


def import_vocabulary(path: str | Path) -> PreTrainedTokenizerFast:
    """
    Words are lower case (unless the file has capitals) and parted at spaces and punctuation; ids stay those of the file.

    Raises ValueError for a file that is not such a vocabulary: not JSON, not words with different whole numbers, no unknown word.
    """
    try:
        vocabulary = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    vocabulary = vocabulary.get("word2idx", vocabulary) if isinstance(vocabulary, dict) else vocabulary
    if not isinstance(vocabulary, dict) or not all(type(i) is int and i >= 0 for i in vocabulary.values()):
        raise ValueError(f'{path} is not a vocabulary; expected {{"word": id, …}}')
    if len(set(vocabulary.values())) < len(vocabulary):
        raise ValueError(f"{path} gives one id to several words")
    special = {
        role: next((name for name in names if name in vocabulary), SPECIAL[role])
        for role, names in _OTHER_NAMES.items()
    }
    if special["unk_token"] not in vocabulary:
        raise ValueError(f"{path} has no word for what it does not know; add one, as {SPECIAL['unk_token']!r}")
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    words = [word for word in vocabulary if word not in special.values()]
    if all(word == word.lower() for word in words):
        core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return _wrapped(core, special)
