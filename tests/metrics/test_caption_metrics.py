"""The metrics against values worked out by hand, tokens observed from Java, and pycocoevalcap on real captions."""

import contextlib
import io
import json
import math
from pathlib import Path

import evaluate
import numpy as np
import pytest


METRICS = Path(__file__).parents[2] / "metrics"
PREDICTIONS = ["a red cat on the mat", "two dogs run"]
REFERENCES = [["a cat on the mat", "the red cat sat on a mat today"], ["two dogs play", "dogs run fast"]]
# what Stanford's PTBTokenizer 3.4.1 and pycocoevalcap's list of punctuation make of these
TOKENS = {
    "A man's dog, isn't it?": "a man 's dog is n't it",
    "They can't; he won't, she'll": "they ca n't he wo n't she 'll",
    "I cannot, gonna gimme 'tis": "i can not gon na gim me 't is",
    "the dogs' tails, James' hat": "the dogs tails james hat",
    "o'clock O'Brien ma'am y'all rock'n'roll": "o'clock o'brien ma'am y' all rock 'n' roll",
    "black-and-white x-ray - 5-year-old -- end": "black-and-white x-ray 5-year-old end",
    "Mr. Smith on Main St. at 5 p.m.": "mr. smith on main st. at 5 p.m.",
    "the U.S. flag. Washington, D.C.": "the u.s. flag washington d.c.",
    "no. 5 is here, no. dog.": "no. 5 is here no dog",
    "vitamin c. the dog": "vitamin c. the dog",
    "vitamin c. The dog": "vitamin c the dog",
    "a dog., sat.; here. done": "a dog. sat. here done",
    "3.5 inches, 1,000 or 10:30 5:30pm 20th": "3.5 inches 1,000 or 10:30 5:30 pm 20th",
    "$5.50, £5, 50¢ and 5%": "$ 5.50 # 5 50 cents and 5 %",
    "1/2 of ½, 3 1/2 cups; and/or w/ him": "1/2 of 1/2 3\xa01/2 cups and/or w / him",
    "(a) [b] {c} <br>": "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- <br>",
    '“it’s” ‘here’ – a—b … «c» "d"': "it 's here a b c d",
    "Hello!! What?! wow! ok?": "hello !! what ?! wow ok",
    "AT&T a&b &amp; #1 #tag a@b.com": "at&t a & b & # 1 #tag a@b.com",
    "smile :) :-( ;D <3": "smile :-rrb- :--lrb- ;d < 3",
    "naïve café 日本 5°": "naïve café 日本 5 °",
    "do's and don'ts": "do 's and do n'ts",
    "5'10\" tall in '99, the '90s or '05": "5 10 tall in 99 the '90s or '05",
    "the '80s, not the '05s": "the '80s not the 05s",
    "M&Ms and R&B's a Q&A": "m&m s and r&b 's a q&a",
    "Cap'n ate s'mores, ne'er li'l; c'est qu'il": "cap'n ate s'mores ne'er li'l c'est qu'il",
    "the non-U.S. team, anti- and pro-war": "the non-u.s. team anti- and pro-war",
    "version 2.0.0b1 or 1.x": "version 2.0.0 b1 or 1.x",
    "it&apos;s&nbsp;a caf&eacute; &mdash; &#39;": "it 's a caf&eacute; &#39;",
    "<http://x.com> <a b='c'> <p@> </p>": "< http://x.com > <a\xa0b='c'> < p @ > </p>",
    "-LRB- and -rrb-": "-lrb- and -rrb-",
    "₹5 or 5₤ \ufeffand\x07\x99 ¤": "5 or 5 ₤ and $",
    "a 😀 dog😀s": "a dog s",
    "two\nlines": "two lines",
    " . ": "",
    "": "",
}


def load(name: str) -> evaluate.Metric:
    return evaluate.load(str(METRICS / name), keep_in_memory=True)


def varied() -> dict[str, list]:
    """Sixty pictures, no two alike, so that every resample has its own figure."""
    words = np.random.default_rng(0).choice("a the dog cat runs sits on mat red".split(), size=(60, 3, 9))
    texts = [[" ".join(caption) for caption in picture] for picture in words]
    return {"predictions": [some[0] for some in texts], "references": [some[1:] for some in texts]}


