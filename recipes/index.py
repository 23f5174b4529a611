"""
Make a folder of pictures (or sounds) searchable by words, by a picture or by a sound.

    python recipes/index.py build --model DIR --images FOLDER --output INDEX --dim 512 --quantize int8
    python recipes/index.py search --index INDEX "two red squares left of a boat"
    python recipes/index.py search --index INDEX photo.jpg --count 20 --sheet found.png

build: embeds every picture under FOLDER that INDEX does not hold yet, and saves as it goes: a run that was stopped goes on. What
cannot be read is named and left out. search: prints what is nearest and draws it on a contact sheet. INDEX remembers its model: it
is refused by another.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor, HfArgumentParser

import modeling  # noqa: F401  teaches the Auto classes our models
import processing  # noqa: F401
from datasets_scripts.class_folders import PICTURES, SOUNDS
from datasets_scripts.open_picture import UnreadablePicture, open_picture
from modeling.towers import fingerprint
from processing.vector_index import VectorIndex
from trainers.contrastive_data import ContrastiveCollator, UnreadableSound
from trainers.pictures import contact_sheet
from trainers.run_folder import read_json, write_json


BATCH = 64
SAVED_EVERY = 50  # batches


@dataclass
class Build:
    model: str  # folder or Hub id of an aligner
    images: str  # folder of pictures or sounds, and of folders of them
    output: str
    dim: int | None = None  # how many of an embedding's first numbers are kept; None: all
    short_dim: int | None = None  # how many make the shortlist; None: an eighth of dim
    quantize: str = "none"  # none, int8, or binary: a shortlist of signs
    revision: str | None = None


@dataclass
class Search:
    index: str
    model: str | None = None  # None: the one it was built with
    count: int = 10
    shortlist: int = 10  # how many times `count` are ranked again by all numbers
    sheet: str | None = None  # where the contact sheet goes; None: into the index's folder


def load(model: str, revision: str | None) -> tuple:
    loaded = AutoModel.from_pretrained(model, revision=revision, dtype="float32").eval()
    if not hasattr(loaded, "get_text_features"):
        raise ValueError(f"{model} is a {loaded.config.model_type!r}: it embeds nothing; name an aligner")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return loaded.to(device), ContrastiveCollator(AutoProcessor.from_pretrained(model, revision=revision))


@torch.no_grad()
def embed(model, read: ContrastiveCollator, kind: str, values: list) -> torch.Tensor:
    """Opened pictures, sounds (waveform, rate) or texts -> (n, embed_dim) on the CPU."""
    inputs = {name: value.to(model.device) for name, value in read.encode(kind, values).items()}
    return getattr(model(**inputs), f"{kind}_embeds").float().cpu()


def opened(read: ContrastiveCollator, path: Path) -> tuple[str, object]:
    """("image", picture) or ("audio", sound). Raises UnreadablePicture and UnreadableSound."""
    kind = "audio" if path.suffix.lower() in SOUNDS else "image"
    return kind, read.open(kind, {"path": str(path), "bytes": None})


def build(args: Build) -> None:
    # 1. The model, and what the index holds already.
    model, read = load(args.model, args.revision)
    identity = fingerprint(model)
    output, dim = Path(args.output), args.dim or model.config.embed_dim
    if (output / "index.json").exists():
        index = VectorIndex.load(output, identity, mapped=False)
        if (index.dim, index.quantize) != (dim, args.quantize):
            raise ValueError(
                f"{output} keeps {index.dim} numbers, {index.quantize}; you ask for {dim}, {args.quantize}"
            )
    else:
        index = VectorIndex(identity, dim, args.quantize, args.short_dim or max(1, dim // 8))

    # 2. What it does not.
    known, root = set(index.names), Path(args.images)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    kinds = PICTURES + SOUNDS if "audio" in model.towers() else PICTURES
    paths = sorted(path.resolve() for path in root.rglob("*") if path.suffix.lower() in kinds and path.is_file())
    paths = [path for path in paths if str(path) not in known]

    # 3. Embed it, and save now and then.
    left_out = 0
    for number, start in enumerate(tqdm(range(0, len(paths), BATCH), desc="embedding", unit="batch")):
        here: dict[str, list] = {"image": [], "audio": []}
        names: dict[str, list[str]] = {"image": [], "audio": []}
        for path in paths[start : start + BATCH]:
            try:
                kind, value = opened(read, path)
            except (UnreadablePicture, UnreadableSound) as problem:
                left_out += 1
                print(f"left out: {problem}", file=sys.stderr)
                continue
            here[kind].append(value)
            names[kind].append(str(path))
        for kind, values in here.items():
            if values:
                index.add(embed(model, read, kind, values).numpy(), names[kind])
        if number % SAVED_EVERY == SAVED_EVERY - 1:
            index.save(output)

    # 4. Say so.
    if not len(index):
        raise ValueError(f"{root} holds nothing that can be read; looked for {', '.join(kinds)}")
    index.save(output)
    write_json(output / "built_with.json", {"model": str(Path(args.model).resolve()) if Path(args.model).is_dir() else args.model,
                                            "revision": args.revision})  # fmt: skip
    more = f", {left_out} left out" if left_out else ""
    print(f"{len(index)} items ({len(paths) - left_out} new{more}), {index.bytes_a_vector():.0f} bytes each: {output}")


def search(args: Search, query: str) -> None:
    """query: words, or a file with a picture or a sound."""
    told = (
        read_json(Path(args.index) / "built_with.json")
        if args.model is None
        else {"model": args.model, "revision": None}
    )
    model, read = load(told["model"], told["revision"])
    index = VectorIndex.load(args.index, fingerprint(model))
    path = Path(query)
    is_file = len(query) < 256 and path.suffix.lower() in PICTURES + SOUNDS and path.exists()
    kind, value = opened(read, path) if is_file else ("text", query)
    found = index.search(embed(model, read, kind, [value]).numpy(), args.count, args.shortlist)[0]
    for rank, (name, score) in enumerate(found, 1):
        print(f"{rank:3d}  {score:.3f}  {name}")
    pictures = [(Path(name), score) for name, score in found if Path(name).suffix.lower() in PICTURES]
    if pictures:
        sheet = Path(args.sheet or Path(args.index) / "found.png")
        shown = [open_picture(path) if path.exists() else Image.new("RGB", (64, 64)) for path, _ in pictures]
        contact_sheet(shown, [[(f"{score:.3f}", path.name)] for path, score in pictures], sheet, columns=5)
        print(f"\n{sheet}")


if __name__ == "__main__":
    what, words = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if what == "build":
        build(*HfArgumentParser(Build).parse_args_into_dataclasses(words))
    elif what == "search":
        parser = HfArgumentParser(Search)
        parser.add_argument("query")
        arguments, rest = parser.parse_args_into_dataclasses(words)
        search(arguments, rest.query)
    else:
        sys.exit(f"say what to do: build or search\n{__doc__}")
