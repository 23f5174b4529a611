"""Flickr8k from disk: both official layouts in miniature, whole and broken; and real pictures laid out like it."""

import csv
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
from datasets import Image, List
from PIL import Image as Pillow

from datasets_scripts import load_rows
from datasets_scripts.canonical import PROMPT
from datasets_scripts.flickr8k import QUESTIONS, Flickr8k
from tests.conftest import ROOT


NAMES = [f"{1000268201 + i}_693b08cb0e.jpg" for i in range(16)]
# as the authors have it: in tokens, with a space before the full stop
SAID = {name: [f"A dog , number {i} , runs .", f'A sign says " {i} " .', f"Dog {i}"] for i, name in enumerate(NAMES)}
WRITTEN = {name: [f"A dog, number {i}, runs.", f'A sign says "{i}".', f"Dog {i}"] for i, name in enumerate(NAMES)}
OFFICIAL = {"train": NAMES[:12], "dev": NAMES[12:14], "test": NAMES[14:]}


def pictures(folder: Path, names=NAMES) -> None:
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        Pillow.new("RGB", (8, 6), (i, 0, 0)).save(folder / name)


def splits(folder: Path, files: dict[str, list[str]] = OFFICIAL) -> None:
    for short, names in files.items():
        (folder / f"Flickr_8k.{short}Images.txt").write_text("".join(f"{name}\n" for name in names))


def original(root: Path, said: dict[str, list[str]] = SAID, text: str = ".", folder: str = "Flicker8k_Dataset") -> Path:
    """As the authors' two archives lie unpacked; pictures are copied or made."""
    (root / text).mkdir(parents=True, exist_ok=True)
    lines = [f"{name}#{i}\t{caption}\n" for name, captions in said.items() for i, caption in enumerate(captions)]
    (root / text / "Flickr8k.token.txt").write_text("".join(lines))
    pictures(root / folder)
    splits(root / text)
    return root


def kaggle(root: Path, said: dict[str, list[str]] = SAID) -> Path:
    pictures(root / "Images")
    with open(root / "captions.txt", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("image", "caption"))
        table.writerows((name, caption) for name, captions in said.items() for caption in captions)
    return root


def build(folder: Path, **config) -> Flickr8k:
    return Flickr8k(data_dir=str(folder), cache_dir=str(folder.parent / "cache"), **config)


def prepared(folder: Path, split: str = "train", **config):
    builder = build(folder, **config)
    builder.download_and_prepare()
    return builder.as_dataset(split)


def streamed(folder: Path, split: str = "train", **config) -> list[dict]:
    return list(build(folder, **config).as_streaming_dataset(split))


def asked(rows) -> list[str]:
    return [row["prompt"][0]["content"] for row in rows]


def answered(rows) -> list[str]:
    return [row["completion"][0]["content"] for row in rows]


def bare(rows) -> list[dict]:
    """Rows with pixels in place of pictures: those of two copies lie in two places."""
    return [row | {"images": [picture.tobytes() for picture in row["images"]]} for row in rows]


@pytest.fixture(params=["original", "kaggle"])
def folder(request, tmp_path) -> Path:
    return {"original": original, "kaggle": kaggle}[request.param](tmp_path / request.param)


def test_a_caption_is_a_row_and_all_captions_of_its_picture_are_its_references(tmp_path):
    rows = prepared(original(tmp_path / "f"))
    assert rows["image_id"][:] == [name for name in NAMES[:12] for _ in range(3)]
    assert answered(rows) == [caption for name in NAMES[:12] for caption in WRITTEN[name]]
    assert rows["references"][:] == [WRITTEN[name] for name in NAMES[:12] for _ in range(3)]
    assert rows[4]["prompt"][0]["role"] == "user" and rows[4]["completion"][0]["role"] == "assistant"
    assert rows[4]["images"][0].size == (8, 6) and rows[4]["regions"] == []


