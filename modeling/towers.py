"""
Towers: pretrained models joined into a larger one, and the checkpoints that name them instead of carrying them.

    load    id, revision -> the tower, and a TowerSource: id, commit, fingerprint of the weights as they came
    save    weights still have that fingerprint -> config.towers[part] = {id, commit, files: {name: sha256}}, tensors left out
    reload  config.towers[part] -> that commit fetched, every file's sha256 compared -> the same tensors

Unusual: whether a tower is unchanged is asked of its weights, not of flags: a merged LoRA leaves none. Weights come from
safetensors only.
"""

import copy
import json
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.hub import extract_commit_hash


ALIGNER = "aligner"  # AlignerConfig.model_type


@dataclass
class TowerSource:
    id: str  # on the Hub
    commit: str
    fingerprint: str  # of the weights in memory, just loaded
    files: dict[str, str] | None = None  # weight file -> sha256; read when a checkpoint first leaves the tower out


def find_commit(tower: str, revision: str | None) -> str | None:
    """The commit that a Hub id's revision is at; None for a local folder."""
    if Path(tower).is_dir():
        return None
    return extract_commit_hash(cached_file(tower, "config.json", revision=revision), None)


def _aligner(tower: str, revision: str | None) -> dict | None:
    """The config of an aligner, read without its code; None if the tower is something else."""
    told, _ = PreTrainedConfig.get_config_dict(tower, revision=revision)
    return told if told.get("model_type") == ALIGNER else None


def vision_config_of(tower: str, revision: str | None) -> PreTrainedConfig:
    """The vision part of any HF model's config, less SigLIP's pooling head, which has no say in patch tokens."""
    if aligned := _aligner(tower, revision):
        config = AutoConfig.for_model(**aligned["vision_config"])
    else:
        config = AutoConfig.from_pretrained(tower, revision=revision)
        config = getattr(config, "vision_config", config)
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False
    return config


def load_vision_tower(tower: str, revision: str | None, **kwargs) -> PreTrainedModel:
    """
    The vision tower of any HF vision or vision–language model, or of an aligner: its tower as aligned, less the projector,
    so that what it gives is patch tokens. Raises OSError and ValueError, naming tower and cause.
    """
    config = vision_config_of(tower, revision)
    if _aligner(tower, revision):
        kwargs["key_mapping"] = {r"^vision_tower\.": ""}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a text tower beside the vision tower is no surprise; what is missing is looked at below
    try:
        model, info = MODEL_MAPPING[type(config)].from_pretrained(
            tower, revision=revision, config=config, output_loading_info=True, use_safetensors=True, **kwargs
        )
    finally:
        logging.set_verbosity(verbosity)
    _must_be_whole(tower, info)
    return model


def load_text_tower(tower: str, revision: str | None, **kwargs) -> PreTrainedModel:
    """A language model with its head. Raises OSError and ValueError, naming tower and cause."""
    model, info = AutoModelForCausalLM.from_pretrained(
        tower, revision=revision, output_loading_info=True, use_safetensors=True, **kwargs
    )
    _must_be_whole(tower, info)
    return model


def encoder_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """
    The model that a config makes by itself. Auto classes do not know all parts of models (SiglipTextModel): those are looked for
    beside their config, by transformers' names. Raises ValueError where there is none.
    """
    if type(config) in MODEL_MAPPING:
        return MODEL_MAPPING[type(config)]
    module, name = type(config).__module__, type(config).__name__.replace("Config", "Model")
    found = None
    if module.startswith("transformers.models."):
        found = getattr(import_module(module.replace(".configuration_", ".modeling_")), name, None)
    if found is None:
        raise ValueError(f"no model is known that a {config.model_type!r} config makes by itself")
    return found


def load_encoder(part: str, tower: str, revision: str | None, pools: bool = True, **kwargs) -> PreTrainedModel:
    """
    The "vision", "text" or "audio" tower of any HF model that is one or has one, with what pools its tokens; of an
    encoder–decoder, the encoder. pools: what pools is used, and must have been trained. Raises OSError and ValueError, naming tower
    and cause.
    """
    config = AutoConfig.from_pretrained(tower, revision=revision)
    config = getattr(config, f"{part}_config", config)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the other towers beside it are no surprise; what is missing is looked at below
    try:
        model, info = encoder_class(config).from_pretrained(
            tower, revision=revision, config=config, output_loading_info=True, use_safetensors=True, **kwargs
        )
    finally:
        logging.set_verbosity(verbosity)
    _must_be_whole(tower, info)
    if pools and any("pooler" in key for key in info["missing_keys"]):
        raise ValueError(
            f"{tower} was saved without what pools its tokens, which would be random; project their mean "
            f"({part}_features: mean) or all of them ({part}_features: tokens)"
        )
    return model.get_encoder() if getattr(config, "is_encoder_decoder", False) else model


