"""Conceptual Captions in miniature: Google's two tables, or the Hub's parquet, and pictures laid where the download lays them."""

import json
import logging
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_scripts import load_rows, split_names
from datasets_scripts.conceptual_captions import FILES, ConceptualCaptions, ConceptualCaptionsConfig
from datasets_scripts.open_picture import open_picture
from datasets_scripts.picture_links import Links, name_of
from tests.conftest import picture


TRAIN = [f"https://host{i % 7}.example/{i}.jpg" for i in range(60)]
HELD = [f"https://held{i % 3}.example/{i}.jpg" for i in range(40)]
SIZES = {"num_train": 10, "num_eval": 4}


def tables(root: Path, train: list[str] | None = None, held: list[str] | None = None) -> Path:
    root.mkdir(exist_ok=True)
    lines = {
        "train": train or [f"said of {url}\t{url}" for url in TRAIN],
        "validation": held or [f"said of {url}\t{url}" for url in HELD],
    }
    for name, some in lines.items():
        (root / FILES[name]).write_text("".join(f"{line}\n" for line in some))
    return root


def arrive(root: Path, urls=(*TRAIN, *HELD)) -> None:
    """The pictures, as if downloaded."""
    for i, url in enumerate(urls):
        path = Links(root).path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path, "PNG")


def die(root: Path, urls: list[str], why: str = "404") -> None:
    with (root / "links.jsonl").open("a") as file:
        file.writelines(json.dumps({"url": url, "dead": why}) + "\n" for url in urls)


def order(urls: list[str], seed: int = 0) -> list[str]:
    return sorted(urls, key=lambda url: at(url, seed))


def at(url: str, seed: int = 0) -> float:
    return int(sha256(f"conceptual_captions {seed} {url}".encode()).hexdigest()[:12], 16) / 16**12