@pytest.fixture
def tokenize(monkeypatch):
    monkeypatch.syspath_prepend(str(METRICS / "bleu"))
    from ptb_tokenizer import tokenize

    return tokenize


def test_bleu_is_what_counting_by_hand_gives():
    result = load("bleu").compute(predictions=PREDICTIONS, references=REFERENCES)
    # clipped matches of n-grams said, first picture and second:
    #   1-grams: a red cat on the mat 6 of 6; two dogs run 3 of 3           -> 9/9
    #   2-grams: "red cat" "cat on" "on the" "the mat" 4 of 5; both 2 of 2 -> 6/7
    #   3-grams: "cat on the" "on the mat" 2 of 4; none of 1               -> 2/5
    #   4-grams: "cat on the mat" 1 of 3                                   -> 1/3
    # lengths 6 + 3 = 9; closest references 5 (|5-6| < |8-6|) + 3 = 8: no brevity penalty
    assert result["bleu_1"] == pytest.approx(1)
    assert result["bleu_2"] == pytest.approx((6 / 7) ** (1 / 2))
    assert result["bleu_3"] == pytest.approx((6 / 7 * 2 / 5) ** (1 / 3))
    assert result["bleu_4"] == pytest.approx((6 / 7 * 2 / 5 / 3) ** (1 / 4))


def test_bleu_clips_repeated_words_and_punishes_brevity():
    result = load("bleu").compute(predictions=["the the the"], references=[["the cat saw the dog"]])
    # "the" counts twice of three times; length 3 of 5: exp(1 - 5/3)
    assert result["bleu_1"] == pytest.approx(2 / 3 * math.exp(1 - 5 / 3))


def test_the_closest_reference_length_counts_not_the_shortest():
    result = load("bleu").compute(predictions=["a b c"], references=[["a", "a b c d"]])
    assert result["bleu_1"] == pytest.approx(math.exp(1 - 4 / 3))  # 3 words; 4 is nearer than 1


def test_of_two_equally_close_reference_lengths_the_shorter_counts():
    result = load("bleu").compute(predictions=["a b c"], references=[["a b c d", "a b"]])
    assert result["bleu_1"] == pytest.approx(1)  # 2 words, so 3 are not too few


def test_rouge_l_is_what_counting_by_hand_gives():
    result = load("rouge_l").compute(predictions=PREDICTIONS, references=REFERENCES)
    # first picture, 6 words: "a cat on the mat" 5 in common: P 5/6, R 5/5; "red cat on mat" 4: P 4/6, R 4/8 -> best 5/6, 1
    # second, 3 words: "two dogs" 2: P 2/3, R 2/3; "dogs run" the same
    f = [(1 + 1.44) * p * r / (r + 1.44 * p) for p, r in ((5 / 6, 1), (2 / 3, 2 / 3))]
    assert result["rouge_l"] == pytest.approx(sum(f) / 2)


def test_cider_is_what_counting_by_hand_gives():
    result = load("cider").compute(predictions=["a dog", "cat sat here"], references=[["a dog runs"], ["a cat"]])
    # two pictures; idf: log 2 for what one picture's references have or none (df is at least 1), log 1 = 0 for "a"
    # first: n=1: said (dog), right (dog, runs), each log 2: cosine 1 / sqrt 2
    #        n=2: said (a dog), right (a dog, dog runs): 1 / sqrt 2; n=3, 4: nothing said
    #        bigrams 1 and 2, difference 1: times exp(-1/72)
    # second: n=1: said (cat, sat, here), right (cat): 1 / sqrt 3; n=2: nothing in common; 2 and 1 bigrams: exp(-1/72)
    first = (2 / math.sqrt(2)) / 4 * math.exp(-1 / 72) * 10
    second = (1 / math.sqrt(3)) / 4 * math.exp(-1 / 72) * 10
    assert result["cider"] == pytest.approx((first + second) / 2)


def test_cider_clips_what_is_said_too_often():
    result = load("cider").compute(predictions=["dog dog", "x"], references=[["dog"], ["cat"]])
    # n=1: min(2, 1) * 1 / (2 * 1) = 1/2; 1 and 0 bigrams; the second picture has nothing in common
    assert result["cider"] == pytest.approx(0.5 / 4 * math.exp(-1 / 72) * 10 / 2)


