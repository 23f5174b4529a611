"""
Score a captioner, an aligner (--metrics retrieval), or what a captioner prefers (--metrics preference_accuracy). The same model
scored twice gives the same files. Without --output they go to outputs/evaluations/<model>-<dataset>-<split>.

    python recipes/evaluate.py --model DIR_OR_HUB_ID --dataset scenes --split test --output DIR
    python recipes/evaluate.py --model DIR_OR_HUB_ID --dataset pictures --data_dir FOLDER --split validation --output DIR
    python recipes/evaluate.py --model DIR_OR_HUB_ID --dataset scenes --split test --metrics chair pope --spin --output DIR
    python recipes/evaluate.py --model DIR_OR_HUB_ID --dataset scenes --split test --metrics retrieval --output DIR
    python recipes/evaluate.py --model DIR_OR_HUB_ID --dataset scenes --split test --metrics preference_accuracy --output DIR
    python recipes/evaluate.py --model DIR_OR_HUB_ID --dataset scenes --split test --baseline EARLIER_OUTPUT --output DIR
    python recipes/evaluate.py --model DIR_OR_HUB_ID --adapter DIR_OR_HUB_ID --dataset coco --split val --num-examples 5000

Writes metrics.json (each figure with its 95 % interval, and the protocol that decides them: data fingerprint, prompt, decoding,
metric versions, model revision), for captions predictions.jsonl and contact_sheet.png, for pope its questions and their answers as
pope.jsonl. Works for any HF vision–language model.

Unusual: what chair and pope hold to be there is what the rows' `regions` name (COCO's instances, a scene's objects). pope's
questions are made of it, so it can be had of any split, of scenes as of COCO. --baseline says how often these captions are better
than an earlier run's: of scenes by the truth, of other pictures by a judge that is named.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftConfig
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    HfArgumentParser,
    PreTrainedModel,
)
from transformers.utils import logging

import modeling  # noqa: F401  teaches the Auto classes our models: the working tree wins over code saved with a checkpoint
import processing  # noqa: F401
from datasets_scripts import load_rows
from modeling.attention_amplification import PAIConfig, enable_pai
from modeling.contrastive_decoding import VCDConfig, enable_vcd
from modeling.head_suppression import chosen_spin, enable_spin
from trainers.captioning_evaluation import evaluate_captions, report
from trainers.chat_turns import complete_turns
from trainers.exact_revision import exact_revision
from trainers.preference_evaluation import Baseline, evaluate_preferences
from trainers.retrieval_evaluation import evaluate_retrieval
from trainers.run_folder import read_settings


logger = logging.get_logger(__name__)

ALONE = {"retrieval": "alignment", "preference_accuracy": "preference"}  # what captions nothing -> the rows it takes


@dataclass
class Arguments:
    model: str  # folder or Hub id
    dataset: (
        str  # scenes, pictures or flickr8k (with --data_dir), coco (or $COCO_ROOT), or a Hub id with canonical columns
    )
    output: str | None = None  # folder to write; default: outputs/evaluations/<model>-<dataset>-<split>
    split: str = "test"
    revision: str | None = None  # of a Hub id: branch, tag or commit; recorded as a commit
    adapter: str | None = None  # folder or Hub id of a LoRA (peft) that the model is worn with; recorded by its weights
    data_dir: str | None = None
    dataset_options: str | None = None  # of the builder, as JSON: '{"train_from": "val2017"}'
    columns: str | None = None  # of a Hub id without canonical columns: '{"image": "jpg", "caption": "txt"}'
    num_examples: int | None = None  # the first so many rows
    metrics: list[str] | None = field(  # folders under metrics/; default: bleu, rouge_l, cider and, of scenes, scene_f1
        default=None, metadata={"nargs": "+"}
    )
    dims: list[int] | None = field(  # for retrieval: how many of an embedding's first numbers; default: the model's own
        default=None, metadata={"nargs": "+"}
    )
    synonyms: str | None = None  # for chair: the official synonyms.txt, in place of this project's own words
    judge_url: str | None = None  # for llm_judge and baseline: an OpenAI-compatible address, http://localhost:8000/v1
    judge_model: str | None = None  # … and a model that it serves; OPENAI_API_KEY is sent if it is set
    clip_model: str | None = None  # for clip_score: a CLIP or SigLIP, as openai/clip-vit-base-patch32, the paper's
    clip_revision: str | None = None  # … of a Hub id: branch, tag or commit; recorded as a commit
    baseline: str | None = None  # folder of an earlier run on the same rows: how often are these captions better
    reward_model: str | None = None  # for baseline: a model whose rewards say which are; default: of scenes, the truth
    batch_size: int = 50
    max_new_tokens: int = 64
    num_beams: int = 1
    strict: bool = (
        False  # stop at a picture that cannot be read, instead of leaving it out and naming it in metrics.json
    )
    blind_control: bool = False  # score once more with the pictures shuffled
    spin: list[str] | None = field(  # suppress heads that look away from the picture: keep_ratio=0.9 suppression=0.08 …
        default=None,
        metadata={"nargs": "*"},  # nothing after it: as is kept with the model
    )
    vcd: list[str] | None = field(
        default=None, metadata={"nargs": "*"}
    )  # subtract what a noised picture says: alpha=1.0 …
    pai: list[str] | None = field(
        default=None, metadata={"nargs": "*"}
    )  # amplify attention to the picture: alpha=0.2 gamma=1.1 …
    dtype: str = "float32"
    trust_remote_code: bool = False  # for models that are not ours; pin --revision then

    def __post_init__(self):
        if self.output is None:
            model = "+".join(Path(name).name for name in (self.model, self.adapter) if name)
            self.output = f"outputs/evaluations/{model}-{Path(self.dataset).name}-{self.split}"


def put_on(model: PreTrainedModel, adapter: str, base: str) -> dict[str, str]:
    """
    The adapter (peft; folder or Hub id) over `model`, which is `base`; what the protocol says of it. Warns where the adapter was
    trained over a model of another name. Raises ValueError where it does not fit, and for a model that holds one already.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{base} holds an adapter of its own; leave out --adapter {adapter}, or merge first (recipes/merge.py)"
        )
    if Path(adapter).is_dir() and not (Path(adapter) / "adapter_model.safetensors").is_file():
        raise ValueError(f"{adapter} holds no adapter_model.safetensors; a LoRA's folder does")
    revision = exact_revision(adapter, files="adapter_model.safetensors")
    pinned = {} if Path(adapter).is_dir() else {"revision": revision}
    named = PeftConfig.from_pretrained(adapter, **pinned).base_model_name_or_path
    if named not in (None, base, adapter) and not (
        Path(named).is_dir() and Path(named).resolve() == Path(adapter).resolve()
    ):
        logger.warning(f"{adapter} was trained over {named}, and is put on {base}: the figures are of neither alone")
    try:
        found = model.load_adapter(adapter, adapter_kwargs=pinned)
    except (ValueError, RuntimeError) as problem:
        raise ValueError(f"{adapter} does not fit {base}, it was trained over {named}: {problem}") from problem
    if lost := sorted({*found.missing_keys, *found.unexpected_keys, *map(str, found.mismatched_keys)}):
        raise ValueError(
            f"{adapter} does not fit {base}, it was trained over {named}: {len(lost)} weights, as {lost[0]}"
        )
    return {"id": adapter, "revision": revision, "base": named}