@pytest.fixture
def rows_of(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def rows_of(folder: Path, split: str = "train", rows: str = "caption", **options):
        return load_rows("conceptual_captions", split, rows, data_dir=str(folder), **SIZES | options)

    return rows_of


def test_a_caption_is_a_row_with_its_picture_and_its_link_as_its_name(tmp_path, rows_of):
    root = tables(tmp_path / "cc")
    arrive(root)
    rows = rows_of(root)
    assert rows["image_id"][:] == order(TRAIN)[:10]
    row = rows[3]
    assert row["images"] == [{"bytes": None, "path": str(root / "images" / name_of(row["image_id"]))}]
    assert open_picture(row["images"][0]).tobytes() == picture(TRAIN.index(row["image_id"])).tobytes()
    assert row["completion"] == [{"role": "assistant", "content": f"said of {row['image_id']}"}]
    assert row["references"] == [f"said of {row['image_id']}"] and row["regions"] == []
    assert list(rows_of(root, streaming=True)) == list(rows)
    pairs = rows_of(root, "test", "alignment")
    assert pairs.column_names == ["image", "text"] and len(pairs) == 4


def test_validation_and_test_are_disjoint_halves_of_the_official_validation_by_a_hash_of_the_link(tmp_path):
    root = tables(tmp_path / "cc")
    whole = {"num_train": None, "num_eval": None}
    links = {split: list(urls) for split, urls in ConceptualCaptionsConfig(data_dir=str(root), **whole).links().items()}
    assert links["train"] == order(TRAIN)
    assert links["test"] == [url for url in order(HELD) if at(url) < 0.5]
    assert links["validation"] == [url for url in order(HELD) if at(url) >= 0.5]
    other = ConceptualCaptionsConfig(data_dir=str(root), split_seed=5, **whole).links()
    assert list(other["test"]) == [url for url in order(HELD, 5) if at(url, 5) < 0.5]


def test_more_links_are_asked_for_than_pictures_wanted_and_the_first_that_came_are_taken(tmp_path, rows_of, caplog):
    root = tables(tmp_path / "cc")
    config = ConceptualCaptionsConfig(data_dir=str(root), spare=0.5, **SIZES)
    asked = list(config.links()["train"])
    assert asked == order(TRAIN)[:15] and len(config.links()["test"]) == 6
    gone = [asked[1], asked[4]]
    arrive(root, [url for url in (*TRAIN, *HELD) if url not in gone])
    die(root, gone)
    with caplog.at_level(logging.INFO):
        rows = rows_of(root, spare=0.5)
    assert rows["image_id"][:] == [url for url in asked if url not in gone][:10]
    assert "train: 13 of 15 pictures there (86.7 %); 2 dead links: 2 404; of these, 10 are taken" in caplog.text
    assert "download_pictures.py" not in caplog.text and "fewer" not in caplog.text


def test_where_fewer_came_all_are_taken_and_the_log_says_so_with_the_command_that_asks_for_the_rest(
    tmp_path, rows_of, caplog
):
    root = tables(tmp_path / "cc")
    with pytest.raises(ValueError, match=r"train: 0 of 16 pictures there .*; 16 not asked for yet.*download_pictures"):
        rows_of(root)
    asked = order(TRAIN)[:16]
    arrive(root, [*asked[:3], *HELD])
    die(root, [asked[5]], "timeout")
    assert rows_of(root)["image_id"][:] == asked[:3]
    assert "3 of 16 pictures there (18.8 %); 1 dead links: 1 timeout; 12 not asked for yet" in caplog.text
    assert "of these, 3 are taken, fewer than the 10 asked for" in caplog.text
    command = f"python recipes/download_pictures.py --dataset conceptual_captions --data_dir {root}"
    assert command + ' --dataset_options \'{"num_train": 10, "num_eval": 4}\'' in caplog.text


def test_how_much_came_is_in_the_description_also_when_the_rows_come_from_the_cache(tmp_path, rows_of):
    root = tables(tmp_path / "cc")
    arrive(root)
    die(root, order(TRAIN)[:2])
    for url in order(TRAIN)[:2]:
        Links(root).path(url).unlink()
    for _ in range(2):
        said = rows_of(root, "test").info.description
        assert "Conceptual Captions" in said
        assert "train: 14 of 16 pictures there (87.5 %); 2 dead links: 2 404; of these, 10 are taken" in said
        assert "test: 7 of 7 pictures there (100.0 %); of these, 4 are taken" in said


def test_a_cache_does_not_outlive_the_pictures_it_was_made_of(tmp_path, rows_of):
    root = tables(tmp_path / "cc")
    arrive(root)
    first = rows_of(root)["image_id"][:]
    Links(root).path(first[0]).unlink()
    assert rows_of(root)["image_id"][:] == order(TRAIN)[1:11]


def test_a_picture_of_the_official_validation_is_not_trained_on(tmp_path):
    shared = HELD[:5]
    root = tables(tmp_path / "cc", [f"a\t{url}" for url in (*TRAIN, *shared)])
    links = ConceptualCaptionsConfig(data_dir=str(root), num_train=None, num_eval=None).links()
    assert set(links["train"]) == set(TRAIN) and set(shared) <= {*links["validation"], *links["test"]}


def test_captions_of_one_link_are_one_pictures_and_blank_ones_are_left_out_and_counted(tmp_path, rows_of, caplog):
    lines = [f"one {i}\t{url}" for i, url in enumerate(TRAIN)] + [f"two  {i} \t{url}" for i, url in enumerate(TRAIN)]
    lines += [f" \t{TRAIN[0]}", f"one 1\t{TRAIN[1]}", "\thttps://silent.example/1.jpg"]
    root = tables(tmp_path / "cc", lines)
    arrive(root)
    rows = rows_of(root, num_train=None, rows="image")
    assert len(rows) == 60
    assert dict(zip(rows["image_id"], rows["references"], strict=True)) == {
        url: [f"one {i}", f"two {i}"] for i, url in enumerate(TRAIN)
    }
    assert "2 blank captions left out" in caplog.text and "silent.example" in caplog.text
    assert len(rows_of(root)) == 20, "num_train counts pictures"


def test_a_header_that_other_programs_need_and_quotes_are_no_trouble(tmp_path, rows_of):
    root = tables(
        tmp_path / "cc", ["caption\turl", *(f'a "sign" , by the {i}" road\t{url}' for i, url in enumerate(TRAIN)), ""]
    )
    arrive(root)
    row = rows_of(root)[0]
    assert row["references"] == [f'a "sign" , by the {TRAIN.index(row["image_id"])}" road']


@pytest.mark.parametrize("line", ["no tab", "a\tb\thttps://h/1", "https://h/1\ta caption", "cut off\t"])
def test_a_line_that_is_no_caption_and_link_is_named(tmp_path, rows_of, line):
    root = tables(tmp_path / "cc", [f"fine\t{TRAIN[0]}", line])
    with pytest.raises(ValueError, match=r"Train_GCC-training.tsv, line 2: expected caption<TAB>link; is '"):
        rows_of(root)


def test_text_that_is_not_utf_8_is_named(tmp_path, rows_of):
    root = tables(tmp_path / "cc")
    (root / FILES["train"]).write_bytes(f"fine\t{TRAIN[0]}\ncaf\xe9\thttp://h/1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"Train_GCC-training.tsv, line 2: not UTF-8"):
        rows_of(root)


def parquet(root: Path, name: str, urls: list[str], files: int = 1) -> None:
    (root / "unlabeled").mkdir(parents=True, exist_ok=True)
    for number in range(files):
        part = urls[number::files]
        table = pa.table({"image_url": part, "caption": [f"said of {url}" for url in part]})
        pq.write_table(table, root / "unlabeled" / f"{name}-{number:05}-of-{files:05}.parquet")


def test_the_hubs_parquet_gives_the_rows_that_googles_tables_give(tmp_path, rows_of):
    one, two = tables(tmp_path / "one"), tmp_path / "two"
    parquet(two, "train", TRAIN, 2)
    parquet(two, "validation", HELD)
    for split in ("train", "validation", "test"):
        some = []
        for root in (one, two):
            arrive(root)
            some.append(rows_of(root, split).select_columns(["image_id", "completion", "references"])[:])
        assert some[0] == some[1]
    (two / "unlabeled" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(
        FileNotFoundError, match="not all of it.*found unlabeled/train-00000-of-00002.parquet, unlabeled/val"
    ):
        rows_of(two)
    (two / "unlabeled" / "train-00001-of-00002.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(ValueError, match="train-00001-of-00002.parquet: cannot be read as parquet"):
        rows_of(two)


def test_a_wrong_layout_is_told_with_what_is_there(tmp_path, rows_of):
    (tmp_path / "empty" / "stuff").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="expected Train_GCC-training.tsv and .*found stuff.*download_pictures"):
        rows_of(tmp_path / "empty")
    root = tables(tmp_path / "cc")
    parquet(root, "train", TRAIN)
    with pytest.raises(ValueError, match="keep one of the two"):
        rows_of(root)
    with pytest.raises(ValueError, match="num_train must be at least 0; got -1"):
        rows_of(root, num_train=-1)
    with pytest.raises(ValueError, match="leave out config_name='captions'"):
        rows_of(root, config_name="captions")


def test_one_of_the_two_tables_is_enough_for_its_splits(tmp_path, rows_of):
    root = tables(tmp_path / "cc")
    (root / FILES["train"]).unlink()
    assert split_names("conceptual_captions", data_dir=str(root)) == ["validation", "test"]
    assert split_names("conceptual_captions", "preference", str(root), rejected="swapped") == ["validation", "test"]
    arrive(root)
    assert len(rows_of(root, "validation")) == 4
    tables(root)
    (root / FILES["validation"]).unlink()
    assert rows_of(root)["image_id"][:] == order(TRAIN)[:10]


def test_preference_rows_are_made_of_its_captions(tmp_path, rows_of):
    root = tables(tmp_path / "cc")
    arrive(root)
    rows = rows_of(root, rows="preference", seed=1)
    assert rows.column_names == ["images", "prompt", "chosen", "rejected", "image_id", "flaw"]
    taken = [f"said of {url}" for url in order(TRAIN)[:10]]
    assert [row["chosen"][0]["content"] for row in rows] == taken
    wrong = [row["rejected"][0]["content"] for row in rows]
    assert sorted(wrong) == sorted(taken) and all(one != other for one, other in zip(wrong, taken, strict=True))


def test_by_default_there_are_ten_one_and_one_thousand():
    config = ConceptualCaptionsConfig(data_dir="x")
    assert (config.num_train, config.num_eval) == (10_000, 1_000)
    assert ConceptualCaptions.BUILDER_CONFIG_CLASS is ConceptualCaptionsConfig
    assert config.command().endswith("--dataset conceptual_captions --data_dir " + config.data_dir)
