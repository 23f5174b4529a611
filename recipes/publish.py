"""
Publish a run's folder on the Hub, and believe it only after a stranger has loaded it.

    python recipes/publish.py --model outputs/ossight/scenes --repo_id ORG/NAME

Unusual: one commit holds weights, code, processor and card, so no revision is half a model (`upload_folder` may make
several), and removes what an earlier one left there. The last step is the stranger's: an interpreter that cannot import
this repository loads that very commit into an empty cache and has to arrive at the logits of the local folder.
"""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from safetensors.torch import load_file
from transformers import HfArgumentParser
from transformers.dynamic_module_utils import get_relative_imports

from trainers.model_card import write_card


ROOT = Path(__file__).parents[1]
OURS = sorted({path.parent.name for path in ROOT.glob("*/*.py")})  # what a stranger cannot import
TRAVELS = (  # top level only: checkpoint-*/ and caches stay at home
    *("model*.safetensors", "model.safetensors.index.json", "*config.json", "*.py"),
    *("tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("chat_template.jinja", "README.md", "recipe.yaml", "metrics.json", "contact_sheet.png"),
)
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
SNIPPET = """
from transformers import AutoModelForImageTextToText, AutoProcessor

repo_id, revision = "{repo_id}", "{revision}"
processor = AutoProcessor.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
"""


@dataclass
class Recipe:
    model: str = field(metadata={"help": "Folder to publish, as save_pretrained and the recipes leave it."})
    repo_id: str = field(metadata={"help": "ORG/NAME on the Hub; created if it does not exist."})
    private: bool = field(default=False, metadata={"help": "Only you and ORG may see it."})
    licence: str = field(default="apache-2.0", metadata={"help": "The Hub's name for the licence of what you add."})
    gate: bool = field(default=True, metadata={"help": "Load the commit back and compare logits."})


def main(recipe: Recipe) -> str:
    """
    Returns:
        The id of the commit.

    Raises:
        ValueError: the folder or the repository cannot be published as asked; nothing has been uploaded.
        RuntimeError: the gate is shut: the commit is on the Hub, but it does not give the logits of the folder.
    """
    folder, repo_id, api = Path(recipe.model), recipe.repo_id, HfApi()

    # 1. Does the folder stand alone? It is asked its question here, so that a broken one never leaves.
    if repo_id.count("/") != 1:
        raise ValueError(f"--repo_id {repo_id}: write ORG/NAME.")
    files = check_folder(folder)
    local = ask(str(folder)) if recipe.gate else None

    # 2. The card, from the files of the folder.
    files = sorted({*files, write_card(folder, repo_id, recipe.licence).name})

    # 3. One commit, made of what may travel and of the removal of what does so no longer.
    api.create_repo(repo_id, private=recipe.private, exist_ok=True)
    head = api.model_info(repo_id)
    if recipe.private and not head.private:  # `private` is ignored for a repository that exists
        raise ValueError(f"{repo_id} exists and is public: make it private in its settings, or leave out --private.")
    stale = [file.rfilename for file in head.siblings if travels(file.rfilename) and file.rfilename not in files]
    operations = [CommitOperationAdd(name, folder / name) for name in files]
    operations += [CommitOperationDelete(name) for name in stale]
    title = f"Publish {folder.resolve().name}"
    revision = api.create_commit(repo_id, operations, commit_message=title, parent_commit=head.sha).oid
    stayed = sorted(path.name for path in folder.iterdir() if path.name not in files)
    print(f"Published: {', '.join(files)}\nStayed at home: {', '.join(stayed) or 'nothing'}")

    # 4. The gate: a stranger loads this commit and has to get the same logits.
    if recipe.gate:
        compare(local, ask_as_a_stranger(repo_id, revision), f"{repo_id}@{revision}")
        print("Gate: a fresh interpreter without this repository gets the logits of the local folder.")
    print(f"{api.endpoint}/{repo_id}/tree/{revision}\n{SNIPPET.format(repo_id=repo_id, revision=revision)}")
    return revision


def travels(name: str) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in TRAVELS)


def check_folder(folder: Path) -> list[str]:
    """
    The names of the files that may travel.

    Raises:
        ValueError: naming the file that is missing, or that must not be there.
    """
    for name in ("config.json", "processor_config.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}: give a folder that save_pretrained has written.")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in names:
        # Trainer leaves a training_args.bin wherever it saves a model: no weights, so it only stays at home.
        if name.endswith(PICKLES) and name != "training_args.bin":
            raise ValueError(f"{folder / name} can run code when it is opened: publish safetensors, not pickles.")
    names = [name for name in names if travels(name)]
    if not any(name.endswith(".safetensors") for name in names):
        raise ValueError(f"{folder} holds no model*.safetensors.")
    for name in names:
        if not name.endswith((".safetensors", ".png")) and re.search(rb"\bhf_\w{30,}", (folder / name).read_bytes()):
            raise ValueError(f"{folder / name} seems to hold a Hub token: take it out, and revoke it.")
    check_code(folder)
    return names


def check_code(folder: Path) -> None:
    """
    Follow the code from `auto_map` through its imports, as transformers does.

    Raises:
        ValueError: an Auto class has no code, a file is missing, or one leans on this repository.
    """
    mapped = {}
    for path in folder.glob("*.json"):
        json.loads(path.read_text(), object_hook=lambda part: mapped.update(part.get("auto_map", {})) or part)
    for auto_class in ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"):
        if auto_class not in mapped:
            raise ValueError(
                f"{folder}: no auto_map names {auto_class}; call register_for_auto_class, then save again."
            )

    pending, seen = [(f"{reference.rpartition('.')[0]}.py", "auto_map") for reference in mapped.values()], set()
    while pending:
        name, wanted_by = pending.pop()
        if not (folder / name).is_file():
            raise ValueError(f"{wanted_by} needs {name}, which {folder} does not hold: save model and processor again.")
        if name in seen:
            continue
        seen.add(name)
        pending += [(f"{sibling}.py", name) for sibling in get_relative_imports(folder / name)]
        for node in ast.walk(ast.parse((folder / name).read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                relative = getattr(node, "level", 0)
                if (relative and (relative > 1 or not module)) or (not relative and module.split(".")[0] in OURS):
                    raise ValueError(f"{folder / name}, line {node.lineno}: only `from .name import X` is found there.")


def ask(source: str, revision: str = "main") -> dict[str, torch.Tensor]:
    """
    What a model reads and answers when it is asked a fixed question about a fixed image.

    A stranger runs this very text, so it imports what it uses; only torch has to be there already.
    """
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(source, revision=revision, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(source, revision=revision, trust_remote_code=True)
    shades = [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.linear_gradient("L").rotate(90)]
    content = [{"type": "image", "image": Image.merge("RGB", shades)}, {"type": "text", "text": "What is this?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
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
    for key in ("input_ids", "logits"):
        try:
            torch.testing.assert_close(published[key], local[key])
        except AssertionError as difference:
            message = f"{name} is published, but its {key} are not those of the local folder: {difference}"
            raise RuntimeError(message) from None


if __name__ == "__main__":
    main(*HfArgumentParser(Recipe, allow_abbrev=False).parse_args_into_dataclasses())
