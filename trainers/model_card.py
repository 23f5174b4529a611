"""
The card of a run's folder, written from the files in it and from nothing else.

    config.json  recipe.yaml  metrics.json  contact_sheet.png   ->   README.md   (by model_cards/template*.md)

Unusual: figures are copied, never rounded, and without metrics.json the card says "Not evaluated".
"""

import json
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .run_folder import write_text


ROOT = Path(__file__).parents[1]
WRITES, EMBEDS, RATES = "AutoModelForImageTextToText", "AutoModel", "AutoModelForSequenceClassification"
KINDS = {  # Auto class -> task, template, library, tag, the recipe that trains it
    WRITES: ("image-text-to-text", "template.md", "transformers", "vision-language", "caption"),
    EMBEDS: ("feature-extraction", "template_embeddings.md", "sentence-transformers", "matryoshka", "align"),
    RATES: ("text-classification", "template_reward.md", "transformers", "reward-model", "reward"),
}
TOLD = (  # settings worth reading on the card; recipe.yaml holds the others
    "model",
    "vision_model",
    "text_model",
    "model_config",
    "dataset",
    "dataset_options",
    "learning_rate",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "seed",
)


def write_card(folder: Path, repo_id: str | None = None, licence: str = "apache-2.0") -> Path:
    """
    Write `README.md` into `folder`, replacing the one that may be there, and return its path.

    `recipe.yaml` may open with the command that reads it, as a comment (`# accelerate launch recipes/…`).
    Without `repo_id` the card shows how to load the folder itself.

    Raises:
        FileNotFoundError: the folder has no `config.json`.
        ValueError: a figure in `metrics.json` lacks its value, `ci95` or `n`, or the figures lack their protocol.
    """
    config = json.loads((folder / "config.json").read_text())
    kind = auto_class_of(folder)
    task, template, library, tag, trained_by = KINDS[kind]
    recipe_text = (folder / "recipe.yaml").read_text() if (folder / "recipe.yaml").exists() else ""
    recipe = yaml.safe_load(recipe_text) or {}
    results, protocol = read_metrics(folder / "metrics.json")

    inside = config.get("vlm_config", config)  # a reward model stands on a whole vision–language model
    towers = [
        {
            "role": role,
            "name": recipe.get(key) or tower.get("_name_or_path"),
            "model_type": tower["model_type"],
        }
        for role, key, tower in (
            ("vision tower", "vision_model", inside.get("vision_config")),
            ("text tower" if kind == EMBEDS else "language model", "text_model", inside.get("text_config")),
            ("audio tower", "audio_model", inside.get("audio_config")),
        )
        if tower
    ]
    data = [str(name) for name in (recipe.get("dataset"), protocol.get("dataset")) if name]
    first_line = recipe_text.split("\n", 1)[0]
    names = [tower["name"] for tower in towers]
    title = (repo_id or folder.resolve().name).split("/")[-1]
    card_data = ModelCardData(
        license=licence,
        library_name=library,
        pipeline_tag=task,
        tags=["sightline", "custom_code", tag],
        base_model=[name for name in (recipe.get("model"), *names) if is_hub_id(name)] or None,
        datasets=[name for name in data[:1] if is_hub_id(name)] or None,
        model_name=title if results else None,
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=protocol["dataset"],
                dataset_name=protocol["dataset"],
                dataset_split=protocol["split"],
                metric_type=row["name"],
                metric_name=row["name"],
                metric_value=row["value"],
                metric_args={"ci95": row["ci95"], "n": row["n"]},
            )
            for row in results
        ]
        or None,
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(ROOT / "model_cards" / template),
        title=title,
        architecture=config["architectures"][0],
        towers=towers,
        contact_sheet=(folder / "contact_sheet.png").exists(),
        source=json.dumps(repo_id or str(folder)),
        prompt=json.dumps(recipe.get("dataset_options", {}).get("prompt", "Describe the picture.")),
        settings=as_yaml({key: recipe[key] for key in TOLD if recipe.get(key) is not None}),
        results=results,
        protocol=as_yaml(protocol),
        miniature=any(name.split("/")[-1].startswith("scenes") for name in data),
        repo_id=repo_id,
        command=first_line[1:].strip()
        if first_line.startswith("# accelerate launch")
        else f"accelerate launch recipes/{trained_by}.py --config recipe.yaml",
        model_type=config["model_type"],
        dims=config.get("matryoshka_dimensions"),
        sound=config.get("audio_config") is not None,
        licence=licence,
    )
    write_text(folder / "README.md", f"{card}\n")
    return folder / "README.md"


def auto_class_of(folder: Path) -> str:
    """The Auto class that loads this folder: of models that write, of those that embed, or of reward models."""
    mapped = json.loads((folder / "config.json").read_text()).get("auto_map", {})
    if RATES in mapped:
        return RATES
    writes = mapped.get(EMBEDS, WRITES).endswith(("ForConditionalGeneration", WRITES))  # a generator stands under both
    return WRITES if writes else EMBEDS


def read_metrics(path: Path) -> tuple[list[dict], dict]:
    """
    The figures of a `metrics.json` as rows (name, value, ci95, n), and their protocol; both empty without the file.

    Raises:
        ValueError: naming what is missing.
    """
    if not path.exists():
        return [], {}
    figures = json.loads(path.read_text())
    protocol = figures.pop("protocol", {})
    for key in ("dataset", "split"):
        if key not in protocol:
            raise ValueError(f"{path}: `protocol` names no {key}; a figure is published with the way it was measured.")
    for name, figure in figures.items():
        if missing := {"value", "ci95", "n"} - set(figure):
            raise ValueError(f"{path}: `{name}` lacks {', '.join(sorted(missing))}.")
    return [{"name": name, **figure} for name, figure in figures.items()], protocol


def is_hub_id(name: str | None) -> bool:
    """Whether the Hub can link to this: `org/name`, and no folder of this repository such as `model_cards/<tower>`."""
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return False
    return "/" in name and not (ROOT / name).exists()


def as_yaml(mapping: dict) -> str:
    return yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True, width=1000).strip() if mapping else ""