def test_rows_to_be_judged_by_are_one_a_picture_and_ask_the_same(folder):
    for split in ("train", "validation", "test"):
        rows = prepared(folder, split, rows="image")
        assert len(set(rows["image_id"])) == len(rows)
        assert set(asked(rows)) == {PROMPT} == {"Describe the picture."}
        assert rows["references"][:] == [WRITTEN[name] for name in rows["image_id"]]
        assert answered(rows) == [WRITTEN[name][0] for name in rows["image_id"]]
    assert set(asked(prepared(folder, rows="image", prompt="Well?"))) == {"Well?"}


def test_rows_to_train_on_ask_many_questions_of_which_one_is_that_of_the_judges(folder):
    rows = prepared(folder)
    questions = asked(rows)
    assert set(questions) <= set(QUESTIONS) and len(set(questions)) > 6
    assert len(set(zip(rows["image_id"], questions, strict=True))) > 2 * len(set(rows["image_id"])), "one a caption"
    assert len(set(QUESTIONS)) == len(QUESTIONS) == 12 and QUESTIONS[0] == PROMPT
    rows = prepared(folder, questions=False)
    assert set(asked(rows)) == {PROMPT} and answered(rows) == answered(prepared(folder))
    assert set(asked(prepared(folder, questions=False, prompt="Well?"))) == {"Well?"}


def test_a_caption_keeps_its_question_whatever_else_is_in_the_file(tmp_path):
    def questions(folder: Path) -> dict[str, str]:
        rows = prepared(folder)
        return dict(zip(answered(rows), asked(rows), strict=True))

    whole = questions(original(tmp_path / "whole"))
    said = {name: ["", *SAID[name][1:]] for name in reversed(NAMES[3:])}  # the first caption blank: numbers stay
    assert questions(original(tmp_path / "part", said)).items() < whole.items()


def test_rows_are_the_same_in_another_process(tmp_path):
    folder = kaggle(tmp_path / "f")
    program = (
        "import json, sys; from datasets_scripts.flickr8k import Flickr8k\n"
        "rows = Flickr8k(data_dir=sys.argv[1], cache_dir=sys.argv[2]).as_streaming_dataset('train')\n"
        "print(json.dumps([[row['image_id'], row['prompt'], row['completion']] for row in rows]))"
    )
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "other")]
    other = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    ours = [[row["image_id"], row["prompt"], row["completion"]] for row in prepared(folder)]
    assert json.loads(other.stdout.splitlines()[-1]) == ours


@pytest.mark.parametrize("rows", ["caption", "image"])
@pytest.mark.parametrize("with_files", [True, False])
def test_both_layouts_give_equal_rows(tmp_path, rows, with_files):
    one = original(tmp_path / "original", text="Flickr8k_text", folder="Flickr8k_Dataset")
    other = kaggle(tmp_path / "kaggle")
    if with_files:
        splits(other)
    else:
        for file in (one / "Flickr8k_text").glob("Flickr_8k.*"):
            file.unlink()
    for split in ("train", "validation", "test"):
        assert bare(prepared(one, split, rows=rows)) == bare(prepared(other, split, rows=rows))


