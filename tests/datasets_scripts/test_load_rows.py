"""The one door to every dataset: the same rows streamed or whole, pictures unopened, columns by any name."""

import pytest
from datasets import Dataset, Features, Image, List, Value

from datasets_scripts import load_rows, split_names
from datasets_scripts.open_picture import open_picture
from tests.conftest import picture


@pytest.fixture
def hub_dataset(tmp_path, monkeypatch):
    """A folder of Parquet as Conceptual Captions lies on the Hub: pictures and their words by names of its own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = Features({"jpg": Image(), "txt": Value("string"), "key": Value("string")})
    rows = [{"jpg": picture(i), "txt": f" picture {i} ", "key": str(i)} for i in range(6)]
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data/train.parquet")
    return str(tmp_path / "data")


@pytest.mark.parametrize("streaming", [False, True])
def test_any_picture_and_caption_columns_become_canonical_rows(hub_dataset, streaming):
    rows = list(load_rows(hub_dataset, "train", columns={"image": "jpg", "caption": "txt"}, streaming=streaming))
    assert len(rows) == 6
    assert rows[2]["completion"] == [{"role": "assistant", "content": "picture 2"}]
    assert rows[2]["references"] == ["picture 2"] and rows[2]["image_id"] == "train-2"
    assert open_picture(rows[2]["images"][0]).tobytes() == picture(2).tobytes()


def test_missing_columns_are_named_with_those_there_are(hub_dataset):
    with pytest.raises(ValueError, match=r"lacks the columns \['completion', 'images', 'prompt'\]; it has \['jpg'"):
        load_rows(hub_dataset, "train")
    with pytest.raises(ValueError, match=r"lacks the columns \['png'\]"):
        load_rows(hub_dataset, "train", columns={"image": "png", "caption": "txt"})
    with pytest.raises(ValueError, match="'scenes' has the canonical ones|columns are for a Hub id"):
        load_rows("scenes", "train", columns={"image": "a", "caption": "b"})


@pytest.mark.parametrize("streaming", [False, True])
def test_pictures_are_not_opened_before_they_are_asked_for(tmp_path, streaming, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = load_rows("scenes", "train", streaming=streaming, num_train=5, num_eval=2)
    assert rows.features["images"].feature.decode is False
    assert [open_picture(row["images"][0]).size for row in rows] == [(60, 60)] * 5


def test_streamed_rows_are_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    options = {"num_train": 7, "num_eval": 3}
    for split in ("train", "validation"):
        assert list(load_rows("scenes", split, streaming=True, **options)) == list(
            load_rows("scenes", split, **options)
        )
    with pytest.raises(ValueError, match="no split 'dev'; it has train, validation"):
        load_rows("scenes", "dev", streaming=True, **options)


def test_the_cast_keeps_other_columns(hub_dataset):
    rows = load_rows(hub_dataset, "train", columns={"image": "jpg", "caption": "txt"})
    assert rows.features["images"] == List(Image(decode=False))


def test_the_splits_there_are_are_known_without_a_row_read(tmp_path):
    assert split_names("scenes") == ["train", "validation", "test", "validation_biased", "test_biased"]
    assert split_names("scenes", "alignment", num_train=5)[:2] == ["train", "validation"]
    for split in ("train", "test"):
        (tmp_path / "hub").mkdir(exist_ok=True)
        Dataset.from_dict({"jpg": [b""], "txt": ["a"]}).to_parquet(tmp_path / "hub" / f"{split}.parquet")
        (tmp_path / "folder" / split).mkdir(parents=True)
        picture(1).save(tmp_path / "folder" / split / "one.png")
        (tmp_path / "folder" / split / "metadata.jsonl").write_text('{"file_name": "one.png", "caption": "a"}\n')
    assert sorted(split_names(str(tmp_path / "hub"), columns={"image": "jpg", "caption": "txt"})) == ["test", "train"]
    assert split_names("pictures", data_dir=str(tmp_path / "folder")) == ["train", "test"]
    with pytest.raises(ValueError, match="needs data_dir"):
        split_names("pictures")
