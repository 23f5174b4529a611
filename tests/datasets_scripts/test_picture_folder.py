"""A folder of one's own pictures: every way to describe them, every way to get it wrong, and what is held out."""

import json
import os
from pathlib import Path

import pytest
from datasets import Image, List
from PIL import Image as Pillow

from datasets_scripts.canonical import held_out
from datasets_scripts.picture_folder import PictureFolder


def write(folder: Path, *records: dict | str, file: str = "metadata.jsonl") -> Path:
    """Metadata lines as they are or as JSON, and the pictures that records speak of."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        if isinstance(record, dict) and not os.path.exists(folder / record["file_name"]):
            (folder / record["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            Pillow.new("RGB", (8, 6)).save(folder / record["file_name"])
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / file).write_text("\n".join(lines), encoding="utf-8")
    return folder


def build(folder: Path, **config) -> PictureFolder:
    return PictureFolder(data_dir=str(folder), cache_dir=str(folder.parent / "cache"), **config)


def read(folder: Path, split: str = "train", validation_fraction: float = 0, **config):
    builder = build(folder, validation_fraction=validation_fraction, **config)
    builder.download_and_prepare()
    return builder.as_dataset(split)


def picture(name: str, **fields) -> dict:
    return {"file_name": name, **({"caption": f"This is {name}."} | fields)}


@pytest.mark.parametrize("key", ["caption", "text", "captions", "references"])
def test_a_caption_is_a_string_or_a_list_under_any_of_its_names(tmp_path, key):
    folder = write(tmp_path / "f", {"file_name": "a.png", key: " A cat. "}, {"file_name": "b.png", key: ["x", "y"]})
    rows = read(folder)
    assert [row["completion"][0]["content"] for row in rows] == ["A cat.", "x", "y"]
    assert rows["references"][:] == [["A cat."], ["x", "y"], ["x", "y"]]
    assert rows["image_id"][:] == ["a.png", "b.png", "b.png"]
    assert rows[0]["prompt"] == [{"role": "user", "content": "Describe the picture."}]
    assert rows[0]["completion"][0]["role"] == "assistant"
    assert read(folder, rows="image")["image_id"][:] == ["a.png", "b.png"]


@pytest.mark.parametrize("asked, answered", [("question", "answer"), ("prompt", "completion")])
def test_a_question_is_the_prompt_and_its_answer_the_completion(tmp_path, asked, answered):
    first = {"file_name": "a.png", asked: "Is it awake?", answered: "no", "references": ["not at all", "no"]}
    rows = read(
        write(tmp_path / "f", first, {"file_name": "a.png", asked: "What is it?", answered: "a cat"}), rows="image"
    )
    assert [row["prompt"][0]["content"] for row in rows] == ["Is it awake?", "What is it?"]
    assert [row["completion"][0]["content"] for row in rows] == ["no", "a cat"]
    assert rows["references"][:] == [["no", "not at all"], ["a cat"]]


def test_lines_about_one_picture_are_each_others_references(tmp_path):
    dog = {"bbox": [[1.5, 2, 4, 3]], "categories": ["dog"]}
    folder = write(
        tmp_path / "f",
        picture("a.png", caption="A dog.", objects=dog),
        picture("b.png"),
        picture("./a.png", caption="Dog!", objects=dog),
        picture("a.png", caption="A dog."),
    )
    rows = read(folder)
    assert rows["image_id"][:] == ["a.png", "a.png", "b.png"]
    assert rows["references"][:2] == [["A dog.", "Dog!"]] * 2
    assert rows["regions"][:] == [*[[{"box": [1.5, 2, 5.5, 5], "phrase": "dog"}]] * 2, []]


def test_a_table_is_read_like_lines_of_json(tmp_path):
    lines = write(tmp_path / "lines", picture("a.png", caption="A cat, asleep."), picture("b.png", question="What?"))
    table = '\ufefffile_name,caption,question\na.png,"A cat, asleep.",\nb.png,This is b.png.,What?\n'
    folder = write(tmp_path / "table", table, file="metadata.csv")
    for name in ("a.png", "b.png"):
        Pillow.new("RGB", (8, 6)).save(folder / name)
    assert list(read(folder).remove_columns("images")) == list(read(lines).remove_columns("images"))


def test_pictures_may_lie_deeper_and_are_kept_as_paths(tmp_path, monkeypatch):
    write(tmp_path / "f", picture("deep/er/a.png"))
    monkeypatch.chdir(tmp_path)
    stored = read(Path("f")).cast_column("images", List(Image(decode=False)))[0]["images"][0]
    assert stored == {"bytes": None, "path": str(tmp_path / "f" / "deep/er/a.png")}


def test_folders_named_after_splits_are_the_splits(tmp_path):
    for split in ("train", "validation", "test"):
        write(tmp_path / "f" / split, picture(f"{split}.png"))
    builder = build(tmp_path / "f")
    builder.download_and_prepare()
    assert {split: rows["image_id"][:] for split, rows in builder.as_dataset().items()} == {
        split: [f"{split}.png"] for split in ("train", "validation", "test")
    }


def test_nothing_is_held_out_of_a_lone_test_split_or_beside_another(tmp_path):
    write(tmp_path / "alone" / "test", picture("a.png"))
    assert list(build(tmp_path / "alone").as_streaming_dataset()) == ["test"]
    for split in ("train", "test"):
        write(tmp_path / "two" / split, picture("a.png"))
    assert list(build(tmp_path / "two").as_streaming_dataset()) == ["train", "test"]


@pytest.mark.parametrize("where", [".", "train"])
def test_a_lone_train_split_gives_some_pictures_to_validation(tmp_path, where):
    names = [f"{i}.png" for i in range(60)]
    write(tmp_path / "f" / where, *[picture(name) for name in names])
    train, validation = (read(tmp_path / "f", split, 0.1)["image_id"][:] for split in ("train", "validation"))
    assert not set(train) & set(validation) and set(train) | set(validation) == set(names)
    assert 2 <= len(validation) <= 12


def test_everything_said_about_a_picture_is_on_one_side(tmp_path):
    said = [picture(f"{i}.png", question=f"{q}?", answer="yes") for q in range(3) for i in range(12)]
    folder = write(tmp_path / "f", *[{k: v for k, v in record.items() if k != "caption"} for record in said])
    train, validation = (read(folder, split, 0.5)["image_id"][:] for split in ("train", "validation"))
    assert not set(train) & set(validation) and len(train) + len(validation) == 36
    assert all(names.count(name) == 3 for names in (train, validation) for name in names)


def test_a_picture_keeps_its_side_when_lines_are_reordered_and_others_come():
    names = [f"{i}.png" for i in range(100)]
    out = held_out(names, 0.2, "")
    assert out == held_out(names[::-1], 0.2, "")
    assert out == held_out([*names, *[f"new_{i}.png" for i in range(50)]], 0.2, "") & set(names)
    assert 10 <= len(out) <= 30


def test_at_least_one_picture_is_held_out_and_one_is_left():
    assert len(held_out(["a", "b", "c"], 1e-9, "")) == 1
    assert len(held_out(["a", "b", "c"], 0.999999, "")) == 2


def test_a_single_picture_cannot_be_split(tmp_path):
    folder = write(tmp_path / "f", picture("a.png"))
    with pytest.raises(ValueError, match="validation_fraction=0"):
        read(folder, validation_fraction=0.1)
    assert len(read(folder, validation_fraction=0)) == 1


@pytest.mark.parametrize("rows", ["caption", "image"])
def test_streaming_gives_the_rows_of_the_prepared_one(tmp_path, rows):
    folder = write(tmp_path / "f", *[picture(f"{i}.png", caption=["x", f"{i}"]) for i in range(9)])
    for split in ("train", "validation"):
        streamed = list(build(folder, rows=rows).as_streaming_dataset(split))
        assert streamed == list(read(folder, split, 0.1, rows=rows)) and streamed


BOX = {"bbox": [[0, 0, 2, 2]], "categories": ["cat"]}
BROKEN = {
    "half_a_line": ('{"file_name": "a.png",', "not JSON"),
    "a_list": ('["a.png"]', "not an object"),
    "no_file_name": ('{"caption": "A cat."}', "no file_name; a line is, as:"),
    "no_such_picture": ('{"file_name": "b.png", "caption": "A cat."}', "there is no picture .*b.png"),
    "above": ('{"file_name": "x/../../secret.png", "caption": "A cat."}', "../secret.png is outside"),
    "absolute": ('{"file_name": "/secret.png", "caption": "A cat."}', "/secret.png is outside"),
    "no_caption": (picture("a.png", caption=""), "a.png has no caption: expected one of caption, text"),
    "a_blank_among_captions": (
        picture("a.png", caption=["A cat.", " "]),
        "caption must be a string or a list of strings",
    ),
    "a_number": (picture("a.png", caption=5), "caption must be .* is 5"),
    "two_names": (picture("a.png", text="A dog."), "caption and text mean the same; keep one"),
    "two_prompts": (picture("a.png", prompt=["x", "y"]), "2 prompts"),
    "objects_text": (picture("a.png", objects="cat"), "objects must be"),
    "objects_uneven": (picture("a.png", objects=BOX | {"categories": []}), "objects has 1 bbox and 0 categories"),
    "box_of_three": (picture("a.png", objects=BOX | {"bbox": [[0, 0, 2]]}), r"'cat' with bbox \[0, 0, 2\]"),
    "box_without_area": (picture("a.png", objects=BOX | {"bbox": [[0, 0, 0, 2]]}), "width > 0"),
    "category_number": (picture("a.png", objects=BOX | {"categories": [3]}), "object 3 with bbox"),
    **{
        f"box_with_{number}": (picture("a.png", objects=BOX | {"bbox": [[number, 0, 2, 2]]}), "'cat' with bbox")
        for number in (float("nan"), float("inf"), 1e308, 10**400, True, "1", None, [1])
    },
    "box_without_end": (picture("a.png", objects=BOX | {"bbox": [[0, 0, float("nan"), 2]]}), "'cat' with bbox"),
    "file_name_number": ('{"file_name": 5, "caption": "A cat."}', "no file_name"),
    "file_name_true": ('{"file_name": true, "caption": "A cat."}', "no file_name"),
    "file_name_with_nul": (r'{"file_name": "a\u0000.png", "caption": "A cat."}', "there is no picture"),
    "file_name_a_folder": ('{"file_name": "..", "caption": "A cat."}', "there is no picture"),
    "caption_true": (picture("a.png", caption=True), "caption must be .* is True"),
    "caption_nan": (picture("a.png", caption=float("nan")), "caption must be .* is nan"),
    "caption_object": (picture("a.png", caption={"en": "A cat."}), "caption must be .* is {'en'"),
    "caption_blank": (picture("a.png", caption=" \n"), "caption must be .* none blank"),
    "captions_in_captions": (picture("a.png", caption=[["A cat."]]), "caption must be"),
    "half_a_character": (picture("a.png", caption="a \ud83d"), "not JSON .*surrogates not allowed"),
    "brackets_in_brackets": ("[" * 100_000, "not JSON .maximum recursion"),
    "a_number_of_5000_digits": ('{"file_name": %s}' % ("1" * 5000), "not JSON .Exceeds the limit"),
    "null": ("null", "not an object"),
}


@pytest.mark.parametrize("line, said", BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_is_an_error_that_names_file_and_line(tmp_path, line, said):
    folder = write(tmp_path / "f", picture("a.png"), "", line)
    Pillow.new("RGB", (8, 6)).save(tmp_path / "secret.png")
    for how in (read, lambda folder: list(build(folder).as_streaming_dataset("train"))):
        with pytest.raises(ValueError, match=f"metadata.jsonl, line 3: .*{said}"):
            how(folder)


@pytest.mark.parametrize(
    "said", ["<image>", "a\0b\x07c\x1b[2J", "word " * 9_999 + "word", "ein Löwe 🦁", "</s>", "a\n b"]
)
@pytest.mark.parametrize("file", ["metadata.jsonl", "metadata.csv"])
def test_what_a_caption_holds_is_kept(tmp_path, said, file):
    folder = write(tmp_path / "f", picture("a.png", caption=said))
    if file == "metadata.csv":
        (folder / "metadata.jsonl").unlink()
        write(folder, f'file_name,caption\na.png,"{said}"', file=file)
    assert read(folder)["references"][:] == [[said]]


def test_a_table_with_two_columns_of_one_name_is_refused_unless_they_have_none(tmp_path):
    write(tmp_path / "f", picture("a.png"))
    (tmp_path / "f" / "metadata.jsonl").unlink()
    write(tmp_path / "f", "file_name,caption,,\na.png,A cat.,,\n", file="metadata.csv")
    assert read(tmp_path / "f")["references"][:] == [["A cat."]]
    write(tmp_path / "f", "file_name,caption,caption\na.png,A cat.,A dog.\n", file="metadata.csv")
    with pytest.raises(
        ValueError, match=r"metadata.csv, line 1: two columns have one name, in file_name, caption, cap"
    ):
        read(tmp_path / "f")


def test_a_cell_of_a_table_that_is_too_long_or_ill_quoted_names_the_line(tmp_path):
    write(tmp_path / "f", picture("a.png"))
    (tmp_path / "f" / "metadata.jsonl").unlink()
    for cell, said in (("long " * 30_000, "field larger than field limit"), ('"A "cat."', "expected after")):
        write(tmp_path / "f", f"file_name,caption\na.png,A cat.\na.png,{cell}\n", file="metadata.csv")
        with pytest.raises(ValueError, match=rf"metadata.csv, line 3: not CSV \(.*{said}"):
            read(tmp_path / "f")


def test_a_table_with_too_many_cells_names_the_line(tmp_path):
    write(tmp_path / "f", picture("a.png"))
    (tmp_path / "f" / "metadata.jsonl").unlink()
    write(tmp_path / "f", "file_name,caption\na.png,A cat.\na.png,A cat, asleep.\n", file="metadata.csv")
    with pytest.raises(ValueError, match=r"metadata.csv, line 3: more cells than the 2 columns"):
        read(tmp_path / "f")


def test_metadata_that_is_empty_or_not_utf8_is_an_error_that_names_it(tmp_path):
    folder = write(tmp_path / "f", "\n")
    with pytest.raises(ValueError, match="metadata.jsonl has no rows"):
        read(folder)
    for encoding in ("latin-1", "utf-16"):
        (folder / "metadata.jsonl").write_bytes('{"file_name": "café.png"}'.encode(encoding))
        with pytest.raises(ValueError, match="metadata.jsonl is not UTF-8"):
            read(folder)


def test_a_folder_without_metadata_says_what_to_write(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no metadata.jsonl .*\{"file_name": "cat.jpg", "caption": "A cat'):
        build(tmp_path)


def test_metadata_that_would_be_overlooked_is_an_error(tmp_path):
    write(tmp_path / "twice", picture("a.png"))
    write(tmp_path / "twice", "file_name,caption", file="metadata.csv")
    with pytest.raises(ValueError, match="metadata.jsonl and .*metadata.csv: keep one"):
        build(tmp_path / "twice")
    write(tmp_path / "val" / "train", picture("a.png"))
    write(tmp_path / "val" / "val", picture("a.png"))
    with pytest.raises(ValueError, match=r"val/metadata.jsonl belongs to no split: .* train, validation, test"):
        build(tmp_path / "val")
    write(tmp_path / "both", picture("a.png"))
    write(tmp_path / "both" / "train", picture("a.png"))
    with pytest.raises(ValueError, match="keep the one file, or one in each split's folder"):
        build(tmp_path / "both")


def test_a_fraction_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="below 1; got 1.5"):
        build(tmp_path, validation_fraction=1.5)


def test_a_cache_is_not_used_for_other_metadata_or_settings(tmp_path):
    folder = write(tmp_path / "f", picture("a.png"), picture("b.png"))
    before = build(folder).cache_dir
    assert before == build(folder).cache_dir
    assert before != build(folder, validation_fraction=0.5).cache_dir
    assert before != build(folder, rows="image").cache_dir
    os.utime(folder / "metadata.jsonl", ns=(0, 1))
    assert before != build(folder).cache_dir


@pytest.mark.real_data
def test_real_pictures_are_held_out_by_name(real_data, tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    for path in sorted((real_data / "coco2017" / "val2017").glob("*.jpg")):
        (folder / path.name).symlink_to(path.resolve())
    write(folder, *[picture(path.name) for path in sorted(folder.glob("*.jpg"))])
    train, validation = (read(folder, split, 0.3) for split in ("train", "validation"))
    assert len(train) + len(validation) == 10 and not set(train["image_id"]) & set(validation["image_id"])
    assert all(row["images"][0].mode == "RGB" for row in [*train, *validation])
