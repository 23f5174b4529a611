"""recipes/augment.py: whole runs, killed runs, several processes, and what stands in its way."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.grounding.stand_ins import make_clip, make_detector
from tests.loopback_hub import LoopbackHub


ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", ROOT / "recipes/accelerate/cpu.yaml"]
SCRIPT = ROOT / "recipes/augment.py"
CONFIG = ["--config", ROOT / "recipes/grounded/quickstart.yaml"]
# chance finds boxes everywhere, with small scores
LOW = ["--box-threshold", "0.1", "--text-threshold", "0", "--clip-threshold", "0", "--smallest-area", "0.001"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augment")
    for name, (model, processor) in {"dino": make_detector(), "clip": make_clip()}.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


def command(models, output, *more, launch=LAUNCH):
    given = ["--detector", models / "dino", "--similarity-model", models / "clip", "--output", output]
    given += ["--dataset_options", '{"num_train": 24, "num_eval": 2}', "--shard-size", "2", "--chunker", "rules"]
    return [*map(str, [*launch, SCRIPT, *CONFIG, *given, *LOW, *more])]


def environment(models):
    return {**os.environ, "HF_HOME": str(models / "hf"), "OMP_NUM_THREADS": "1"}


def run(models, output, *more, check=True, launch=LAUNCH):
    told = command(models, output, *more, launch=launch)
    done = subprocess.run(told, capture_output=True, text=True, env=environment(models), cwd=ROOT)
    if check and done.returncode:
        raise AssertionError(done.stderr[-4000:])
    return done


@pytest.fixture(scope="module")
def whole(models):
    done = run(models, models / "whole")
    return models / "whole", done


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jsonl"))} | {
        "parquet": pq.read_table(folder / "train.parquet").to_pylist()
    }


def test_the_whole_way_leaves_examples_figures_and_a_page(whole):
    folder, done = whole
    examples = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert pq.read_table(folder / "train.parquet").to_pylist() == examples
    kinds = [one["kind"] for one in examples]
    assert kinds.count("caption") == 24 * 5 and kinds.count("region") > 10
    region = next(one for one in examples if one["kind"] == "region")
    assert (folder / region["image"]).exists() and region["phrase"] in region["caption"]
    assert 0 <= region["box"][0] < region["box"][2] <= 60 and region["clip_score"] >= 0
    assert region["detector"].startswith(f"{folder.parent / 'dino'}@sha256:")
    figures = json.loads((folder / "statistics.json").read_text())
    assert figures["kept"] == kinds.count("region") and figures["pictures"]["read"] == 24
    page = (folder / "gallery.html").read_text()
    assert "Kept" in page and "Rejected: picture and words do not agree" in page and "data:image/jpeg" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert (
        "noun phrases by rules" in done.stdout
        and f"{figures['kept']:,} of {figures['detections']:,} regions kept" in done.stdout
    )


def kill_and_go_on(models, whole, times, seed, *more, wait=0.3):
    """Killed `times` times, each at a random moment up to `wait` seconds after another shard was there, then left alone."""
    rng, output = random.Random(seed), models / f"killed{times}"
    for _ in range(times):
        process = subprocess.Popen(
            command(models, output, *more, launch=[sys.executable]), env=environment(models), cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        shards, begun = output / "shards", len(list((output / "shards").glob("*")))
        until = time.time() + 200
        while len(list(shards.glob("*"))) <= begun and process.poll() is None and time.time() < until:
            time.sleep(0.01)
        time.sleep(rng.random() * wait)
        assert process.poll() is None, "it was to be killed before its end"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run(models, output, *more)
    assert contents(output) == contents(whole)


def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(models, whole):
    kill_and_go_on(models, whole[0], 1, 0)


@pytest.mark.slow
def test_ten_kills_at_random_moments_lose_and_double_nothing(models):
    many = ["--shard-size", "1", "--dataset_options", '{"num_train": 100, "num_eval": 2}']
    run(models, models / "unbroken", *many)
    kill_and_go_on(models, models / "unbroken", 10, 1, *many, wait=0.2)


def test_two_processes_write_what_one_writes(models, whole):
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run(models, models / "two", launch=two)
    assert contents(models / "two") == contents(whole[0])


def test_another_threshold_needs_another_folder(models, whole):
    before = contents(whole[0])
    done = run(models, whole[0], "--clip-threshold", "0.2", check=False, launch=[sys.executable])
    assert done.returncode and "clip_threshold was 0.0, is 0.2" in done.stderr and "name another output" in done.stderr
    assert contents(whole[0]) == before


def test_the_full_size_command_runs_on_photographs_with_models_from_the_hub(models, real_data):
    told = (
        "--data-dir $COCO_ROOT --split train --output DIR --max-images 5000 --box-threshold 0.30 --text-threshold 0.25"
    )
    told += " --clip-threshold 0.26"  # as the README has it
    command = [*LAUNCH, SCRIPT, "--config", ROOT / "recipes/grounded/coco.yaml"]
    words = told.replace("$COCO_ROOT", str(real_data / "coco2017")).replace("DIR", str(models / "coco")).split()
    with LoopbackHub() as hub:
        dino = hub.seed("IDEA-Research/grounding-dino-tiny", models / "dino")
        hub.seed("openai/clip-vit-base-patch32", models / "clip")
        done = subprocess.run(
            [*map(str, command), *words],
            capture_output=True,
            text=True,
            env={**environment(models), **hub.env()},
            cwd=ROOT,
        )
    assert not done.returncode, done.stderr[-3000:]
    decided = json.loads((models / "coco/augmentation.json").read_text())
    assert decided["detector"] == f"IDEA-Research/grounding-dino-tiny@{dino}" and decided["box_threshold"] == 0.3
    figures = json.loads((models / "coco/statistics.json").read_text())
    assert figures["pictures"]["read"] == decided["pictures"] > 5 and figures["phrases"] > figures["pictures"]["read"]
    examples = [json.loads(line) for line in (models / "coco/train.jsonl").read_text().splitlines()]
    assert all(Path(one["image"]).exists() for one in examples)  # the photographs themselves, not copies


def test_bad_input_is_counted_and_named_not_stumbled_over(models, tmp_path):
    pictures = tmp_path / "own"
    pictures.mkdir()
    lines = []
    for name, captions in {
        "fine.png": ["a red star"],
        "silent.png": ["so it is"],
        "broken.png": ["a blue boat"],
    }.items():
        Image.new("RGB", (40, 40), "red").save(pictures / name)
        lines.append(json.dumps({"file_name": name, "captions": captions}))
    (pictures / "broken.png").write_bytes((pictures / "broken.png").read_bytes()[:60])
    (pictures / "metadata.jsonl").write_text("\n".join(lines))
    told = ["--dataset", "pictures", "--data-dir", pictures, "--dataset_options", '{"validation_fraction": 0}']
    run(models, tmp_path / "out", *told, launch=[sys.executable])
    figures = json.loads((tmp_path / "out/statistics.json").read_text())
    assert figures["pictures"] == {
        "read": 2,
        "unreadable": 1,
        "without_phrases": 1,
        "without_detections": figures["pictures"]["without_detections"],
    }
    assert figures["pictures"]["without_detections"] >= 1 and figures["captions"] == 2
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [one["kind"] for one in rejected].count("unreadable") == 1
    assert "cannot be read" in (tmp_path / "out/gallery.html").read_text()


@pytest.mark.parametrize(
    "wrong,said",
    [
        (["--similarity-model", "DINO"], "does not read texts"),
        (["--box-threshold", "2"], "box_threshold must be between 0 and 1, is 2"),
        (["--template", "a photo"], "has no {}"),
        (["--chunker", "nltk"], "nltk"),
        (["--box-treshold", "0.3"], "box-treshold"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_picture_is_read(wrong, said, models, tmp_path):
    sys.path.insert(0, str(ROOT / "recipes"))
    from augment import Recipe
    from augment import main as run_recipe
    from trl import TrlParser

    told = command(models, tmp_path / "out", *wrong)
    words = [word.replace("DINO", str(models / "dino")) for word in told[told.index(str(SCRIPT)) + 1 :]]
    with pytest.raises((ValueError, SystemExit)) as error:
        run_recipe(*TrlParser(Recipe).parse_args_and_config(words))
    assert said in str(error.value) or isinstance(error.value, SystemExit)
    assert not (tmp_path / "out/shards").exists()