@pytest.mark.parametrize("rows", ["caption", "image"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_streaming_gives_the_rows_of_the_prepared_one(folder, split, rows):
    rows_streamed = streamed(folder, split, rows=rows)
    assert rows_streamed == list(prepared(folder, split, rows=rows)) and rows_streamed


def test_a_stream_can_be_sent_to_another_process(folder):
    stream = build(folder).as_streaming_dataset("train")
    first = list(stream)
    assert list(pickle.loads(pickle.dumps(stream))) == first


@pytest.mark.parametrize("streaming", [False, True])
def test_the_door_to_every_dataset_opens_it(folder, streaming, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder.parent / "cache")
    rows = load_rows("flickr8k", "train", data_dir=str(folder), streaming=streaming, questions=False)
    assert next(iter(rows))["images"][0]["bytes"] is None and set(asked(rows)) == {PROMPT}
    with pytest.raises(ValueError, match="no split 'dev'; it has train, validation, test"):
        load_rows("flickr8k", "dev", data_dir=str(folder), streaming=streaming)
    with pytest.raises(ValueError, match="dataset: flickr8k needs data_dir"):
        load_rows("flickr8k", "train", streaming=streaming)
    with pytest.raises(ValueError, match="'flickr8k' has the canonical ones"):
        load_rows("flickr8k", "train", data_dir=str(folder), columns={"image": "a", "caption": "b"})


def test_official_splits_are_kept(tmp_path, caplog):
    folder = original(tmp_path / "f")
    found = {split: prepared(folder, split, rows="image")["image_id"][:] for split in ("train", "validation", "test")}
    assert found == {"train": NAMES[:12], "validation": NAMES[12:14], "test": NAMES[14:]}
    assert "hash" not in caplog.text


def test_one_official_split_alone_is_enough(tmp_path):
    folder = original(tmp_path / "f")
    for short in ("train", "dev"):
        (folder / f"Flickr_8k.{short}Images.txt").unlink()
    assert list(build(folder).as_streaming_dataset()) == ["test"]


def test_the_text_files_of_the_authors_come_before_kaggles(tmp_path):
    folder = original(tmp_path / "f", text="Flickr8k_text")
    (folder / "captions.txt").write_text("not read")
    assert len(prepared(folder)) == 36


def test_without_official_splits_a_hash_of_names_decides_and_the_log_says_so(tmp_path, caplog):
    folder = kaggle(tmp_path / "f")
    found = {split: prepared(folder, split, rows="image")["image_id"][:] for split in ("train", "validation", "test")}
    assert sorted(name for names in found.values() for name in names) == NAMES
    sizes = ", ".join(f"{len(names)} {split}" for split, names in found.items())
    assert f"captions.txt: no Flickr_8k.trainImages.txt, so split by a hash of names ({sizes})" in caplog.text
    assert found["test"] != prepared(folder, "test", rows="image", split_seed=1)["image_id"][:]


def test_a_split_by_hash_is_six_to_one_to_one_and_does_not_depend_on_other_pictures(tmp_path):
    names = [f"{i}.jpg" for i in range(400)]
    folder = kaggle(tmp_path / "f", {name: ["x"] for name in names})
    shutil.rmtree(folder / "Images")
    (folder / "Images").mkdir()
    for name in names:
        (folder / "Images" / name).touch()

    def sides() -> dict[str, str]:
        rows = {split: build(folder).as_streaming_dataset(split) for split in ("train", "validation", "test")}
        rows = {split: stream.decode(False) for split, stream in rows.items()}
        return {row["image_id"]: split for split, stream in rows.items() for row in stream}

    before = sides()
    count = {split: list(before.values()).count(split) for split in ("train", "validation", "test")}
    assert sum(count.values()) == 400 and 35 < count["validation"] < 65 and 35 < count["test"] < 65, count
    for name in names[::3]:
        (folder / "Images" / name).unlink()
    after = sides()
    assert len(after) == 266 and after.items() < before.items()


def test_three_pictures_make_three_splits_and_two_do_not(tmp_path):
    folder = kaggle(tmp_path / "three", {name: SAID[name] for name in NAMES[:3]})
    assert [len(prepared(folder, split, rows="image")) for split in ("train", "validation", "test")] == [1, 1, 1]
    folder = kaggle(tmp_path / "two", {name: SAID[name] for name in NAMES[:2]})
    with pytest.raises(ValueError, match="captions.txt: 2 pictures with captions there cannot be split"):
        prepared(folder)


def test_pictures_stay_where_they_are_and_arrow_holds_their_absolute_paths(tmp_path, monkeypatch):
    original(tmp_path / "f")
    monkeypatch.chdir(tmp_path)
    stored = prepared(Path("f")).cast_column("images", List(Image(decode=False)))[0]["images"][0]
    assert stored == {"bytes": None, "path": str(tmp_path / "f" / "Flicker8k_Dataset" / NAMES[0])}


# --- captions as they come


CAPTIONS = {
    "A girl going into a wooden building .": "A girl going into a wooden building.",
    "A dog is running in the snow": "A dog is running in the snow",
    "  two  spaces\u00a0and a tail . \u3000": "two spaces and a tail.",
    "A dog near the shore , a red ball next to it .": "A dog near the shore, a red ball next to it.",
    "Tan dog , about to bite gray dog 's ear .": "Tan dog, about to bite gray dog's ear.",
    "They do n't run ; they ca n't !": "They don't run; they can't!",
    'A shopping bag labeled " sale " stands .': 'A shopping bag labeled "sale" stands.',
    'a sign that says " active . "': 'a sign that says "active."',
    'The dog with the " 4 " jersey and the " 5 " one': 'The dog with the "4" jersey and the "5" one',
    '" A girl on rollerskates .': "A girl on rollerskates.",
    'A girl on rollerskates . "': "A girl on rollerskates.",
    '"A girl on rollerskates ."': "A girl on rollerskates.",
    'A 6" pipe .': 'A 6" pipe.',
    'A 6" pipe on " sale " .': 'A 6" pipe on " sale ".',
    "an ( almost fish eye ) lens": "an (almost fish eye) lens",
    "A jersey with # 7 on it .": "A jersey with # 7 on it.",
    "at&t , blue & black ; <image> {} </s> \\n": "at&t, blue & black; <image> {} </s> \\n",
    "ein Löwe 🦁 .": "ein Löwe 🦁.",
    "A dog the size of a .45 pistol": "A dog the size of a .45 pistol",
    "Wait ...": "Wait...",
    "...": "",
    " . ": "",
    '" "': "",
}


@pytest.mark.parametrize("layout", [original, kaggle])
def test_captions_are_put_down_as_people_write(tmp_path, layout, caplog):
    folder = layout(tmp_path / "f", SAID | {NAMES[0]: list(CAPTIONS)})
    splits(folder)
    rows = prepared(folder, rows="image")
    assert rows[0]["references"] == [caption for caption in CAPTIONS.values() if caption]
    assert f"3 blank captions skipped, of pictures ({NAMES[0]}, {NAMES[0]}, {NAMES[0]})" in caplog.text


def test_metrics_find_the_same_words_in_captions_as_they_came_and_as_they_are_put_down():
    bleu = evaluate.load(str(ROOT / "metrics" / "bleu"))
    pairs = [(raw, put) for raw, put in CAPTIONS.items() if len(put.split()) > 4]
    scores = bleu.compute(predictions=[put for _, put in pairs], references=[[raw] for raw, _ in pairs])
    assert scores["bleu_4"] == pytest.approx(1) and len(pairs) > 9


def test_line_ends_marks_and_blank_lines_of_other_systems_are_passed_over(folder):
    expected = [list(prepared(folder, split)) for split in ("train", "validation", "test")]
    for file in folder.glob("*.txt"):
        text = file.read_bytes()
        for changed in (
            b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"),
            text.replace(b"\n", b" \t\n\n \n"),
            text.replace(b"\n", b"\r"),
            text.rstrip(b"\n"),
        ):
            file.write_bytes(changed)
            assert [list(prepared(folder, split)) for split in ("train", "validation", "test")] == expected


def test_a_name_that_is_listed_twice_in_one_split_is_there_once(tmp_path):
    folder = original(tmp_path / "f")
    splits(folder, {"test": NAMES[14:] * 2})
    assert prepared(folder, "test", rows="image")["image_id"][:] == NAMES[14:]


def test_the_caption_file_may_come_back_to_a_picture(tmp_path):
    folder = original(tmp_path / "f")
    file = folder / "Flickr8k.token.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[1:] + lines[:1]))
    assert prepared(folder, rows="image")[0]["references"] == [WRITTEN[NAMES[0]][i] for i in (1, 2, 0)]


# --- what is not there


def test_the_picture_that_flickr8k_itself_lacks_is_named_in_the_log(tmp_path, caplog):
    lacking = "2258277193_586949ec62.jpg.1"
    folder = original(tmp_path / "f", {lacking: ["people waiting for the subway"] * 5} | SAID)
    with caplog.at_level(logging.WARNING):
        assert lacking not in prepared(folder)["image_id"]
    wanted = f"Flickr8k.token.txt: 1 pictures skipped that are not in {folder / 'Flicker8k_Dataset'} ({lacking})"
    assert caplog.text.count(wanted) == 1, "once, not once a split"


def test_missing_pictures_are_counted_and_the_first_few_named(folder, caplog):
    (pictures_folder,) = (path for path in folder.iterdir() if path.is_dir())
    for name in NAMES[:5]:
        (pictures_folder / name).unlink()
    (pictures_folder / NAMES[4]).mkdir()  # a folder with the name of a picture is none
    found = {name for split in ("train", "validation", "test") for name in prepared(folder, split)["image_id"]}
    assert found == set(NAMES[5:])
    assert f"5 pictures skipped that are not in {pictures_folder} ({', '.join(NAMES[:3])}, …)" in caplog.text


def test_pictures_without_captions_are_counted(tmp_path, caplog):
    said = {name: SAID[name] for name in NAMES[1:]} | {NAMES[1]: [" .", ""]}
    folder = original(tmp_path / "f", said)
    (folder / "Flicker8k_Dataset" / "Thumbs.db").touch()
    assert prepared(folder, rows="image")["image_id"][:] == NAMES[2:12]
    assert f"2 pictures without captions left out ({NAMES[0]}, {NAMES[1]})" in caplog.text
    assert f"Flickr_8k.trainImages.txt: 2 names without captions left out ({NAMES[0]}, {NAMES[1]})" in caplog.text
    assert f"2 blank captions skipped, of pictures ({NAMES[1]}, {NAMES[1]})" in caplog.text


def test_pictures_in_no_split_are_counted(tmp_path, caplog):
    folder = original(tmp_path / "f")
    splits(folder, {"train": NAMES[:11]})
    assert len(prepared(folder, rows="image")) == 11
    assert f"1 pictures left out that are in no split ({NAMES[11]})" in caplog.text


def test_a_split_without_any_picture_is_an_error(folder):
    (pictures_folder,) = (path for path in folder.iterdir() if path.is_dir())
    splits(folder)
    for name in NAMES[14:]:
        (pictures_folder / name).unlink()
    for read in (prepared, lambda folder: streamed(folder, "test")):
        with pytest.raises(ValueError, match=f"txt: no picture of test is in {pictures_folder} and has a caption"):
            read(folder)


# --- what contradicts itself


TOKENS = {
    "no_tab": (b"a.jpg#0 A dog .", "line 2: expected NAME.jpg#0, a tab, and a caption; is a.jpg#0 A dog ."),
    "no_number": (b"a.jpg\tA dog .", "line 2: expected NAME.jpg#0"),
    "an_empty_number": (b"a.jpg#\tA dog .", "line 2: expected NAME.jpg#0"),
    "no_name": (b"#0\tA dog .", "line 2: expected NAME.jpg#0"),
    "two_records_on_a_line": (b"a.jpg#0\tA dog .a.jpg#1\tA cat .", "line 2: expected NAME.jpg#0"),
    "latin_1": ("a.jpg#0\tcafé".encode("latin-1"), "line 2: not UTF-8 .*; save it as UTF-8"),
    "half_a_character": (b"a.jpg#0\tcaf\xc3", "line 2: not UTF-8"),
    "a_table": (b"a.jpg,A dog .", "line 2: expected NAME.jpg#0"),
    "a_very_long_line": (b"x" * 1_000_000, "line 2: expected NAME.jpg#0.* is x{100}$"),
}
TABLES = {
    "unquoted_commas": (b"a.jpg,A dog , running", "line 2: expected NAME.jpg,.*; is a.jpg,A dog , running"),
    "a_quote_not_closed": (b'a.jpg,"A dog .', r"line 2: not CSV \(unexpected end of data\): a.jpg,\"A dog ."),
    "a_quote_closed_early": (b'a.jpg,"A dog" runs', "line 2: not CSV"),
    "no_caption": (b"a.jpg", "line 2: expected NAME.jpg,"),
    "no_name": (b",A dog .", "line 2: expected NAME.jpg,"),
    "latin_1": ("a.jpg,café".encode("latin-1"), "line 2: not UTF-8 .*; save it as UTF-8"),
    "tokens": (b"a.jpg#0\tA dog .", "line 2: expected NAME.jpg,"),
}
BROKEN = [pytest.param(original, *case, id=f"original_{name}") for name, case in TOKENS.items()]
BROKEN += [pytest.param(kaggle, *case, id=f"kaggle_{name}") for name, case in TABLES.items()]


@pytest.mark.parametrize("layout, line, said", BROKEN)
def test_a_line_that_cannot_be_read_is_an_error_that_names_file_and_line(tmp_path, layout, line, said):
    folder = layout(tmp_path / "f")
    file = folder / ("captions.txt" if layout is kaggle else "Flickr8k.token.txt")
    first, *rest = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([first, line, *rest]))
    for read in (prepared, streamed):
        with pytest.raises(ValueError, match=f"{file}, {said}"):
            read(folder)


@pytest.mark.parametrize("header", ["image_name| caption", "1.jpg,A dog .", "caption,image", "a.jpg#0\tA dog ."])
def test_a_table_under_another_header_is_an_error(tmp_path, header):
    folder = kaggle(tmp_path / "f")
    file = folder / "captions.txt"
    file.write_text("\n" + file.read_text().replace("image,caption", header))
    with pytest.raises(ValueError, match="captions.txt, line 2: expected the header image,caption; is "):
        prepared(folder)


def test_stray_quotes_and_spaces_in_a_table_do_no_harm(tmp_path):
    folder = kaggle(tmp_path / "f", {name: ["x"] for name in NAMES[1:]})
    splits(folder)
    with open(folder / "captions.txt", "a") as file:
        file.write(f'{NAMES[0]} , "A dog , asleep ." \n{NAMES[0]},A 6" pipe .\n{NAMES[0]},"""Hi"" , he said ."\n')
    assert prepared(folder, rows="image")[-1]["references"] == ["A dog, asleep.", 'A 6" pipe.', '"Hi", he said.']


def test_a_picture_in_two_splits_is_an_error_that_names_both_files(tmp_path):
    folder = original(tmp_path / "f")
    splits(folder, {"test": [*NAMES[14:], NAMES[3]]})
    said = rf"Flickr_8k.testImages.txt, line 3: {NAMES[3]} is in .*Flickr_8k.trainImages.txt too"
    for read in (prepared, streamed):
        with pytest.raises(ValueError, match=said):
            read(folder)


def test_a_split_file_that_is_not_utf_8_is_an_error_that_names_its_line(tmp_path):
    folder = original(tmp_path / "f")
    (folder / "Flickr_8k.devImages.txt").write_bytes(b"a.jpg\n\xff\xfe\n")
    with pytest.raises(ValueError, match="Flickr_8k.devImages.txt, line 2: not UTF-8"):
        prepared(folder)


def test_names_that_lead_out_of_the_folder_lead_nowhere(tmp_path, caplog):
    outside = tmp_path / "f" / "secret.jpg"
    names = ["../secret.jpg", str(outside), "."]
    folder = original(tmp_path / "f", SAID | {name: ["A secret ."] for name in names})
    splits(folder, {"train": NAMES[:12] + names})
    Pillow.new("RGB", (8, 6)).save(outside)
    assert set(prepared(folder)["image_id"]) == set(NAMES[:12])
    assert "3 pictures skipped" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_caption_file_is_an_error(folder, content):
    (file,) = [path for name in ("captions.txt", "Flickr8k.token.txt") if (path := folder / name).is_file()]
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file}: "):
        prepared(folder)