def test_cider_of_one_picture_alone_is_zero():
    assert load("cider").compute(predictions=["a dog"], references=[["a dog"]])["cider"] == 0


def test_scene_f1_counts_objects_with_multiplicity():
    result = load("scene_f1").compute(
        predictions=["two small red stars and a large blue boat", "a green tree"],
        references=[["small red star", "large blue boat", "large blue boat"], ["small green tree"]],
    )
    # named 3 + 1, there 3 + 1; right: one star (of two named), one boat (of two there); the tree has no size -> 2
    assert result["scene_precision"] == pytest.approx(2 / 4)
    assert result["scene_recall"] == pytest.approx(2 / 4)
    assert result["scene_f1"] == pytest.approx(2 * 2 / (4 + 4))


@pytest.mark.parametrize("caption", TOKENS)
def test_tokens_are_those_of_the_java_tool(tokenize, caption):
    assert " ".join(tokenize([caption])[0]) == TOKENS[caption]


def test_a_caption_is_tokenised_as_it_is_among_others(tokenize):
    assert tokenize([*TOKENS, *TOKENS]) == 2 * [tokens for caption in TOKENS for tokens in tokenize([caption])]


@pytest.mark.parametrize("name", ["bleu", "rouge_l", "cider"])
class TestEveryCaptionMetric:
    def test_intervals_hold_their_figure_and_repeat(self, name):
        ask = varied()
        result = load(name).compute(**ask)
        assert result == load(name).compute(**ask)
        for figure in (key for key in result if not key.endswith("_ci95")):
            low, high = result[f"{figure}_ci95"]
            assert low < result[figure] < high

    def test_batches_give_what_one_call_gives(self, name):
        module = load(name)
        for said, right in zip(PREDICTIONS, REFERENCES, strict=True):
            module.add_batch(predictions=[said], references=[right])
        assert module.compute() == load(name).compute(predictions=PREDICTIONS, references=REFERENCES)

    def test_an_empty_prediction_scores_nothing(self, name):
        result = load(name).compute(predictions=["", ""], references=REFERENCES)
        assert all(value == pytest.approx(0, abs=1e-6) for key, value in result.items() if not key.endswith("_ci95"))

    def test_no_predictions_are_refused(self, name):
        with pytest.raises(ValueError, match="no predictions"):
            load(name).compute(predictions=[], references=[])

    def test_references_that_are_one_string_are_named_not_spelled(self, name):
        with pytest.raises(ValueError, match="record 1.*'the cat'"):
            load(name).compute(predictions=["a dog", "a cat"], references=[["the dog"], "the cat"])

    def test_predictions_without_references_are_refused(self, name):
        with pytest.raises(ValueError, match="references"):
            load(name).compute(predictions=["a dog"])

    def test_the_seed_and_number_of_resamples_change_the_interval_only(self, name):
        ask = varied()
        usual = load(name).compute(**ask)
        assert load(name).compute(**ask, n_bootstrap=1000, seed=0) == usual
        for option in ({"seed": 1}, {"n_bootstrap": 50}):
            other = load(name).compute(**ask, **option)
            differ = {key for key in usual if usual[key] != other[key]}
            assert differ and all(key.endswith("_ci95") for key in differ)

    def test_one_resample_is_an_interval_of_no_width(self, name):
        result = load(name).compute(predictions=PREDICTIONS, references=REFERENCES, n_bootstrap=1)
        assert all(low == high for key, (low, high) in ((k, v) for k, v in result.items() if k.endswith("_ci95")))

    def test_no_resamples_are_refused(self, name):
        with pytest.raises(ValueError, match="n_bootstrap is 0"):
            load(name).compute(predictions=PREDICTIONS, references=REFERENCES, n_bootstrap=0)

    def test_a_picture_without_references_is_named(self, name):
        with pytest.raises(ValueError, match="record 1"):
            load(name).compute(predictions=["a", "b"], references=[["a"], []])

    def test_references_of_another_number_of_pictures_are_refused(self, name):
        with pytest.raises(ValueError, match="1 predictions.* 2 pictures"):
            load(name).compute(predictions=["a"], references=[["a"], ["b"]])


