"""CLIPScore by hand, on embeddings that are given; and of tiny CLIP-like models, against the same thing computed plainly."""

import sys
from io import BytesIO
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from tests.conftest import SMALL, VISION, WORDS, make_tokenizer, picture
from tests.modeling.test_modeling_aligner import make_aligner, make_aligner_processor


CAPTIONS = ["red a b", "blue", "what colour is it green c d e f g", "a b c d e f"]  # the last fills a text tower
REFERENCES = [["red a", "a b"], ["green"], ["it is green"], ["b a c d", "a a", "a"]]
TEXT = {"vocab_size": len(WORDS.split()), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, **SMALL}
LENGTH = 10  # tokens, the last one of which ends the text


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(Path(__file__).parents[2] / "metrics" / "clip_score"), keep_in_memory=True)


@pytest.fixture
def code(metric):
    return sys.modules[type(metric).__module__]


def make_clip(name: str, folder: Path) -> Path:
    """A tiny CLIP or SigLIP on disk, with random weights large enough that texts and pictures lie apart."""
    tokenizer = make_tokenizer()
    # of one the tower says how much it reads, of the other the tokenizer
    tokenizer.model_max_length = {"clip": 10**30, "siglip": LENGTH}[name]
    ended = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.backend_tokenizer.post_processor = ended
    size = {"height": 16, "width": 16}
    vision = {key: value for key, value in VISION[name].items() if key != "vision_use_head"}
    text = TEXT | {"max_position_embeddings": {"clip": LENGTH, "siglip": LENGTH + 2}[name]}
    config = {"vision_config": vision, "text_config": text}
    torch.manual_seed({"clip": 0, "siglip": 5}[name])  # by which several cosines are above 0
    if name == "clip":
        model = CLIPModel(CLIPConfig(**config))
        processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size), tokenizer)
    else:
        model = SiglipModel(SiglipConfig(**config))
        processor = SiglipProcessor(SiglipImageProcessor(size=size), tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make_clip(name, tmp_path_factory.mktemp(name)) for name in ("clip", "siglip")}


class Stub:
    """Embeddings that are written in the texts and pictures themselves; keeps what it was asked."""

    texts_seen: list[str] = []

    def __init__(self, name, revision, trust_remote_code):
        self.name = name

    def pictures(self, pictures, batch_size):
        return torch.tensor(pictures)

    def texts(self, texts, batch_size):
        Stub.texts_seen += texts
        return torch.tensor([[float(number) for number in text.split()[-2:]] for text in texts]), 1


def test_figures_are_what_is_computed_by_hand(metric, code, monkeypatch):
    monkeypatch.setattr(code, "ClipEmbedder", Stub)
    monkeypatch.setattr(Stub, "texts_seen", [])
    result = metric.compute(
        predictions=["0.6 0.8", "-1 0", "0 1", "1 0"],
        references=[["0.8 0.6", "0 1"], ["-1 0"], ["0 -1"], ["-0.6 0.8"]],
        images=[[1.0, 0.0]] * 4,
        clip_model="x",
    )
    # cosines with the picture: 0.6, -1, 0, 1
    assert result["clip_score_items"] == pytest.approx([1.5, 0, 0, 2.5])
    # the nearest references: 0.96 of 0.96 and 0.8; 1; below 0; below 0
    assert result["ref_clip_score_items"] == pytest.approx([2 * 1.5 * 0.96 / (1.5 + 0.96), 0, 0, 0])
    assert result["clip_score"] == pytest.approx(1.0) and result["ref_clip_score"] == pytest.approx(1.170732 / 4)
    for name in ("clip_score", "ref_clip_score"):
        low, high = result[f"{name}_ci95"]
        assert low < result[name] < high
    assert Stub.texts_seen[0] == "A photo depicts 0.6 0.8" and Stub.texts_seen[4] == "A photo depicts 0.8 0.6"
    told = {"model": "x", "revision": None, "prefix": "A photo depicts ", "truncated": 2}
    assert result["clip_score_protocol"] == told


def test_without_references_there_is_no_ref_clip_score(metric, code, monkeypatch):
    monkeypatch.setattr(code, "ClipEmbedder", Stub)
    for references in (None, [[], []]):
        result = metric.compute(
            predictions=["1 0", "1 0"], references=references, images=[[1.0, 0.0]] * 2, clip_model="x", prefix=""
        )
        assert result["clip_score"] == 2.5 and "ref_clip_score" not in result


