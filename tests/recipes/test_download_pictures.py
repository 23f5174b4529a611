"""
The pictures of a data set from its links: a loopback Hub for links and texts, a loopback web for the pictures.

Unusual: the web's port is in every link, so splits differ from run to run; there are links enough for none to come out empty.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_scripts import load_rows
from datasets_scripts.link_download import Limits
from datasets_scripts.picture_links import Links
from datasets_scripts.pixmo import PixmoConfig
from tests.conftest import ROOT
from tests.datasets_scripts.test_link_download import Server, picture
from tests.loopback_hub import LoopbackHub


SCRIPT = ROOT / "recipes" / "download_pictures.py"
SIZES = {"num_train": 12, "num_validation": 8, "num_test": 8}
COUNT = 300


@pytest.fixture
def recipe():
    spec = importlib.util.spec_from_file_location("download_pictures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the types of fields
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def web():
    with Server() as server:
        server.pages |= {f"/{i}": picture(i) for i in range(COUNT) if i % 5}
        yield server


def parquet(folder: Path, web: Server, **columns) -> Path:
    """As allenai/pixmo-cap lies on the Hub; a fifth of its links is dead."""
    (folder / "data").mkdir(parents=True)
    table = {"image_url": [f"{web.url}/{i}" for i in range(COUNT)], "caption": [f"Picture {i}." for i in range(COUNT)]}
    pq.write_table(pa.table(table | columns), folder / "data" / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text("PixMo-Cap")
    return folder


def limits(**changes) -> Limits:
    return Limits(**{"allow_private": True, "backoff": 0.01, "timeout": 2.0} | changes)


def asked(web: Server) -> set[str]:
    return {path for path, _, _ in web.log}


def test_from_the_hub_to_rows(recipe, web, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data_dir = str(tmp_path / "pixmo")
    with LoopbackHub() as hub:
        hub.patch(monkeypatch)
        hub.seed("allenai/pixmo-cap", parquet(tmp_path / "published", web), "dataset")
        recipe.main(recipe.Recipe(data_dir, dataset_options=json.dumps(SIZES)), limits())
    splits = PixmoConfig(data_dir=data_dir, **SIZES).links()
    wanted = {url.removeprefix(web.url) for links in splits.values() for url in links}
    assert asked(web) == wanted and len(wanted) == 28, "those that the splits ask for, not all"
    assert not (tmp_path / "pixmo" / "README.md").exists(), "links and texts alone"
    said = capsys.readouterr().out.splitlines()
    for split, links in splits.items():
        there = sum(int(url.rsplit("/", 1)[1]) % 5 > 0 for url in links)
        assert any(line.startswith(f"{split}: {there} of {len(links)} pictures there") for line in said)
    rows = load_rows("pixmo", "train", "alignment", data_dir=data_dir, **SIZES)
    alive = [url for url in splits["train"] if int(url.rsplit("/", 1)[1]) % 5]
    assert rows["text"][:] == [f"Picture {url.rsplit('/', 1)[1]}." for url in alive]

    # once more: nothing is asked for, neither of the Hub, which is gone, nor of the web
    web.log.clear()
    recipe.main(recipe.Recipe(data_dir, dataset_options=SIZES), limits())
    assert not web.log
    recipe.main(recipe.Recipe(data_dir, dataset_options=SIZES, retry_dead=True), limits())
    assert asked(web) == {path for path in wanted if int(path[1:]) % 5 == 0}


def test_the_revision_is_the_one_that_was_named(recipe, web, tmp_path, monkeypatch):
    data_dir = str(tmp_path / "pixmo")
    with LoopbackHub() as hub:
        hub.patch(monkeypatch)
        old = hub.seed("allenai/pixmo-cap", parquet(tmp_path / "old", web), "dataset")
        new = {"image_url": [f"{web.url}/{i}" for i in range(1000, 1000 + COUNT)]}
        hub.seed("allenai/pixmo-cap", parquet(tmp_path / "new", web, **new), "dataset")
        recipe.main(recipe.Recipe(data_dir, dataset_options=SIZES), limits())
        assert min(int(path[1:]) for path in asked(web)) >= 1000
        web.log.clear()
        recipe.main(recipe.Recipe(data_dir, dataset_options=SIZES, revision=old), limits())
        assert max(int(path[1:]) for path in asked(web)) < COUNT, "though another revision lay there"


def test_questions_come_from_their_own_place_or_from_a_named_one(recipe, web, tmp_path, monkeypatch):
    calls = []

    def snapshot_download(repo_id, **options):
        calls.append((repo_id, options["repo_type"], options["allow_patterns"], options["revision"]))
        columns = {"question": ["What?"] * COUNT, "answer": ["It."] * COUNT}
        parquet(Path(options["local_dir"]), web, **columns)

    monkeypatch.setattr(recipe, "snapshot_download", snapshot_download)
    for folder, repo_id in (("a", None), ("b", "allenai/pixmo-cap-qa")):
        asks = recipe.Recipe(str(tmp_path / folder), config_name="questions", dataset_options=SIZES, repo_id=repo_id)
        recipe.main(asks, limits())
    assert [call[0] for call in calls] == ["allenai/pixmo-ask-model-anything", "allenai/pixmo-cap-qa"]
    assert {call[1:] for call in calls} == {("dataset", "data/train-*.parquet", None)}


def conceptual_captions(folder: Path, web: Server, start: int = 0) -> Path:
    """As google-research-datasets/conceptual_captions lies on the Hub; a fifth of its links is dead."""
    (folder / "unlabeled").mkdir(parents=True)
    urls = [f"{web.url}/{i}" for i in range(start, start + COUNT)]
    for name, some in (("train", urls[:200]), ("validation", urls[200:])):
        table = pa.table({"image_url": some, "caption": [f"picture of {url}" for url in some]})
        pq.write_table(table, folder / "unlabeled" / f"{name}-00000-of-00001.parquet")
    (folder / "labeled").mkdir()
    (folder / "labeled" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    return folder


def test_conceptual_captions_come_from_the_hub_or_from_googles_tables(recipe, web, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    sizes = {"num_train": 10, "num_eval": 5, "spare": 1.5}
    with LoopbackHub() as hub:
        hub.patch(monkeypatch)
        hub.seed("google-research-datasets/conceptual_captions", conceptual_captions(tmp_path / "cc", web), "dataset")
        data_dir = str(tmp_path / "hub")
        recipe.main(recipe.Recipe(data_dir, "conceptual_captions", dataset_options=sizes), limits())
    assert len(asked(web)) == 25 + 13 + 13 and not (tmp_path / "hub" / "labeled").exists()
    said = capsys.readouterr().out
    assert "validation: " in said and f"dataset: conceptual_captions  data_dir: {data_dir}" in said
    rows = load_rows("conceptual_captions", "train", data_dir=data_dir, **sizes)
    assert len(rows) == 10 and all(int(url.rsplit("/", 1)[1]) % 5 for url in rows["image_id"])

    # the tables need no Hub; a killed run's pictures are not asked for again
    web.log.clear()
    tables = tmp_path / "tables"
    tables.mkdir()
    lines = [f"picture of {web.url}/{i}\t{web.url}/{i}\n" for i in range(200)]
    (tables / "Train_GCC-training.tsv").write_text("".join(lines))
    recipe.main(recipe.Recipe(str(tables), "conceptual_captions", dataset_options=sizes | {"num_train": 5}), limits())
    first = asked(web)
    web.log.clear()
    recipe.main(recipe.Recipe(str(tables), "conceptual_captions", dataset_options=sizes), limits())
    assert len(first) == 13 and len(asked(web)) == 12 and not asked(web) & first
    other = load_rows("conceptual_captions", "train", data_dir=str(tables), **sizes)
    assert other["image_id"][:] == rows["image_id"][:]


def test_what_is_no_such_data_set_is_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match="--dataset must be one of pixmo, conceptual_captions; got 'laion'"):
        recipe.main(recipe.Recipe(str(tmp_path), dataset="laion"), limits())


def command(data_dir: Path, *options: str) -> subprocess.CompletedProcess:
    sizes = ["--dataset_options", json.dumps(SIZES), "--allow_private", "true", "--backoff", "0.01", "--timeout", "1"]
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--dataset", "pixmo", "--data_dir", str(data_dir), *sizes, *options],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip


def test_the_command_reads_limits_and_says_what_is_there(web, tmp_path):
    run = command(parquet(tmp_path / "pixmo", web), "--workers", "2", "--user_agent", "me (me@example.org)")
    assert run.returncode == 0, run.stderr
    assert "train: " in run.stdout and f"dataset: pixmo  data_dir: {tmp_path / 'pixmo'}" in run.stdout
    assert {headers["User-Agent"] for _, _, headers in web.log} == {"me (me@example.org)"} and web.most <= 2
    assert "ok=" in run.stderr and "dead=" in run.stderr


def test_a_machine_without_a_network_is_told_in_one_line(web, tmp_path):
    folder = parquet(tmp_path / "pixmo", web)
    web.__exit__()
    run = command(folder, "--retries", "0")
    assert run.returncode == 1 and "is this machine online?" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr and Links(folder).came == {}