def test_helpers_are_the_same_in_every_folder():
    copies: dict[str, set[bytes]] = {}
    for path in METRICS.glob("*/*.py"):
        if path.stem != path.parent.name:
            copies.setdefault(path.name, set()).add(path.read_bytes())
    assert {"bootstrap.py", "ptb_tokenizer.py", "captions.py", "ngrams.py"} <= set(copies)
    assert [name for name, contents in copies.items() if len(contents) > 1] == []


def peer_scores(said: dict[int, list[str]], right: dict[int, list[str]]) -> dict[str, float]:
    """What pycocoevalcap's scorers make of tokens, {picture: captions of words with one space between}."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    with contextlib.redirect_stdout(io.StringIO()):  # Bleu prints
        bleu = Bleu(4).compute_score(right, said)[0]
    expected = {f"bleu_{n}": value for n, value in enumerate(bleu, 1)}
    return expected | {
        "rouge_l": Rouge().compute_score(right, said)[0],
        "cider": Cider().compute_score(right, said)[0],
    }


def our_scores(predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    result = {}
    for name in ("bleu", "rouge_l", "cider"):
        result |= load(name).compute(predictions=predictions, references=references)
    return {key: value for key, value in result.items() if not key.endswith("_ci95")}


def java_tokens(texts: list[list[str]]) -> dict[int, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    return PTBTokenizer().tokenize({i: [{"caption": text} for text in some] for i, some in enumerate(texts)})


def test_the_same_tokens_score_what_pycocoevalcap_gives_them(tokenize):
    pytest.importorskip("pycocoevalcap")
    rng = np.random.default_rng(0)
    vocabulary = "a the dog cat's isn't 3 1/2 runs sits, on mat red . (big) U.S. ½".split()
    # pictures have 1 to 4 references; captions 0 to 12 words, so some are empty and many too short for a 4-gram
    texts = [
        [" ".join(rng.choice(vocabulary, size=rng.integers(13))) for _ in range(rng.integers(2, 6))] for _ in range(80)
    ]
    predictions, references = [some[0] for some in texts], [some[1:] for some in texts]
    said, right = (
        {i: [" ".join(tokens) for tokens in tokenize(some)] for i, some in enumerate(each)}
        for each in ([[text] for text in predictions], references)
    )
    assert our_scores(predictions, references) == pytest.approx(peer_scores(said, right), abs=1e-9)


@pytest.mark.slow
@pytest.mark.real_data
def test_real_captions_score_what_pycocoevalcap_gives_them(real_data):
    pytest.importorskip("pycocoevalcap")
    captions: dict[int, list[str]] = {}
    for path in sorted((real_data / "coco2017" / "annotations").glob("captions_*.json")):
        for row in json.loads(path.read_text())["annotations"]:
            captions.setdefault(row["image_id"], []).append(row["caption"])
    texts = [some for some in captions.values() if len(some) > 1]
    assert texts
    for left_out in range(min(map(len, texts))):
        predictions = [some[left_out] for some in texts]
        references = [some[:left_out] + some[left_out + 1 :] for some in texts]
        expected = peer_scores(java_tokens([[text] for text in predictions]), java_tokens(references))
        assert our_scores(predictions, references) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.real_data
def test_real_sentences_have_the_tokens_java_gives_them(real_data, tokenize):
    pytest.importorskip("pycocoevalcap")
    sentences = [json.loads(line)["sentence"] for line in (real_data / "nlvr" / "dev" / "dev.json").open()]
    sentences += [row[0] for row in json.loads((real_data / "easy_vqa" / "train" / "questions.json").read_text())]
    for path in sorted((real_data / "pope").glob("*.json")):
        sentences += [json.loads(line)["text"] for line in path.open()]
    for path in sorted((real_data / "coco2017" / "annotations").glob("captions_*.json")):
        sentences += [row["caption"] for row in json.loads(path.read_text())["annotations"]]
    sentences = sorted(set(sentences))
    assert len(sentences) > 500
    found = [" ".join(tokens) for tokens in tokenize(sentences)]
    java = java_tokens([[sentence] for sentence in sentences])
    assert found == [java[i][0] for i in range(len(sentences))]


@pytest.mark.slow
def test_the_table_of_tokens_is_what_java_gives(tokenize):
    pytest.importorskip("pycocoevalcap")
    captions = [caption for caption in TOKENS if caption.strip()]
    java = java_tokens([[caption] for caption in captions])
    assert [java[i][0] for i in range(len(captions))] == [TOKENS[caption] for caption in captions]