def main(args: Arguments) -> None:
    # 1. The model and its processor, pinned.
    exact = exact_revision(args.model, args.revision)
    alone = next((name for name in args.metrics or [] if name in ALONE), None)
    if alone and len(args.metrics) > 1:
        raise ValueError(f"{alone} scores no captions, as the others do: ask for it alone, not with {args.metrics}")
    captioning = {name: getattr(args, name) for name in ("blind_control", "baseline", "spin", "vcd", "pai")}
    if alone and (vain := [name for name, value in captioning.items() if value not in (None, False)]):
        raise ValueError(f"{', '.join(vain)}: {alone} captions nothing; leave it out")
    if args.reward_model and not args.baseline:
        raise ValueError("reward_model judges between captions and those of a baseline, and none is named")
    common = {"trust_remote_code": args.trust_remote_code}
    if not Path(args.model).is_dir():
        common["revision"] = exact
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = AutoModel if alone == "retrieval" else AutoModelForImageTextToText
    model = kind.from_pretrained(args.model, dtype=args.dtype, **common).eval().to(device)
    processor = AutoProcessor.from_pretrained(args.model, **common)
    protocol = {"dataset": args.dataset, "split": args.split, "model": args.model, "revision": exact}
    if args.adapter:
        protocol["adapter"] = put_on(model, args.adapter, args.model)
        model.to(device)
    if alone != "retrieval":
        complete_turns(processor)  # as recipes/caption.py trains them

    # 2. The rows to be judged by, one a picture.
    options = read_settings("dataset_options", args.dataset_options)
    columns = read_settings("columns", args.columns) or None
    one = ALONE.get(alone, "image")
    rows = load_rows(args.dataset, args.split, rows=one, data_dir=args.data_dir, columns=columns, **options)
    if args.num_examples is not None:
        rows = rows.select(range(min(args.num_examples, len(rows))))
    metrics = args.metrics or (["scene_f1"] if args.dataset == "scenes" else []) + ["bleu", "rouge_l", "cider"]

    # 3. Captions and answers, and what they are worth.
    if alone:
        given = (model, processor, rows, Path(args.output), protocol, args.batch_size)
        looks_up = alone == "retrieval"
        figures = evaluate_retrieval(*given, args.dims) if looks_up else evaluate_preferences(*given, args.strict)
        print(f"\n{report(figures)}\n\nscores and what they are of: {args.output}")
        return
    if args.spin is not None:
        how = chosen_spin(model, args.spin)
        enable_spin(model, how)
        protocol["spin"] = how.to_dict()
    for name, kind, enable in (("vcd", VCDConfig, enable_vcd), ("pai", PAIConfig, enable_pai)):
        if (words := getattr(args, name)) is not None:
            how = kind.from_words(words)
            enable(model, how)
            protocol[name] = how.to_dict()
    clip_revision = exact_revision(args.clip_model, args.clip_revision) if args.clip_model else None
    judge = {"judge_url": args.judge_url, "judge_model": args.judge_model}
    baseline = Baseline(args.baseline, args.reward_model, **judge) if args.baseline else None
    if args.reward_model:
        protocol["reward_model"] = {"model": args.reward_model, "revision": exact_revision(args.reward_model)}
    figures = evaluate_captions(
        model, processor, rows, metrics, Path(args.output), protocol,
        batch_size=args.batch_size, blind_control=args.blind_control, strict=args.strict, synonyms=args.synonyms,
        clip_model=args.clip_model, clip_revision=clip_revision, baseline=baseline, **judge,
        max_new_tokens=args.max_new_tokens, num_beams=args.num_beams,
    )  # fmt: skip

    # 4. Say so.
    print(f"\n{report(figures)}\n\nscores and what they are of: {args.output}")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