def plainly(folder, name, prefix="A photo depicts "):
    """CLIPScores and RefCLIPScores, one text and picture at a time, by the towers themselves."""
    model = (CLIPModel if name == "clip" else SiglipModel).from_pretrained(folder).eval()
    vocabulary = {word: i for i, word in enumerate(WORDS.split())}

    def text(words):
        ids = [vocabulary.get(word, 2) for word in (prefix + words).split()][: LENGTH - 1] + [1]
        if name == "clip":  # the end's state, projected
            states = model.text_model(input_ids=torch.tensor([ids])).last_hidden_state
            return model.text_projection(states[0, len(ids) - 1])
        ids += [0] * (LENGTH - len(ids))  # padding, read like words
        return model.text_model.head(model.text_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])

    def seen(i):
        pixels = torch.tensor(np.asarray(picture(i))).permute(2, 0, 1)[None] / 255
        mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
        mean, std = (mean, std) if name == "clip" else ([0.5] * 3, [0.5] * 3)
        pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        pooled = model.vision_model(pixel_values=pixels).pooler_output[0]
        return model.visual_projection(pooled) if name == "clip" else pooled

    def cosine(a, b):
        return float(a @ b / (a.norm() * b.norm()))

    scores, with_references = [], []
    with torch.no_grad():
        for i, (caption, right) in enumerate(zip(CAPTIONS, REFERENCES, strict=True)):
            scores.append(2.5 * max(cosine(text(caption), seen(i)), 0))
            nearest = max(0, *(cosine(text(caption), text(one)) for one in right))
            whole = scores[-1] + nearest
            with_references.append(2 * scores[-1] * nearest / whole if whole else 0)
    return scores, with_references


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_it_agrees_with_the_same_computed_plainly_whatever_the_batch_size(metric, folders, name):
    told = {"predictions": CAPTIONS, "references": REFERENCES, "images": [picture(i) for i in range(4)]}
    results = [metric.compute(**told, clip_model=folders[name], batch_size=size) for size in (1, 3)]
    scores, with_references = plainly(folders[name], name)
    assert sum(score > 0.05 for score in scores) > 1
    for result in results:
        assert result["clip_score_items"] == pytest.approx(scores, abs=1e-5)
        assert result["ref_clip_score_items"] == pytest.approx(with_references, abs=1e-5)
        assert result["clip_score"] == pytest.approx(np.mean(scores), abs=1e-5)
        assert result["clip_score_protocol"]["truncated"] == 1  # three words before ten, and the end


def test_pictures_may_be_files_and_bytes_and_are_taken_when_their_turn_comes(metric, folders, tmp_path):
    picture(0).save(tmp_path / "0.png")
    content = BytesIO()
    picture(1).convert("RGBA").save(content, "PNG")
    waiting = [tmp_path / "0.png", content.getvalue(), picture(2), picture(3)]

    class Lazy:
        taken: list[int] = []

        def __len__(self):
            return 4

        def __getitem__(self, i):
            self.taken.append(i)
            return waiting[i]

    told = {"predictions": CAPTIONS, "clip_model": folders["clip"]}
    whole = metric.compute(**told, images=[picture(i) for i in range(4)])
    taken = metric.compute(**told, images=Lazy(), batch_size=3)
    assert taken["clip_score_items"] == pytest.approx(whole["clip_score_items"], abs=1e-6)
    assert Lazy.taken == [0, 1, 2, 3]


def test_this_projects_own_aligner_may_be_named(metric, tmp_path):
    model, processor = make_aligner(), make_aligner_processor(sounds=False)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    images = [picture(i) for i in range(4)]
    result = metric.compute(predictions=CAPTIONS, images=images, clip_model=tmp_path, batch_size=3)
    with torch.no_grad():
        seen = model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
        texts = [f"A photo depicts {caption}" for caption in CAPTIONS]
        read = torch.cat(
            [model.get_text_features(**processor(text=text, return_tensors="pt")).pooler_output for text in texts]
        )
    cosines = torch.nn.functional.cosine_similarity(seen, read)
    assert result["clip_score_items"] == pytest.approx((2.5 * cosines.clamp(min=0)).tolist(), abs=1e-5)


def test_added_in_batches_it_is_the_same(metric, folders):
    told = {"images": [picture(i) for i in range(4)], "clip_model": folders["clip"]}
    whole = metric.compute(predictions=CAPTIONS, references=REFERENCES, **told)
    for some in (slice(0, 2), slice(2, 4)):
        metric.add_batch(predictions=CAPTIONS[some], references=REFERENCES[some])
    assert metric.compute(**told) == whole


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"clip_model": None}, "there is no default: pass clip_model"),
        ({"predictions": []}, "no predictions"),
        ({"images": None}, "pass images"),
        ({"images": [None]}, "4 predictions, but images of 1 pictures"),
        ({"references": [["a"]]}, "4 predictions, but references of 1 pictures"),
        ({"predictions": ["a", None, "a", "a"]}, "record 1: the prediction is None"),
        ({"references": [["a"], "a", ["a"], ["a"]]}, "record 1: the references are 'a', not a list"),
        ({"references": [["a"], ["a"], [], ["a"]]}, "record 2 has no references, and others have"),
    ],
)
def test_what_cannot_be_scored_is_named_before_any_model_is_loaded(metric, change, problem):
    told = {"predictions": CAPTIONS, "references": REFERENCES, "images": [None] * 4, "clip_model": "no/such-model"}
    with pytest.raises(ValueError, match=problem):
        metric.compute(**told | change)


def test_a_model_that_does_not_embed_texts_is_refused_by_name(metric, tiny_folder):
    with pytest.raises(ValueError, match="is a OSSight.* without get_text_features; name a CLIP-like model"):
        metric.compute(predictions=["a"], images=[picture()], clip_model=tiny_folder)


def test_embeddings_that_are_no_numbers_are_an_error(metric, code, monkeypatch):
    monkeypatch.setattr(code, "ClipEmbedder", Stub)
    with pytest.raises(ValueError, match="record 1: x embeds its picture as what is no finite number"):
        metric.compute(predictions=["1 0"] * 2, images=[[1.0, 0.0], [np.nan, 0.0]], clip_model="x")
