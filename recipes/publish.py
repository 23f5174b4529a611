"""
Publish a run's folder on the Hub, and believe it only after a stranger has loaded it.

    python recipes/publish.py --model outputs/ossight/scenes --repo_id ORG/NAME

Unusual: one commit holds weights, code, processor and card, so no revision is half a model (`upload_folder` may make
several), and removes what an earlier one left there. The last step is the stranger's: an interpreter that cannot import
this repository loads that very commit into an empty cache and has to arrive at the logits (or embeddings) of the local folder.
"""

import ast
import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from transformers import HfArgumentParser
from transformers.dynamic_module_utils import get_relative_imports

from trainers.model_card import auto_class_of, write_card
from trainers.stranger import OURS, ask, ask_as_a_stranger, compare


TRAVELS = (  # top level only: checkpoint-*/ and caches stay at home
    *("model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "*config.json", "*.py"),
    *("tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("chat_template.jinja", "README.md", "recipe.yaml", "metrics.json", "contact_sheet.png"),
)
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
SNIPPET = """
from transformers import {auto_class}, AutoProcessor

repo_id, revision = "{repo_id}", "{revision}"
processor = AutoProcessor.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
model = {auto_class}.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
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
        RuntimeError: the gate is shut: the commit is on the Hub, but it does not give what the folder gives.
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
    operations = [CommitOperationAdd(name, content(folder / name, repo_id)) for name in files]
    operations += [CommitOperationDelete(name) for name in stale]
    title = f"Publish {folder.resolve().name}"
    revision = api.create_commit(repo_id, operations, commit_message=title, parent_commit=head.sha).oid
    stayed = sorted(path.name for path in folder.iterdir() if path.name not in files)
    print(f"Published: {', '.join(files)}\nStayed at home: {', '.join(stayed) or 'nothing'}")

    # 4. The gate: a stranger loads this commit and has to get the same logits.
    if recipe.gate:
        compare(local, ask_as_a_stranger(repo_id, revision), f"{repo_id}@{revision}")
        print("Gate: a fresh interpreter without this repository gets what the local folder gives.")
    snippet = SNIPPET.format(repo_id=repo_id, revision=revision, auto_class=auto_class_of(folder))
    print(f"{api.endpoint}/{repo_id}/tree/{revision}\n{snippet}")
    return revision


def content(path: Path, repo_id: str) -> Path | bytes:
    """What is uploaded of a file: itself, but an adapter stands on the base that lies beside it, wherever that is."""
    if path.name != "adapter_config.json":
        return path
    told = json.loads(path.read_text()) | {"base_model_name_or_path": repo_id, "revision": None}
    return json.dumps(told, indent=2).encode()


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
    for auto_class in ("AutoConfig", auto_class_of(folder), "AutoProcessor"):
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


if __name__ == "__main__":
    main(*HfArgumentParser(Recipe, allow_abbrev=False).parse_args_into_dataclasses())