def test_a_folder_that_is_not_flickr8k_says_what_was_expected_and_what_was_found(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "captions.txt").touch()
    with pytest.raises(FileNotFoundError) as raised:
        build(tmp_path)
    for word in ("Flicker8k_Dataset or Flickr8k_Dataset or Images", "Flickr8k.token.txt", "found captions.txt, photos"):
        assert word in str(raised.value)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        build(tmp_path / "nowhere")
    pictures(tmp_path / "f" / "Images")
    with pytest.raises(FileNotFoundError, match="found Images"):
        build(tmp_path / "f")


def test_two_folders_of_pictures_must_be_chosen_between(tmp_path):
    folder = original(tmp_path / "f")
    (folder / "Images").mkdir()
    with pytest.raises(ValueError, match="Flicker8k_Dataset and .*Images: keep one"):
        build(folder)


def test_a_config_that_cannot_be_is_refused_at_once(folder):
    with pytest.raises(ValueError, match="rows must be one of caption, image; got 'word'"):
        build(folder, rows="word")
    with pytest.raises(ValueError, match="data_dir="):
        Flickr8k()


def test_a_cache_is_not_used_for_other_files_or_settings(tmp_path):
    folder = original(tmp_path / "f")
    before = build(folder).cache_dir
    assert before == build(folder, questions=True).cache_dir
    for setting in ({"questions": False}, {"rows": "image"}, {"prompt": "Well?"}, {"split_seed": 1}):
        assert before != build(folder, **setting).cache_dir
    for name in ("Flickr8k.token.txt", "Flickr_8k.testImages.txt", "Flicker8k_Dataset"):
        os.utime(folder / name, ns=(0, 1))
        after = build(folder).cache_dir
        assert after != before
        before = after


