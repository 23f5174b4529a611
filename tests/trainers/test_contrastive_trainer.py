"""ContrastiveTrainer: the loss of a batch by hand, chunks, what rows lack, what is alike, and what cannot be read."""

import copy

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from torch.testing import assert_close

from datasets_scripts.open_picture import UnreadablePicture
from modeling.contrastive_losses import info_nce
from tests.conftest import picture
from tests.modeling.test_modeling_aligner import make_aligner, make_aligner_processor
from trainers.contrastive_config import ContrastiveConfig
from trainers.contrastive_data import ContrastiveCollator, UnreadableSound, open_sound
from trainers.contrastive_trainer import ContrastiveTrainer, contrastive_loss
from trainers.retrieval_evaluation import embed_rows, retrieval_figures
from trainers.tower_features import cache_tower_features


TEXTS = ["red </s>", "blue </s>", "what colour is it </s>", "red </s>", "green </s>", "a b </s>"]


def sound(seed: int) -> dict:
    return {"array": np.sin(np.arange(3000) * (0.05 + 0.1 * seed)).astype(np.float32), "sampling_rate": 16000}


@pytest.fixture
def rows() -> list[dict]:
    """Six rows; the fourth says what the first says, the last has no sound, the fifth no picture."""
    out = [{"image": picture(i), "text": text, "audio": sound(i)} for i, text in enumerate(TEXTS)]
    out[4]["image"], out[5]["audio"] = None, None
    return out


def trainer_of(model, tmp_path, features=None, **settings) -> ContrastiveTrainer:
    args = ContrastiveConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        per_device_train_batch_size=6,
        save_strategy="no",
        **settings,
    )
    return ContrastiveTrainer(model, args, make_aligner_processor(), features)


