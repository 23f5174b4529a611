"""recipes/compare_augmentation.py: the true folder, how regions are asked, and three ways by one command."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from datasets_scripts import load_rows
from grounding.shards import SCHEMA
from tests.recipes.test_prefer import make_folder
from trainers.run_folder import read_json, write_json


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "recipes"))
from compare_augmentation import Arguments, cell, describe_regions, main, write_truth  # noqa: E402  recipes are scripts


def augmented(folder, scenes):
    """A folder as recipes/augment.py leaves it: five captions of each scene, and of the first object a region that is wrong."""
    (folder / "pictures").mkdir(parents=True)
    examples = []
    for row in load_rows("scenes", "train", rows="image", num_train=scenes, num_eval=2):
        path = f"pictures/{row['image_id']}.png"
        (folder / path).write_bytes(row["images"][0]["bytes"])
        common = {"image_id": row["image_id"], "image": path, "width": 60, "height": 60}
        for i, caption in enumerate(row["references"]):
            examples.append({**common, "kind": "caption", "caption_id": i, "caption": caption, "text": caption})
        region = {"text": "a whale", "phrase": "a whale", "box": row["regions"][0]["box"]}
        examples.append({**common, "kind": "region", "caption_id": 0, "caption": row["references"][0], **region})
    pq.write_table(pa.Table.from_pylist(examples, SCHEMA), folder / "train.parquet")
    return folder


def test_the_true_folder_has_the_same_captions_and_the_scenes_own_regions(tmp_path):
    folder = augmented(tmp_path / "augmented", 3)
    truth = write_truth(folder, tmp_path / "truth", 4)
    told = pq.read_table(truth / "train.parquet").to_pylist()
    before = pq.read_table(folder / "train.parquet").to_pylist()
    captions = [[one["text"] for one in some if one["kind"] == "caption"] for some in (told, before)]
    assert captions[0] == captions[1] and len(captions[0]) == 15
    found = [(one["image_id"], one["text"], one["box"]) for one in told if one["kind"] == "region"]
    rows = load_rows("scenes", "train", rows="image", num_train=3, num_eval=2)
    assert found == [(row["image_id"], region["phrase"], region["box"]) for row in rows for region in row["regions"]]
    rows = load_rows("grounded", "train", data_dir=str(truth), examples="regions", regions="box")
    assert len(rows) == len(found)  # every picture is found from there


def test_a_region_is_right_where_size_colour_and_shape_are(tmp_path, monkeypatch):
    model = make_folder(tmp_path / "model")
    asked = {}

    def generate(loaded, processor, rows, *_, **how):
        asked["rows"], asked["how"] = rows, how
        said = [row["references"][0].replace("large", "big") for row in rows]
        return ["a whale", f"{said[1]} and a small red star", *said[2:]]  # nothing that is there; that and more

    monkeypatch.setattr("compare_augmentation.generate_captions", generate)
    (tmp_path / "out").mkdir()
    figure = describe_regions(model, tmp_path / "out", 6)
    count = len(asked["rows"])
    assert figure["value"] == pytest.approx((count - 2) / count, abs=1e-6) and asked["how"]["do_sample"] is False
    assert asked["rows"][0]["prompt"][0]["content"].startswith("Describe the region [")
    assert read_json(tmp_path / "out/regions.json") == figure
    monkeypatch.setattr("compare_augmentation.generate_captions", None)
    assert describe_regions(model, tmp_path / "out", 6) == figure  # not asked again


def test_means_have_students_interval_and_one_run_its_own():
    three = [{"cider": {"value": value, "ci95": [0, 1]}} for value in (1.0, 2.0, 3.0)]
    assert cell(three, "cider") == "2.000 ± 2.484"  # 4.303 * 1 / sqrt(3)
    assert cell(three[:1], "cider") == "1.000 (0.000 – 1.000)"


def test_three_ways_are_run_once_each_and_told_apart(tmp_path, monkeypatch):
    folder, model, told = augmented(tmp_path / "augmented", 2), make_folder(tmp_path / "model"), []

    def run(command, check):
        words = dict(zip(command[6::2], command[7::2], strict=True))
        told.append(words)
        write_json(
            Path(words["--output_dir"]) / "metrics.json",
            {name: {"value": 0.5, "ci95": [0, 1]} for name in ("cider", "bleu_4", "scene_f1")},
        )

    monkeypatch.setattr("compare_augmentation.subprocess.run", run)
    monkeypatch.setattr(
        "compare_augmentation.describe_regions", lambda model, folder, examples: {"value": 0.25, "ci95": [0, 1]}
    )
    recipe = {"model": str(model), "data_dir": str(folder), "dataset_options": {"examples": "all", "regions": "box"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(recipe))
    args = Arguments(str(tmp_path / "c.yaml"), [1, 2], str(tmp_path / "out"), 6, 2)
    main(args)
    assert [Path(words["--output_dir"]).name for words in told] == [
        f"{way}_{seed}" for way in ("captions", "augmented", "true_regions") for seed in (1, 2)
    ]
    assert told[0]["--dataset_options"] == '{"examples": "captions", "regions": "box"}'
    assert "--dataset_options" not in told[2] and "--data_dir" not in told[2]
    assert told[4]["--data_dir"] == tmp_path / "out/truth" or told[4]["--data_dir"] == str(tmp_path / "out/truth")
    table = (tmp_path / "out/table.md").read_text()
    assert "| before | 0.250 (0.000 – 1.000) |" in table and "| captions | 0.250 ± 0.000 | 0.500 ± 0.000 |" in table
    main(args)
    assert len(told) == 6  # what is there is not run again
