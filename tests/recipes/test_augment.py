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

from tests.grounding.stand_ins import make_clip, make_detector


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
    assert "noun phrases by rules" in done.stdout and f"{figures['kept']:,} of {figures['detections']:,} regions kept" in done.stdout


def kill_and_go_on(models, whole, times, seed):
    rng, output = random.Random(seed), models / f"killed{times}"
    for _ in range(times):
        process = subprocess.Popen(
            command(models, output, launch=[sys.executable]), env=environment(models), cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        shards, begun = output / "shards", len(list((output / "shards").glob("*")))
        until = time.time() + 200
        while len(list(shards.glob("*"))) <= begun and process.poll() is None and time.time() < until:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run(models, output)
    assert contents(output) == contents(whole)
    assert not list(output.glob("shards/*.tmp")) or len(list(output.glob("shards/*.jsonl"))) == 12


def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(models, whole):
    kill_and_go_on(models, whole[0], 1, 0)


@pytest.mark.slow
def test_ten_kills_at_random_moments_lose_and_double_nothing(models, whole):
    kill_and_go_on(models, whole[0], 10, 1)


def test_two_processes_write_what_one_writes(models, whole):
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run(models, models / "two", launch=two)
    assert contents(models / "two") == contents(whole[0])


def test_another_threshold_needs_another_folder(models, whole):
    before = contents(whole[0])
    done = run(models, whole[0], "--clip-threshold", "0.2", check=False, launch=[sys.executable])
    assert done.returncode and "clip_threshold was 0.0, is 0.2" in done.stderr and "name another output" in done.stderr
    assert contents(whole[0]) == before
