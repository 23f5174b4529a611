"""Detection, with tiny detectors of nothing but chance, and with logits that are written by hand."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
)

from grounding.detection import Detection, detect, span_weights, write_prompts
from tests.grounding.stand_ins import make_detector, word_tokenizer


@pytest.fixture(scope="module")
def dino():
    return make_detector()


def pictures(*sizes):
    drawn = []
    for seed, (width, height) in enumerate(sizes):
        noise = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))
        drawn.append(Image.fromarray((noise * 255).byte().numpy()))
    return drawn


def test_a_text_is_put_together_and_every_phrase_has_its_tokens():
    tokenizer = word_tokenizer()
    (prompt,) = write_prompts(["Big red star", "tree"], tokenizer, 32)
    assert tokenizer.convert_ids_to_tokens(prompt.input_ids) == [
        "[CLS]",
        "big",
        "red",
        "star",
        ".",
        "tree",
        ".",
        "[SEP]",
    ]
    assert prompt.spans == [(1, 4), (5, 6)]
    assert prompt.input_ids == tokenizer("big red star. tree.")["input_ids"]  # as the processor would have it


def test_a_text_too_long_is_cut_between_phrases_and_what_cannot_be_asked_is_left_out():
    tokenizer = word_tokenizer()
    parts = write_prompts(
        ["big red star", "tree", "blue boat", "red red red red red red red", "?", "boat"], tokenizer, 8
    )
    assert [part.phrases for part in parts] == [["big red star", "tree"], ["blue boat", "boat"]]
    assert all(len(part.input_ids) <= 8 for part in parts)
    assert parts[1].spans == [(1, 3), (4, 5)]


def test_weights_are_means_over_tokens():
    weights = span_weights([(1, 4), (5, 6)], 8)
    assert torch.equal(weights[0], torch.tensor([0, 1, 1, 1, 0, 0, 0, 0]) / 3)
    assert torch.equal(weights[1], torch.tensor([0.0, 0, 0, 0, 0, 1, 0, 0]))


class Says:
    """A detector that says what it is told to."""

    device, dtype = "cpu", torch.float32
    config = SimpleNamespace(model_type="grounding-dino", max_text_len=16)

    def __init__(self, probabilities, boxes):
        self.logits, self.boxes = torch.tensor(probabilities).logit(), torch.tensor(boxes)

    def __call__(self, input_ids, **_):
        logits = torch.full((len(input_ids), len(self.boxes), 16), -torch.inf)
        logits[:, :, : self.logits.shape[1]] = self.logits
        return SimpleNamespace(logits=logits, pred_boxes=self.boxes.expand(len(input_ids), -1, -1))


def test_a_box_has_the_phrase_whose_words_are_likeliest_on_average():
    # [CLS] red star . boat . [SEP]: tokens 1 and 2, token 4; the full stop does not count
    says = Says(
        [
            [0.1, 0.9, 0.3, 0.9, 0.5, 0.1, 0.1],
            [0.1, 0.29, 0.1, 0.9, 0.29, 0.9, 0.1],
            [0.1, 0.7, 0.1, 0.1, 0.31, 0.1, 0.1],
        ],
        [[0.5, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0], [0.25, 0.25, 0.5, 0.5]],
    )
    processor = SimpleNamespace(
        tokenizer=word_tokenizer(), image_processor=GroundingDinoImageProcessor(size={"height": 32, "width": 32})
    )
    (found,) = detect(says, processor, pictures((40, 20)), [["red star", "boat"]], 0.30, 0.25)
    assert [one.phrase for one in found] == ["red star", "red star"]  # (0.9 + 0.3) / 2 > 0.5; 0.4 > 0.31
    assert found[0].score == pytest.approx(0.9) and found[0].box == pytest.approx((10, 0, 30, 20))
    assert found[1].score == pytest.approx(0.7) and found[1].box == pytest.approx((0, 0, 20, 10))
    (fewer,) = detect(says, processor, pictures((40, 20)), [["red star", "boat"]], 0.30, 0.45)
    assert [one.score for one in fewer] == pytest.approx([0.9])
    (more,) = detect(says, processor, pictures((40, 20)), [["red star", "boat"]], 0.28, 0.1)
    assert [one.phrase for one in more] == ["red star", "red star", "boat"]


def test_a_batch_finds_what_each_picture_alone_finds(dino):
    model, processor = dino
    shown = pictures((60, 60), (60, 60), (90, 40), (60, 60))
    asked = [["red star", "blue boat", "tree"], ["tree"], ["boat", "big red star"], []]
    together = detect(model, processor, shown, asked, 0.0, 0.0, batch_size=3)
    for picture, phrases, found in zip(shown, asked, together, strict=True):
        (alone,) = detect(model, processor, [picture], [phrases], 0.0, 0.0)
        assert [one.phrase for one in alone] == [one.phrase for one in found]
        torch.testing.assert_close(
            torch.tensor([one.box for one in alone]), torch.tensor([one.box for one in found]), rtol=1e-4, atol=1e-3
        )
        assert [one.score for one in found] == pytest.approx([one.score for one in alone], abs=1e-5)
    assert together[3] == [] and len(together[0]) == model.config.num_queries
    assert [one.score for one in together[0]] == sorted((one.score for one in together[0]), reverse=True)


def test_a_long_list_of_phrases_is_asked_in_parts(dino):
    model, processor = dino
    (found,) = detect(
        model, processor, pictures((60, 60)), [["red star", "blue boat", "green tree", "big boat"] * 4], 0.0, 0.0
    )
    assert len(found) == 2 * model.config.num_queries  # 16 phrases of 3 tokens: two texts of at most 32


def test_owl_finds_by_whole_phrases_and_empty_ones_have_no_name():
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **small,
        "vocab_size": 600,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = Owlv2Config(
        text_config=text, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=32
    )
    model = Owlv2ForObjectDetection(config).eval()
    words = {"<|startoftext|>": 1, "<|endoftext|>": 2} | {chr(97 + i): 10 + i for i in range(26)}
    words |= {f"{chr(97 + i)}</w>": 40 + i for i in range(26)} | {"!": 0}
    tokenizer = CLIPTokenizer(vocab=words, merges=[], model_max_length=16, pad_token="!")
    processor = Owlv2Processor(Owlv2ImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    shown = pictures((40, 20), (40, 20))
    found = detect(model, processor, shown, [["a b", "c"], ["d"]], 0.0)
    assert {one.phrase for one in found[0]} <= {"a b", "c"} and {one.phrase for one in found[1]} <= {"d"}
    assert found[0] and all(isinstance(one, Detection) and len(one.box) == 4 for one in found[0])


def test_padding_a_picture_is_never_needed(dino):
    model, processor = dino
    seen = []
    original = model.forward
    model.forward = lambda pixel_values, **kwargs: (
        seen.append(tuple(pixel_values.shape)),
        original(pixel_values, **kwargs),
    )[1]
    try:
        loose = GroundingDinoProcessor(
            GroundingDinoImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}), processor.tokenizer
        )
        detect(model, loose, pictures((60, 60), (90, 45), (30, 30), (45, 90)), [["tree"]] * 4, 0.9)
    finally:
        model.forward = original
    assert sorted(seen) == [(1, 3, 32, 64), (1, 3, 64, 32), (2, 3, 32, 32)]


def test_the_configuration_is_a_grounding_dinos(dino):
    assert isinstance(dino[0], GroundingDinoForObjectDetection) and isinstance(dino[0].config, GroundingDinoConfig)