def _must_be_whole(tower: str, info: dict) -> None:
    if missing := sorted(key for key in info["missing_keys"] if "pooler" not in key):
        raise ValueError(f"{tower} lacks weights that its config asks for: {', '.join(missing[:5])}")


def quantize_without(quantization_config: Any, modules: list[str]) -> Any:
    """
    The same quantisation without these modules, which are full paths: a bare "vision_tower" is matched from the start of a module's
    name, and skips nothing in a model that holds it further down. Raises ValueError for a method that has no list to skip by.
    """
    changed = copy.deepcopy(quantization_config)
    if isinstance(changed, dict):
        changed = BitsAndBytesConfig.from_dict(changed)
    name = next((n for n in ("llm_int8_skip_modules", "modules_to_not_convert") if hasattr(changed, n)), None)
    if name is None:
        raise ValueError(f"{type(changed).__name__} cannot be kept to the language model; use BitsAndBytesConfig")
    setattr(changed, name, sorted({*(getattr(changed, name) or []), *modules}))
    return changed


@torch.no_grad()
def fingerprint(*modules: nn.Module) -> str:
    """
    A hash of names, dtypes, shapes and every bit of the modules' weights (quantised ones included); the work is done where
    they lie, about a second for 1.5 billion parameters on a GPU.
    """
    told, sums = [], []
    for number, module in enumerate(modules):
        for name, weight in sorted(module.state_dict(keep_vars=True).items()):
            told.append(f"{number} {name} {weight.dtype} {tuple(weight.shape)}")
            sums.append(_checksum(weight).cpu())
    values = torch.stack(sums).tolist() if sums else []
    return sha256(json.dumps([told, values]).encode()).hexdigest()


def _checksum(weight: Tensor) -> Tensor:
    """Position-dependent sum of a tensor's bits, modulo 2**64."""
    bits = weight.detach().contiguous().flatten().view(torch.uint8)
    bits = nn.functional.pad(bits, (0, -len(bits) % 8)).view(torch.int64)
    # odd factors, so that no bit is lost modulo 2**64; the constant is the golden ratio's
    factors = (torch.arange(min(len(bits), 2**20), device=bits.device) * 2 + 1) * -7046029254386353131
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for chunk in bits.split(2**20):
        total = total * 6364136223846793005 + (chunk * factors[: len(chunk)]).sum()
    return total


def weight_files(tower: str, commit: str) -> dict[str, Path]:
    """The safetensors of a Hub id at a commit, in the cache."""
    whole = cached_file(tower, SAFE_WEIGHTS_NAME, revision=commit, _raise_exceptions_for_missing_entries=False)
    if whole is not None:
        return {SAFE_WEIGHTS_NAME: Path(whole)}
    index = cached_file(tower, SAFE_WEIGHTS_INDEX_NAME, revision=commit)
    shards = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    return {name: Path(cached_file(tower, name, revision=commit)) for name in shards}


def hashes(files: dict[str, Path]) -> dict[str, str]:
    found = {}
    for name, path in files.items():
        with path.open("rb") as file:
            found[name] = file_digest(file, "sha256").hexdigest()
    return found


def fetch(part: str, named: dict) -> None:
    """
    Bring a named tower's files into the cache. Raises OSError where the Hub does not give them, and ValueError where they
    are not the files that were trained with.
    """
    tower, commit = named["id"], named["commit"]
    try:
        found = hashes(weight_files(tower, commit))
    except OSError as error:
        raise OSError(
            f"this checkpoint leaves its {part} to the Hub, and {tower} at commit {commit} cannot be fetched: {error}"
        ) from error
    if found != named["files"]:
        different = sorted(name for name in found | named["files"] if found.get(name) != named["files"].get(name))
        raise ValueError(
            f"the {part} {tower} at commit {commit} is not what this checkpoint was trained with: {', '.join(different)} "
            "differ. Delete them from the Hugging Face cache and load again; if they still differ, do not trust them."
        )