def test_the_loss_of_a_batch_by_hand(rows, tmp_path):
    model = make_aligner(audio="ast")
    batch = ContrastiveCollator(make_aligner_processor())(rows)
    assert batch["image_there"].tolist() == [True] * 4 + [False, True] and batch["audio_there"].tolist() == [
        True
    ] * 5 + [False]
    trainer = trainer_of(model, tmp_path, pair_weights={"image_text": 2, "audio_text": 1, "image_audio": 0})
    with torch.no_grad():
        loss = trainer.compute_loss(model, dict(batch))
    seen = model(**{k: v for k, v in batch.items() if "there" not in k and "key" not in k})
    scale = model.logit_scale.exp()

    def pair(a, b, texts):
        alike = torch.tensor([[one == other for one in texts] for other in texts])
        parts = []
        for dim in (8, 16, 32):
            cosines = torch.nn.functional.cosine_similarity(a[:, None, :dim], b[None, :, :dim], dim=-1)
            parts.append(info_nce(cosines * scale, alike))
        return sum(parts) / 3

    with_image = [0, 1, 2, 3, 5]
    one = pair(seen.image_embeds, seen.text_embeds[with_image], [TEXTS[i] for i in with_image])
    other = pair(seen.audio_embeds, seen.text_embeds[:5], TEXTS[:5])
    assert_close(loss, (2 * one + other) / 3, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
@pytest.mark.parametrize("chunk_size", [None, 2, 5])
def test_gradients_are_those_of_the_loss_itself(rows, tmp_path, loss, chunk_size):
    """What is carried back through the embeddings is what autograd gives for the whole, in chunks too."""
    model = make_aligner("clip", "bert", "ast", loss=loss)
    batch = ContrastiveCollator(make_aligner_processor())(rows)
    plain = copy.deepcopy(model)
    names = {m: (batch[f"{m}_there"], batch[f"{m}_key"]) for m in ("image", "text", "audio")}
    seen = plain(**{k: v for k, v in batch.items() if "there" not in k and "key" not in k})
    whole = {
        m: torch.zeros(6, 32).index_copy(0, there.nonzero()[:, 0], seen[f"{m}_embeds"])
        for m, (there, _) in names.items()
    }
    weights = dict.fromkeys(("image_text", "audio_text", "image_audio"), 1.0)
    there, keys = ({m: pair[i] for m, pair in names.items()} for i in (0, 1))
    expected, _ = contrastive_loss(plain, whole, there, keys, weights)
    expected.backward()
    off = (m for m in model.train().modules() if isinstance(m, torch.nn.Dropout))
    for dropout in off:
        dropout.p = 0.0
    got = trainer_of(model, tmp_path, chunk_size=chunk_size).compute_loss(model, dict(batch))
    got.backward()
    assert_close(got.detach(), expected.detach())
    gradients = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert "logit_scale" in gradients and len(gradients) > 40
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


def test_rows_that_show_the_same_are_no_negatives():
    model = make_aligner()
    embeddings = {"image": torch.randn(3, 32), "text": torch.randn(3, 32)}
    there = dict.fromkeys(("image", "text"), torch.ones(3, dtype=torch.bool))
    apart = {"image": torch.tensor([1, 2, 3]), "text": torch.tensor([1, 2, 3])}
    weights = {"image_text": 1.0}
    plain, _ = contrastive_loss(model, embeddings, there, apart, weights)
    assert_close(plain, model.alignment_loss(embeddings["image"], embeddings["text"]))
    for same in ({"image": torch.tensor([1, 2, 1])}, {"text": torch.tensor([1, 2, 1])}):
        fewer, _ = contrastive_loss(model, embeddings, there, apart | same, weights)
        assert fewer < plain


def test_a_batch_that_nothing_can_be_learned_from_says_so():
    model, ones = make_aligner(), torch.ones(3, dtype=torch.bool)
    embeddings, keys = {"text": torch.randn(3, 32)}, {"text": torch.arange(3)}
    with pytest.raises(ValueError, match="no two rows of the batch have two modalities"):
        contrastive_loss(model, embeddings, {"text": ones}, keys, {"image_text": 1.0})


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"pair_weights": {"text_text": 1}}, "pair_weights: text_text is none of image_text"),
        ({"pair_weights": dict.fromkeys(("image_text", "audio_text", "image_audio"), 0)}, "every weight is 0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1; got 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        ContrastiveConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_what_cannot_be_read_is_passed_over_and_counted(rows, tmp_path):
    rows[0]["image"] = {"bytes": b"no picture", "path": None}
    rows[1]["audio"] = {"bytes": None, "path": str(tmp_path / "missing.wav")}
    batch = ContrastiveCollator(make_aligner_processor())(rows)
    assert batch["skipped"] == 2
    assert not batch["image_there"][0] and not batch["audio_there"][1]
    assert len(batch["pixel_values"]) == 4 and len(batch["audio_values"]) == 4
    with pytest.raises(UnreadablePicture):
        ContrastiveCollator(make_aligner_processor(), strict=True)(rows[:1])
    with pytest.raises(UnreadableSound, match="missing.wav"):
        ContrastiveCollator(make_aligner_processor(), strict=True)(rows[1:2])


def test_sounds_of_all_kinds_are_opened(tmp_path):
    wave = np.sin(np.arange(4410) / 9).astype(np.float32) * 0.5
    for name, channels, rate in (("mono.wav", 1, 44100), ("stereo.flac", 2, 8000), ("speech.ogg", 1, 16000)):
        soundfile.write(tmp_path / name, np.stack([wave] * channels, 1), rate)
        heard, at = open_sound({"path": str(tmp_path / name), "bytes": None})
        assert at == rate and len(heard) == 4410
    whole = (tmp_path / "mono.wav").read_bytes()
    assert len(open_sound({"path": None, "bytes": whole})[0]) == 4410
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 1)), 16000)
    for content, problem in (
        ((tmp_path / "empty.wav").read_bytes(), "holds no samples"),
        ((tmp_path / "stereo.flac").read_bytes()[:900], "cut off|Error"),
        (b"", "a sound"),
        (b"RIFF no sound", "a sound"),
    ):
        with pytest.raises(UnreadableSound, match=problem):
            open_sound({"path": None, "bytes": content})


def dataset(count: int = 8) -> Dataset:
    from io import BytesIO

    def png(i):
        file = BytesIO()
        picture(i).save(file, "png")
        return file.getvalue()

    texts = [f"{a} {b} </s>" for a in ("red", "blue", "green") for b in ("a", "b", "c")]
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(count)], "text": texts[:count]}
    from datasets import Features, Image, Value

    return Dataset.from_dict(rows, features=Features({"image": Image(decode=False), "text": Value("string")}))