# --- real pictures


def lay_out_as_flickr8k(coco: Path, root: Path, table: bool) -> dict[str, list[str]]:
    """COCO's captioned pictures in Flickr8k's layout (Kaggle's: `table`), linked; returns their captions."""
    folder = root / ("Images" if table else "Flicker8k_Dataset")
    folder.mkdir(parents=True)
    said: dict[str, list[str]] = {}
    for short, coco_split in (("train", "train2017"), ("test", "val2017")):
        content = json.loads((coco / "annotations" / f"captions_{coco_split}.json").read_text())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for annotation in content["annotations"]:
            said.setdefault(names[annotation["image_id"]], []).append(" ".join(annotation["caption"].split()))
        names = [name for name in names.values() if name in said]
        for name in names:
            (folder / name).symlink_to(coco / coco_split / name)
        if not table:
            splits(root, {short: names[:-3], "dev": names[-3:]} if short == "train" else {short: names})
    if table:
        with open(root / "captions.txt", "w", newline="") as file:
            csv.writer(file).writerows([("image", "caption"), *((name, one) for name in said for one in said[name])])
    else:
        lines = [f"{name}#{i}\t{one}\n" for name in said for i, one in enumerate(said[name])]
        (root / "Flickr8k.token.txt").write_text("".join(lines))
    return said


@pytest.mark.real_data
@pytest.mark.parametrize("table", [True, False])
def test_real_pictures_carry_their_five_captions(real_data, tmp_path, table, caplog):
    said = lay_out_as_flickr8k(real_data / "coco2017", tmp_path / "f", table)
    rows = {split: prepared(tmp_path / "f", split, rows="image") for split in ("train", "validation", "test")}
    if not table:
        assert [len(some) for some in rows.values()] == [30, 3, 10]
    assert {name for some in rows.values() for name in some["image_id"]} == set(said) and len(said) == 43
    for some in rows.values():
        for row in some:
            assert row["images"][0].mode == "RGB" and min(row["images"][0].size) > 100
            kept = [caption.replace(" ", "") for caption in said[row["image_id"]]]
            assert [caption.replace(" ", "") for caption in row["references"]] == kept and len(kept) == 5
    train = prepared(tmp_path / "f")
    assert len(train) == 5 * len(rows["train"]) and set(asked(train)) == set(QUESTIONS)
    assert answered(streamed(tmp_path / "f")) == answered(train)
    assert "skipped" not in caplog.text and "left out" not in caplog.text
