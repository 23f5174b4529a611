"""recipes/explore.py as a user runs it: a folder with a leak, a copy and a broken file in it, and a run that is interrupted."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainers.test_dataset_page import Reader
from tests.trainers.test_dataset_statistics import encoded, scene


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def explore():
    """The recipe as a module, for what need not be started anew each time."""
    spec = importlib.util.spec_from_file_location("explore", ROOT / "recipes/explore.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(*words) -> list[str]:
    return [sys.executable, str(ROOT / "recipes/explore.py"), *map(str, words)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """train: 0 … 3, 0 again and a file that is cut; test: 4, 1, and 2 resized and encoded again."""
    folder = tmp_path_factory.mktemp("explore")
    pictures = {f"train/{i}.png": scene(i) for i in range(4)} | {"train/again.png": scene(0), "train/cut.png": scene(9)}
    pictures |= {
        "test/new.png": scene(4),
        "test/one.png": scene(1),
        "test/two.png": encoded(scene(2).resize((160, 120)), 80),
    }
    lines = {"train": [], "test": []}
    for name, picture in pictures.items():
        split, file = name.split("/")
        (folder / "data" / split).mkdir(parents=True, exist_ok=True)
        picture.save(folder / "data" / name)
        said = [f"Picture {file}.", "<script>alert(1)</script>"]
        lines[split].append(json.dumps({"file_name": file, "captions": said}))
    cut = folder / "data/train/cut.png"
    cut.write_bytes(cut.read_bytes()[:2000])
    for split, text in lines.items():
        (folder / "data" / split / "metadata.jsonl").write_text("\n".join(text))
    return folder


def test_a_folder_becomes_a_page_and_its_figures(place):
    words = ["--dataset", "pictures", "--data-dir", place / "data", "--output", place / "out/report.html"]
    environment = {**os.environ, "HF_HOME": str(place / "hf"), "OMP_NUM_THREADS": "1"}
    out = subprocess.run(command(*words), cwd=place, env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    figures = json.loads((place / "out/report.json").read_text())
    assert figures["warnings"] == [
        "1 picture of test is in train too, pixel for pixel (33.3%).",
        "1 picture of test is nearly the same as one in train.",
        "1 picture of train cannot be read, and is named below with the reason.",
        "1 picture of train is a copy of another in train, pixel for pixel.",
    ]
    assert all(f"- {warning}" in out.stdout for warning in figures["warnings"])
    assert "6 rows of train, 3 rows of test" in out.stdout and "out/report.html" in out.stdout
    assert figures["unreadable"]["pictures"][0]["name"] == "train/cut.png"
    assert figures["dataset"]["data_dir"] == str(place / "data") and figures["splits_there"] == ["train", "test"]
    assert figures["splits"]["train"]["captions"]["number"] == 12
    text = (place / "out/report.html").read_text()
    page = Reader(text)
    assert "<script>alert(1)</script>" in page.text and "script" not in {tag for tag, _ in page.tags}
    assert "http://" not in text and "https://" not in text
    assert {path.name for path in (place / "out").iterdir()} == {"report.html", "report.json"}


def test_an_interrupt_ends_the_reading_and_the_report_says_so(tmp_path):
    options = json.dumps({"num_train": 10_000_000, "num_eval": 3})
    words = ["--dataset", "scenes", "--streaming", "--dataset_options", options, "--output", "report.html"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "0"}
    run = subprocess.Popen(
        command(*words), cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    seen = b""
    while b"train: 2" not in seen:  # some rows in; a run that ends before that would end the loop by `assert`
        more = run.stderr.read1(1 << 16)
        assert more, seen
        seen += more
    run.send_signal(signal.SIGINT)
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 0, seen
    figures = json.loads((tmp_path / "report.json").read_text())
    read = figures["splits"]["train"]["rows"]
    assert 0 < read < 10_000_000 and list(figures["splits"]) == ["train"]
    assert figures["notes"] == [
        f"train: stopped after {read:,} rows of a stream; the figures are of these.",
        "Not read: validation, test, validation_biased, test_biased.",
    ]
    assert f"{read:,} rows of train: report.html".encode() in out and (tmp_path / "report.html").exists()


def test_a_second_interrupt_is_one_and_afterwards_all_is_as_before(explore):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), explore.interruptible() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_asked_for_wrongly_is_refused_before_anything_is_read(explore):
    refused = [
        ({"output": "report.htm"}, "must end in .html"),
        ({"num_examples": 0}, "num_examples must be at least 1; is 0"),
        ({"dataset_options": "[1]"}, "dataset_options must be a mapping"),
        ({"split": ["dev"]}, "no split 'dev'; it has train"),
    ]
    for wrong, message in refused:
        with pytest.raises(ValueError, match=message):
            explore.main(
                explore.Arguments(**{"dataset": "scenes", "output": "report.html", "streaming": True, **wrong})
            )
    assert not Path("report.html").exists()


def test_a_sample_of_two_splits_is_the_same_each_time_and_says_what_it_is(explore, tmp_path):
    def run(name: str, **more) -> dict:
        options = '{"num_train": 40, "num_eval": 20}'
        asked = {"dataset": "scenes", "split": ["train", "test"], "num_examples": 8, "dataset_options": options}
        explore.main(explore.Arguments(output=str(tmp_path / f"{name}.html"), **{**asked, **more}))
        return json.loads((tmp_path / f"{name}.json").read_text())

    one, two = run("one", workers=1), run("two", workers=3)
    assert one["notes"][1] == "test: a random sample, 8 of 20 rows. Of copies and leaks, a sample shows only some."
    assert one["splits"]["test"]["rows"] == 8 and list(one["splits"]) == ["train", "test"]
    assert one["splits"] == two["splits"] and one["duplicates"] == two["duplicates"]
    page = (tmp_path / "one.html").read_text()
    assert page == (tmp_path / "two.html").read_text()
    assert one["splits"]["test"]["sheet"] != run("three", seed=1)["splits"]["test"]["sheet"]
