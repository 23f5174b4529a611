"""The stages of a run, with detectors and judges that say what they are told to."""

from io import BytesIO

import pytest
from PIL import Image

from grounding import pipeline
from grounding.detection import Detection
from grounding.noun_phrases import chunker
from grounding.pipeline import Judge, Stages, Thresholds, augment, captioner_of


def png(width=100, height=50):
    file = BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def row(image_id, *captions, picture=None):
    images = [{"bytes": png() if picture is None else picture, "path": None}]
    return {"images": images, "references": list(captions), "image_id": image_id}


@pytest.fixture
def told(monkeypatch):
    """Runs `augment` on rows where the detector finds `found[i]` in picture i and crops have `cosines`, in their order."""

    def run(rows, found, cosines, captioner=None, **how):
        asked = {}

        def detect(model, processor, pictures, phrases, *thresholds):
            asked["phrases"] = phrases
            return found

        def similarity(model, processor, crops, texts, batch_size):
            asked["crops"], asked["texts"] = [crop.size for crop in crops], texts
            return cosines[: len(crops)]

        monkeypatch.setattr(pipeline, "detect", detect)
        monkeypatch.setattr(pipeline, "similarity", similarity)
        judges = [Judge(None, None, name) for name in ("dino@1", "clip@2")]
        name, chunk = chunker("rules")
        stages = Stages(chunk, name, *judges, captioner, "llava@3" if captioner else None, "a photo of a {}.")
        records = augment(rows, [f"{one['image_id']}.png" for one in rows], stages, Thresholds(**how))
        return records, asked

    return run


def test_every_record_says_where_it_comes_from(told):
    rows = [row("7", "A dog on a mat.", "The dog and a red ball.")]
    found = [[Detection((10, 5, 40.04, 45), "dog", 0.91234), Detection((60, 10, 80, 30), "red ball", 0.4)]]
    records, asked = told(rows, found, [0.31, 0.27])
    assert asked["phrases"] == [["dog", "mat", "red ball"]]
    assert asked["texts"] == ["a photo of a dog.", "a photo of a red ball."]
    assert asked["crops"] == [(38, 48), (24, 24)]  # a tenth of 40 and of 20 around them
    common = {"image_id": "7", "image": "7.png", "width": 100, "height": 50, "phrases": 3}
    one = {"caption_id": 0, "caption": "A dog on a mat."}
    assert records[:2] == [
        {"kind": "caption", **common, **one, "text": "A dog on a mat.", "reason": ""},
        {"kind": "caption", **common, "caption_id": 1, "caption": rows[0]["references"][1],
         "text": rows[0]["references"][1], "reason": ""},
    ]  # fmt: skip
    assert records[2] == {
        "kind": "region", **common, **one, "text": "dog", "phrase": "dog", "box": [10.0, 5.0, 40.0, 45.0],
        "detector_score": 0.912, "clip_score": 0.31, "detector": "dino@1", "similarity_model": "clip@2", "captioner": None,
        "reason": "",
    }  # fmt: skip
    assert (records[3]["caption_id"], records[3]["phrase"]) == (1, "red ball")
    assert len(records) == 4


def test_what_is_rejected_has_its_reason(told):
    found = [
        [
            Detection((0, 0, 100, 49), "dog", 0.9),  # the whole picture
            Detection((10, 10, 50, 40), "dog", 0.8),
            Detection((10, 10, 50, 38), "cat", 0.7),  # the same place
            Detection((120, 10, 150, 40), "cat", 0.6),
            Detection((90, 40, 140, 90), "cat", 0.5),  # half outside: cut
            Detection((1, 1, 3, 3), "cat", 0.4),
        ]
    ]
    records, _ = told([row("1", "a dog and a cat")], found, [0.9, 0.1])
    reasons = [(one["reason"], one["box"], one["clip_score"]) for one in records if one["kind"] == "region"]
    assert reasons == [
        ("nearly the whole picture", [0, 0, 100, 49], None),
        ("", [10, 10, 50, 40], 0.9),
        ("doubles a better box", [10, 10, 50, 38], None),
        ("outside the picture", [100, 10, 100, 40], None),
        ("picture and words do not agree", [90, 40, 100, 50], 0.1),
        ("too small", [1, 1, 3, 3], None),
    ]


