"""
What a run leaves behind, written so that a kill at any moment leaves the old file or the new one, never half of one.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml


def write_whole(path: str | Path, write: Callable[[Path], Any]) -> None:
    """`write` to a temporary name beside `path`, then rename. What cannot be written whole leaves nothing, not even that."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_settings(name: str, value: dict | str | None) -> dict:
    """A field that is a mapping in YAML and JSON on the command line. Raises ValueError, naming the field, for anything else."""
    try:
        value = json.loads(value) if isinstance(value, str) else value or {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: {value!r} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a mapping, is {value!r}")
    return value


def trained_with(args: Any) -> dict:
    """The training arguments that differ from their class's defaults: what a reader needs to train the same again."""
    # TRL's configurations default to bf16, which a CPU refuses
    here = {name: getattr(args, name) for name in ("use_cpu", "bf16", "fp16")}
    default = type(args)(output_dir=args.output_dir, **here).to_dict()
    machine = {"use_cpu", "bf16", "fp16", "logging_dir", "local_rank", "resume_from_checkpoint", "disable_tqdm"}
    changed = {k: v for k, v in args.to_dict().items() if v != default.get(k) and k not in machine}
    return changed | {"output_dir": args.output_dir}


def write_recipe(folder: Path, script: str, recipe: Any, args: Any) -> None:
    """recipe.yaml: what `script` was told, so that it can be told the same again. recipe: a dataclass; args: training arguments."""
    settings = {name: value for name, value in asdict(recipe).items() if value not in (None, {})}
    head = f"# accelerate launch recipes/{script} --config recipe.yaml\n"
    write_text(folder / "recipe.yaml", head + yaml.safe_dump({**settings, **trained_with(args)}, sort_keys=False))
