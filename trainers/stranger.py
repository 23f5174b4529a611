"""
A stranger: a fresh interpreter that cannot import this repository, with an empty Hugging Face cache, loads a model by
`trust_remote_code` alone. What it answers has to be what we are answered here; the gate of publishing and of the demo.
"""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import get_token
from safetensors.torch import load_file


ROOT = Path(__file__).parents[1]
OURS = sorted({path.parent.name for path in ROOT.glob("*/*.py")})  # what a stranger cannot import


def ask(source: str, revision: str = "main") -> dict[str, torch.Tensor]:
    """
    What a model reads and answers when it is asked a fixed question about a fixed image; of a model that embeds, its embeddings;
    of a reward model, what it makes of a fixed answer.

    A stranger runs this very text, so it imports what it uses; only torch has to be there already.
    """
    from PIL import Image
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageTextToText,
        AutoModelForSequenceClassification,
        AutoProcessor,
    )

    processor = AutoProcessor.from_pretrained(source, revision=revision, trust_remote_code=True)
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=True)
    shades = [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.linear_gradient("L").rotate(90)]
    image, question = Image.merge("RGB", shades), "What is this?"
    mapped = getattr(config, "auto_map", {"AutoModelForImageTextToText": None})
    rates = "AutoModelForSequenceClassification" in mapped
    if not rates and "AutoModelForImageTextToText" not in mapped:
        model = AutoModel.from_pretrained(source, revision=revision, trust_remote_code=True)
        given = {"images": [image], "text": [question]}
        if getattr(config, "audio_config", None) is not None:
            given["audio"] = [torch.linspace(0, 900, 16_000).sin().numpy()]
        inputs = processor(**given, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            out = model(**inputs)
        return {"input_ids": inputs["input_ids"].cpu(), **{name: some.cpu().clone() for name, some in out.items()}}
    auto_class = AutoModelForSequenceClassification if rates else AutoModelForImageTextToText
    model = auto_class.from_pretrained(source, revision=revision, trust_remote_code=True)
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    answer = [{"role": "assistant", "content": [{"type": "text", "text": "A picture."}]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}, *(answer if rates else [])],
        add_generation_prompt=not rates,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, model.dtype)
    with torch.inference_mode():
        return {"input_ids": inputs["input_ids"].cpu(), "logits": model(**inputs).logits.cpu().clone()}


def ask_as_a_stranger(repo_id: str, revision: str) -> dict[str, torch.Tensor]:
    """`ask` in a fresh interpreter: an empty cache, nothing of this repository. Raises RuntimeError where it fails."""
    with TemporaryDirectory() as home:
        program = (
            f"import sys\nsys.modules.update(dict.fromkeys({OURS}))\n"  # None there: importing it raises
            f"import torch\nfrom safetensors.torch import save_file\n{inspect.getsource(ask)}\n"
            "save_file(ask(*sys.argv[1:3]), sys.argv[3])\n"
        )
        caches = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_MODULES_CACHE", "HF_XET_CACHE", "TRANSFORMERS_CACHE")
        environment = {key: value for key, value in os.environ.items() if key not in caches}
        environment |= {"HF_HOME": home, "HF_TOKEN": get_token() or ""}  # the token's file lies in the home we leave
        command = [sys.executable, "-c", program, repo_id, revision, f"{home}/answer.safetensors"]
        run = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"{repo_id}@{revision} does not load for a stranger:\n{run.stderr[-3000:]}")
        return load_file(f"{home}/answer.safetensors")


def compare(local: dict[str, torch.Tensor], published: dict[str, torch.Tensor], name: str) -> None:
    """Raises RuntimeError, naming the commit and the largest difference. The tolerance is torch's own for the dtype."""
    for key in local:
        try:
            torch.testing.assert_close(published[key], local[key])
        except AssertionError as difference:
            message = f"{name} is published, but its {key} are not those of the local folder: {difference}"
            raise RuntimeError(message) from None