def test_a_percentile_is_of_each_captions_regions(told):
    boxes = [(10 * i, 0, 10 * i + 9, 20) for i in range(6)]
    names = ["dog", "cat", "cow", "boat", "tree", "car"]
    found = [[Detection(box, name, 0.9 - i / 100) for i, (box, name) in enumerate(zip(boxes, names, strict=True))]]
    rows = [row("1", "a dog, a cat and a cow", "a boat, a tree and a car")]
    records, _ = told(rows, found, [0.1, 0.2, 0.3, 0.7, 0.9, 0.8], clip_percentile=50)
    kept = [one["phrase"] for one in records if one["kind"] == "region" and not one["reason"]]
    assert kept == ["cat", "cow", "tree", "car"]  # at least the median of 0.1 0.2 0.3 and of 0.7 0.8 0.9


def test_a_picture_that_cannot_be_read_and_captions_without_nouns_stop_nothing(told):
    rows = [row("1", "a dog", picture=b"no picture"), row("2", "", "so it is"), row("3", "a dog")]
    records, asked = told(rows, [[], [Detection((10, 10, 50, 40), "dog", 0.8)]], [0.5])
    assert asked["phrases"] == [[], ["dog"]]
    assert [(one["kind"], one["image_id"]) for one in records] == [
        ("unreadable", "1"), ("caption", "2"), ("caption", "2"), ("caption", "3"), ("region", "3"),
    ]  # fmt: skip
    assert "cannot" in records[0]["reason"] or "picture of" in records[0]["reason"]
    nothing = {**row("4", "a dog"), "images": []}
    assert told([nothing], [], [])[0][0]["kind"] == "unreadable"


def test_a_captioners_words_are_what_is_judged_and_kept(told):
    seen = []

    def say(crops):
        seen.extend(crop.size for crop in crops)
        return ["a small brown dog", ""]

    found = [[Detection((10, 10, 50, 40), "dog", 0.8), Detection((60, 10, 90, 40), "cat", 0.7)]]
    records, asked = told([row("1", "a dog and a cat")], found, [0.5, 0.9], captioner=say)
    assert seen == asked["crops"] == [(48, 38), (36, 36)]
    assert asked["texts"][0] == "a photo of a a small brown dog."
    regions = [one for one in records if one["kind"] == "region"]
    assert [(one["text"], one["phrase"], one["reason"], one["captioner"]) for one in regions] == [
        ("a small brown dog", "dog", "", "llava@3"), ("", "cat", "the captioner said nothing", "llava@3"),
    ]  # fmt: skip


def test_a_captioner_is_asked_as_any_picture_is():
    def generate(model, processor, rows, progress, **how):
        assert (model, processor, how) == ("model", "processor", {"do_sample": False, "max_new_tokens": 8})
        assert [one["prompt"] for one in rows] == [[{"role": "user", "content": "What is it?"}]] * 2
        return [str(one["images"][0].size) for one in rows]

    say = captioner_of(generate, Judge("model", "processor", "x"), "What is it?", max_new_tokens=8)
    assert say([Image.new("RGB", (3, 4)), Image.new("RGB", (5, 6))]) == ["(3, 4)", "(5, 6)"]


@pytest.mark.parametrize(
    "wrong",
    [{"box_threshold": 1.5}, {"clip_threshold": -2}, {"clip_percentile": 101}, {"smallest_area": 0.9}, {"margin": -1}],
)
def test_thresholds_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="must|is a cosine|no box"):
        Thresholds(**wrong)