@pytest.mark.parametrize("features", ["pooled", "tokens"])
def test_cached_features_train_alike(tmp_path, features):
    """Weights after four steps are what they are without a cache; nothing is embedded twice."""
    weights = []
    for cached in (False, True):
        model = make_aligner(vision_features=features, text_features=features, projector="perceiver")
        model.freeze_towers("vision", "text")
        rows, kept = dataset(), {}
        if cached:
            rows = rows.select([*range(8), 0])
            kept, rows = cache_tower_features(
                model, make_aligner_processor(), rows, ["image", "text"], tmp_path / "cache"
            )
            assert len(kept["image"]) == 8 and rows["image"][-1] == rows["image"][0] == 0
            rows = rows.select(range(8))
            monkey = list(model.towers().values())
            for tower in monkey:
                tower.forward = None  # it must not be called any more
        trainer = trainer_of(model, tmp_path / "run", kept, max_steps=4, learning_rate=1e-2)
        trainer.train_dataset = rows
        trainer.train()
        weights.append({n: p.detach().clone() for n, p in model.named_parameters() if "projector" in n})
    for name in weights[0]:
        assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)


def test_a_cache_is_of_the_tower_the_items_and_the_preprocessing(tmp_path):
    model, process = make_aligner(), make_aligner_processor()
    model.freeze_towers("vision", "text")
    cache = lambda: cache_tower_features(model, process, dataset(), ["image"], tmp_path)  # noqa: E731
    cache()
    assert len(list(tmp_path.iterdir())) == 1
    cache()
    assert len(list(tmp_path.iterdir())) == 1
    process.image_processor.image_mean = [0.1] * 3
    cache()
    assert len(list(tmp_path.iterdir())) == 2
    with torch.no_grad():
        next(model.vision_tower.parameters()).add_(1)
    cache()
    assert len(list(tmp_path.iterdir())) == 3
    model.freeze_towers("text")
    with pytest.raises(ValueError, match="the vision tower learns, so what it makes of image changes"):
        cache()


def test_unreadable_pictures_stay_unreadable_in_a_cache(tmp_path):
    model, process = make_aligner(), make_aligner_processor()
    model.freeze_towers("vision", "text")
    rows = dataset(3).to_list()
    rows[1]["image"]["bytes"] = b"broken"
    features, rows = cache_tower_features(model, process, Dataset.from_list(rows), ["image", "text"], tmp_path)
    batch = ContrastiveCollator(process, features)(rows.to_list())
    assert batch["skipped"] == 1 and batch["image_there"].tolist() == [True, False, True]


def test_retrieval_finds_what_was_learned(tmp_path):
    model = make_aligner(vision_features="tokens", text_features="tokens")
    rows = dataset(9)
    trainer = trainer_of(model, tmp_path, max_steps=60, learning_rate=5e-3, eval_strategy="no")
    trainer.train_dataset = trainer.eval_dataset = rows
    trainer.args.per_device_train_batch_size = trainer.args.train_batch_size
    trainer.train()
    figures = trainer.evaluate()
    assert figures["eval_text_to_image_r1"] == figures["eval_image_to_text_r1@8"] == 1.0


def test_rows_of_one_picture_or_one_text_are_one_item():
    model, process = make_aligner(), make_aligner_processor()
    rows = dataset(4).to_list()
    rows = [rows[0], rows[0] | {"text": rows[1]["text"]}, rows[2], rows[3] | {"text": rows[2]["text"]}]
    embedded = embed_rows(model, process, Dataset.from_list(rows), progress=False)
    assert embedded.rows["image"].tolist() == [0, 0, 1, 2] and embedded.rows["text"].tolist() == [0, 1, 2, 2]
    figures = retrieval_figures(embedded, model.config.matryoshka_dimensions, n_bootstrap=10)
    assert figures["text_to_image_r1"]["n"] == figures["image_to_text_r5@16"]["n"] == 3
    assert {name.partition("@")[2] for name in figures} == {"", "8", "16"}
    with pytest.raises(ValueError, match="two of the columns image, text and audio"):
        embed_rows(model, process, Dataset.from_dict({"text": ["a"]}))
