"""
Download the pictures of a data set that is published as links: those its splits ask for, not all there are.

    python recipes/download_pictures.py --dataset pixmo --data_dir DIR                             20,000 pictures of PixMo-Cap
    python recipes/download_pictures.py --dataset pixmo --data_dir DIR --config_name questions     … of PixMo-AskModelAnything
    python recipes/download_pictures.py --dataset conceptual_captions --data_dir DIR               12,000 of Conceptual Captions
    python recipes/download_pictures.py --dataset pixmo --data_dir DIR --dataset_options '{"num_train": 1000}' --workers 64

Links and texts come first, from the Hub (PixMo-Cap: 1.1 GB, Conceptual Captions: 0.4 GB; pin them with --revision COMMIT), unless
they lie in DIR already; from another place there with --repo_id (allenai/pixmo-cap-qa has questions too: give it a DIR of its own).
Of Conceptual Captions more links are asked for than pictures are wanted, for many are dead. It may be killed at any moment; the
same command goes on from there. Dead links are counted, and asked again only with --retry_dead true. Whoever serves the pictures
sees --user_agent: put an address into it, so that they can write to you. All fields of link_download.Limits are options.
"""

import sys
from dataclasses import dataclass
from typing import Any

from huggingface_hub import snapshot_download
from transformers import HfArgumentParser

from datasets_scripts.conceptual_captions import ConceptualCaptionsConfig
from datasets_scripts.link_download import Limits, Offline, download
from datasets_scripts.picture_links import Links
from datasets_scripts.pixmo import PixmoConfig
from trainers.run_folder import read_settings


# The config of a builder that says where its links and texts are on the Hub (HUB, PATTERN), whether they are here (metadata) and
# which links its splits ask for (links).
DATASETS: dict[str, Any] = {
    "pixmo": PixmoConfig,
    "conceptual_captions": ConceptualCaptionsConfig,
}


@dataclass
class Recipe:
    data_dir: str  # what load_rows calls data_dir
    dataset: str = "pixmo"  # one of DATASETS
    config_name: str | None = None  # None: the first of the builder's
    dataset_options: dict | str | None = None  # of the builder: num_train, split_seed, …
    repo_id: str | None = None  # where links and texts are on the Hub; None: the official place
    revision: str | None = None  # its commit
    retry_dead: bool = False


def main(recipe: Recipe, limits: Limits) -> None:
    # 1. Links and texts.
    if recipe.dataset not in DATASETS:
        raise ValueError(f"--dataset must be one of {', '.join(DATASETS)}; got {recipe.dataset!r}")
    options = read_settings("dataset_options", recipe.dataset_options)
    config = DATASETS[recipe.dataset](name=recipe.config_name or "default", data_dir=recipe.data_dir, **options)
    try:
        config.metadata()
        missing = False
    except FileNotFoundError:
        missing = True
    if missing or recipe.revision:
        snapshot_download(
            recipe.repo_id or config.HUB[config.name], repo_type="dataset", revision=recipe.revision,
            allow_patterns=config.PATTERN, local_dir=config.data_dir,
        )  # fmt: skip

    # 2. The links that its splits ask for.
    splits = config.links()

    # 3. Their pictures.
    download({url: digest for links in splits.values() for url, digest in links.items()}, config.data_dir, limits,
             recipe.retry_dead)  # fmt: skip

    # 4. What is there now.
    links = Links(config.data_dir)
    for split, urls in splits.items():
        print(f"{split}: {links.completeness(urls)}")
    named = f"  dataset_options: {{config_name: {config.name}}}" if recipe.config_name else ""
    print(f"\nIn a recipe's YAML:  dataset: {recipe.dataset}  data_dir: {config.data_dir}{named}")


if __name__ == "__main__":
    try:
        main(*HfArgumentParser((Recipe, Limits)).parse_args_into_dataclasses())
    except KeyboardInterrupt:
        print("\nStopped; what has come is kept, and the same command goes on from there.", file=sys.stderr)
        sys.exit(130)
    except (Offline, RuntimeError, OSError) as problem:
        sys.exit(str(problem))
