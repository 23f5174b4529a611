"""
Publishing, tried against a Hub on this machine.

    pytest tests/recipes/test_publish.py

Unusual: one folder is published by the command line, then a second time from Python; most tests look at what that left.
"""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from datasets_scripts.canonical import PROMPT, turns
from modeling import VisionRewardForSequenceClassification
from tests.conftest import make_processor
from tests.loopback_hub import LoopbackHub
from tests.modeling.test_modeling_aligner import make_aligner, make_aligner_processor
from trainers.model_card import write_card
from trainers.reward_scores import reward_scores
from trainers.stranger import ask


ROOT = Path(__file__).parents[2]
METRICS = {
    "scene_f1": {"value": 0.8125, "ci95": [0.791, 0.834], "n": 1000},
    "pope_yes_ratio": {"value": 0.4875, "ci95": [0.462, 0.513], "n": 640},
    "protocol": {
        "dataset": "scenes",
        "split": "test",
        "fingerprint": "9f3c",
        "prompt": "USER: <image>What is it?\nASSISTANT: ",
        "decoding": {"num_beams": 3, "max_new_tokens": 24},
    },
}
RECIPE = """# accelerate launch recipes/prefer.py --config recipe.yaml
vision_model: google/siglip-base-patch16-224
text_model: tests/recipes
dataset: scenes
dataset_options: {prompt: "What is it?"}
learning_rate: 0.0003
seed: 17
"""
QUESTION = """
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

def answer(source, revision="main"):
    processor = AutoProcessor.from_pretrained(source, revision=revision, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(source, revision=revision, trust_remote_code=True)
    content = [{"type": "image", "image": Image.new("RGB", (64, 64), "red")}, {"type": "text", "text": "what is it ?"}]
    chat = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    return model(**inputs).logits.detach()
"""
STRANGER = (
    "import sys\nsys.modules.update(dict.fromkeys(['modeling', 'processing', 'trainers']))\n"
    f"{QUESTION}\nfrom safetensors.torch import save_file\n"
    "save_file({revision: answer(sys.argv[1], revision) for revision in sys.argv[3:]}, sys.argv[2])\n"
)


@pytest.fixture(scope="module")
def publish():
    spec = importlib.util.spec_from_file_location("publish", ROOT / "recipes" / "publish.py")
    sys.modules["publish"] = module = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        hub.patch(patch)
        yield hub


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def first(tiny_folder, tmp_path_factory):
    """The folder of a run, with everything that a run leaves lying about."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("runs") / "first"))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "train_log.jsonl").write_text("{}\n")
    (folder / "training_args.bin").write_bytes(b"\x80")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "optimizer.pt").write_bytes(b"\x80")
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-10")
    return folder


@pytest.fixture(scope="module")
def published(hub, first):
    """(commit, finished process) of the first publication, by the command line, as a private repository."""
    command = [sys.executable, "recipes/publish.py", "--model", first, "--repo_id", "org/tiny", "--private"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return hub.repo("org/tiny").head, run


@pytest.fixture(scope="module")
def republished(publish, published, first, tmp_path_factory):
    """(commit, folder) of the second publication: other weights, and no figures."""
    folder = Path(shutil.copytree(first, tmp_path_factory.mktemp("runs") / "second"))
    (folder / "metrics.json").unlink()
    weights = load_file(folder / "model.safetensors")
    save_file({key: tensor * 1.5 for key, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return publish.main(publish.Recipe(str(folder), "org/tiny", gate=False)), folder


# ---- what is uploaded


def test_a_folder_is_pushed_in_exactly_one_commit(hub, published):
    assert [title for _, title in hub.repo("org/tiny").history][:2] == ["initial commit", "Publish first"]
    assert hub.repo("org/tiny").history[1][0] == published[0]


def test_only_what_a_stranger_needs_travels_and_no_checkpoint(hub, published, tiny_folder):
    expected = {path.name for path in tiny_folder.iterdir()} | {"README.md", "metrics.json", "recipe.yaml"}
    assert set(hub.repo("org/tiny").snapshots[published[0]]) == expected | {".gitattributes"}


def test_the_command_prints_address_commit_and_what_stayed_but_no_token(hub, published):
    revision, run = published
    assert f"{hub.url}/org/tiny/tree/{revision}" in run.stdout
    assert f'repo_id, revision = "org/tiny", "{revision}"' in run.stdout
    assert "Stayed at home: checkpoint-10, train_log.jsonl, training_args.bin" in run.stdout
    assert "hf_dummy" not in run.stdout + run.stderr


def test_a_private_repository_is_asked_for_and_an_existing_public_one_refused(hub, publish, published, tiny_folder):
    assert hub.repo("org/tiny").private
    hub.seed("org/public", tiny_folder)
    with pytest.raises(ValueError, match="org/public exists and is public"):
        publish.main(publish.Recipe(str(tiny_folder), "org/public", private=True, gate=False))
    assert [title for _, title in hub.repo("org/public").history] == ["initial commit", "seed"]


def test_a_second_commit_removes_what_the_folder_holds_no_longer(hub, published, republished):
    first, second = (set(hub.repo("org/tiny").snapshots[revision]) for revision in (published[0], republished[0]))
    assert first - second == {"metrics.json"} and not second - first


def test_nothing_is_committed_over_a_commit_that_came_in_between(hub, publish, tiny_folder, folder, monkeypatch):
    look = HfApi.model_info

    def look_and_be_overtaken(self, repo_id):
        info = look(self, repo_id)
        hub.seed(repo_id, tiny_folder)
        return info

    monkeypatch.setattr(HfApi, "model_info", look_and_be_overtaken)
    with pytest.raises(HfHubHTTPError, match="412"):
        publish.main(publish.Recipe(str(folder), "org/busy", gate=False))


# ---- what a stranger gets


def test_a_stranger_gets_the_logits_of_either_commit(hub, published, republished, first, tmp_path):
    (revision, _), (later, second), local = published, republished, {}
    command = [sys.executable, "-c", STRANGER, "org/tiny", tmp_path / "answers", revision, later]
    run = subprocess.run(command, cwd=tmp_path, env=os.environ | hub.env(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    exec(QUESTION, local)
    answers = load_file(tmp_path / "answers")
    torch.testing.assert_close(answers[revision], local["answer"](first))
    torch.testing.assert_close(answers[later], local["answer"](second))
    assert not torch.allclose(answers[revision], answers[later])


def test_a_base_and_its_lora_are_published_as_one_model(hub, publish, folder):
    """The gate compares a stranger's logits with those of the tuned folder."""
    base = AutoModelForImageTextToText.from_pretrained(folder)
    before = ask(str(folder))["logits"]
    base.name_or_path = str(folder)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["adapter"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(folder)
    assert not torch.allclose(ask(str(folder))["logits"], before)
    revision = publish.main(publish.Recipe(str(folder), "org/tuned"))
    told = json.loads(Path(hf_hub_download("org/tuned", "adapter_config.json", revision=revision)).read_text())
    assert told["base_model_name_or_path"] == "org/tuned"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)


def test_the_snippets_of_card_and_command_run_as_pasted(hub, published, tmp_path):
    revision, command = published
    card = hub.blob_file(hub.repo("org/tiny").snapshots[revision]["README.md"].sha256).read_text()
    pasted = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(pasted) == 2
    code = "\n".join(pasted) + command.stdout[command.stdout.index("from transformers import") :]
    environment = os.environ | hub.env()
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "generated_text" in run.stdout.splitlines()[-1]


def test_an_aligner_is_published_with_a_card_whose_snippets_run_and_a_gate_of_embeddings(
    hub, publish, tmp_path, capsys
):
    pytest.importorskip("sentence_transformers")
    folder = tmp_path / "aligned"
    model, processor = make_aligner("siglip", "bert", "ast"), make_aligner_processor()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    found = {"text_to_image_r1": METRICS["scene_f1"], "text_to_image_r1@8": METRICS["scene_f1"]}
    (folder / "metrics.json").write_text(json.dumps({**found, "protocol": METRICS["protocol"]}))
    revision = publish.main(publish.Recipe(str(folder), "org/aligned"))
    assert {"image_embeds", "text_embeds", "audio_embeds", "input_ids"} == set(ask(str(folder)))
    card = ModelCard.load(hf_hub_download("org/aligned", "README.md", revision=revision))
    assert card.data.pipeline_tag == "feature-extraction" and card.data.library_name == "sentence-transformers"
    assert "Pictures, texts and sounds" in card.text and "text_to_image_r1@8" in card.text
    snippet = capsys.readouterr().out.partition("from transformers import")[2]
    code = "\n".join(re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)) + f"\nfrom transformers import{snippet}"
    environment = os.environ | hub.env() | {"HF_HOME": str(tmp_path / "empty")}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("tensor(") == 2


def test_a_reward_model_is_published_with_a_card_whose_snippet_runs_and_a_gate_of_its_rewards(
    hub, publish, tiny_folder, tmp_path, capsys
):
    folder = tmp_path / "rewarding"
    model = VisionRewardForSequenceClassification.from_vlm(str(tiny_folder))
    model.save_pretrained(folder)
    processor = make_processor()
    processor.save_pretrained(folder)
    figures = {"preference_accuracy": METRICS["scene_f1"], "protocol": METRICS["protocol"]}
    (folder / "metrics.json").write_text(json.dumps(figures))
    revision = publish.main(publish.Recipe(str(folder), "org/rewarding"))
    printed = capsys.readouterr().out
    assert "Gate: a fresh interpreter" in printed and "AutoModelForSequenceClassification.from_pretrained" in printed
    asked = ask(str(folder))
    assert asked["logits"].shape == (1, 1)  # one number an answer
    assert processor.tokenizer.decode(asked["input_ids"][0]).endswith(
        "ASSISTANT: <unk> picture. </s>"
    )  # the answer, and its end
    card = ModelCard.load(hf_hub_download("org/rewarding", "README.md", revision=revision))
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-classification", "transformers")
    assert card.data.tags == ["sightline", "custom_code", "reward-model"]
    assert "preference_accuracy" in card.text and "language model: `qwen2`" in card.text
    code = "\n".join(re.findall(r"```python\n(.*?)```", card.text, re.DOTALL))
    environment = os.environ | hub.env() | {"HF_HOME": str(tmp_path / "empty")}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    picture = [{"images": [Image.new("RGB", (224, 224), "red")], "prompt": turns(PROMPT, "")["prompt"]}] * 2
    rewards = reward_scores(model, picture, ["a red picture", "a blue picture"], processor=processor, progress=False)
    said = [line.rsplit(" ", 1) for line in run.stdout.splitlines()]
    assert [answer for answer, _ in said] == ["a red picture", "a blue picture"]
    assert [float(reward) for _, reward in said] == pytest.approx(rewards, abs=1e-5) and rewards[0] != rewards[1]


def test_the_card_of_a_reward_model_without_its_recipe_says_how_such_a_one_is_trained(folder):
    told = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoModelForSequenceClassification": "a.B"}
    told = {"vlm_config": told, "auto_map": auto_map, "architectures": ["B"], "model_type": "vision_reward"}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "recipe.yaml").write_text("seed: 17\nmodel: org/base\n")
    card = ModelCard.load(write_card(folder, "org/rewarding"))
    assert "accelerate launch recipes/reward.py --config recipe.yaml" in card.text
    assert card.data.base_model == ["org/base"] and "vision tower: `siglip_vision_model`" in card.text


def test_the_gate_shuts_when_the_hub_serves_other_weights(hub, publish, folder, monkeypatch):
    commit = HfApi.create_commit

    def commit_and_damage(self, *args, **kwargs):
        info = commit(self, *args, **kwargs)
        weights = hub.blob_file(hub.repo("org/damaged").snapshots[info.oid]["model.safetensors"].sha256)
        content = weights.read_bytes()
        weights.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
        return info

    monkeypatch.setattr(HfApi, "create_commit", commit_and_damage)
    weights = load_file(folder / "model.safetensors")  # other ones than in the repositories of other tests
    save_file({key: tensor * 0.5 for key, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError) as failure:
        publish.main(publish.Recipe(str(folder), "org/damaged"))
    assert f"org/damaged@{hub.repo('org/damaged').head} is published, but its logits" in str(failure.value)
    assert not list(Path(os.environ["HF_HOME"]).rglob("models--org--damaged"))  # the gate has a cache of its own


def test_the_gate_shuts_on_code_that_needs_this_repository(hub, publish, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # so that only the gate itself can keep the repository out
    path = next(folder.glob("configuration_*.py"))
    path.write_text(f"{path.read_text()}\n__import__('modeling')  # which check_folder does not see\n")
    with pytest.raises(RuntimeError, match="(?s)org/leaning@[0-9a-f]{40} does not load for a stranger.*modeling"):
        publish.main(publish.Recipe(str(folder), "org/leaning"))


# ---- what is refused


def test_a_repository_without_its_owner_is_refused(publish, folder):
    with pytest.raises(ValueError, match="--repo_id tiny: write ORG/NAME"):
        publish.main(publish.Recipe(str(folder), "tiny"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "notes.pkl", "rng_state.pth"])
def test_a_pickle_in_the_folder_is_refused_by_name(publish, folder, name):
    (folder / name).write_bytes(b"\x80")
    with pytest.raises(ValueError, match=f"{name} can run code"):
        publish.check_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "model.safetensors"])
def test_a_folder_without_config_processor_or_weights_is_refused(publish, folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name.replace("model.safe", r"model\*.safe")):
        publish.check_folder(folder)


def test_every_code_file_is_needed_and_missed_by_name(publish, folder):
    code = sorted(folder.glob("*.py"))
    assert len(code) > 3  # those of auto_map, and at least one that only they import
    for path in code:
        text = path.read_text()
        path.unlink()
        with pytest.raises(ValueError, match=f"needs {path.name}"):
            publish.check_folder(folder)
        path.write_text(text)
    publish.check_folder(folder)


@pytest.mark.parametrize(
    "line", ["from modeling.bridges import X", "import trainers.x", "from . import bridges", "from ..a import b"]
)
def test_code_that_leans_on_this_repository_is_refused_with_its_line(publish, folder, line):
    path = next(folder.glob("configuration_*.py"))
    path.write_text(f"{line}\n{path.read_text()}")
    with pytest.raises(ValueError, match=f"{path.name}, line 1"):
        publish.check_folder(folder)


@pytest.mark.parametrize("auto_class", ["AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"])
def test_an_auto_class_without_code_is_refused(publish, folder, auto_class):
    for path in folder.glob("*config.json"):
        path.write_text(path.read_text().replace(f'"{auto_class}"', '"AutoSomething"'))
    with pytest.raises(ValueError, match=f"no auto_map names {auto_class}"):
        publish.check_folder(folder)


def test_a_file_that_holds_a_token_is_refused(publish, folder):
    (folder / "recipe.yaml").write_text(f"hub_token: hf_{'a' * 34}\n")
    with pytest.raises(ValueError, match="recipe.yaml seems to hold a Hub token"):
        publish.check_folder(folder)


# ---- the card


def test_the_model_index_holds_the_figures_of_metrics_json(first):
    card = ModelCard.load(write_card(first, "org/tiny"))
    results = {result.metric_type: result for result in card.data.eval_results}
    assert set(results) == {"scene_f1", "pope_yes_ratio"}
    for name, result in results.items():
        figure = METRICS[name]
        assert (result.metric_value, result.metric_args) == (
            figure["value"],
            {"ci95": figure["ci95"], "n": figure["n"]},
        )
        assert (result.dataset_name, result.dataset_split, result.task_type) == ("scenes", "test", "image-text-to-text")


def test_the_card_tells_figures_with_interval_n_and_the_whole_protocol(first):
    text = write_card(first, "org/tiny").read_text()
    assert "| `scene_f1` | 0.8125 | 0.791 to 0.834 | 1000 |" in text
    assert (
        yaml.safe_load(re.search(r"```yaml\n(dataset: scenes\nsplit.*?)```", text, re.DOTALL)[1]) == METRICS["protocol"]
    )


def test_no_figure_on_the_card_is_absent_from_the_files(first):
    text = write_card(first, "org/tiny").read_text()
    told = text[text.index("## What it was trained on") : text.index("## Licence")].replace("95 % confidence", "")
    files = json.dumps(METRICS) + RECIPE
    assert not [number for number in re.findall(r"\d+(?:\.\d+)?", told) if number not in files]


def test_the_card_says_not_evaluated_where_nothing_was_measured(tiny_folder, folder):
    text = write_card(folder, "org/tiny").read_text()
    assert "Not evaluated." in text and "model-index" not in text and "confidence interval" not in text


def test_the_card_names_data_settings_command_and_limits_of_the_run(first):
    card = ModelCard.load(write_card(first, "org/tiny"))
    assert "learning_rate: 0.0003" in card.text and "seed: 17" in card.text
    assert (
        "hf download org/tiny recipe.yaml --local-dir .\naccelerate launch recipes/prefer.py --config recipe.yaml"
        in card.text
    )
    assert "miniature world" in card.text
    assert '"text": "What is it?"' in card.text  # the snippet asks what the model was trained to answer
    assert (card.data.pipeline_tag, card.data.library_name, card.data.license) == (
        "image-text-to-text",
        "transformers",
        "apache-2.0",
    )
    assert card.data.tags == ["sightline", "custom_code", "vision-language"]


def test_the_card_links_towers_on_the_hub_but_not_folders_of_this_repository(first):
    card = ModelCard.load(write_card(first, "org/tiny"))
    assert card.data.base_model == ["google/siglip-base-patch16-224"]
    assert card.data.datasets is None  # "scenes" is a builder of ours, on the Hub it would be somebody else's


def test_only_a_model_of_the_miniature_world_is_said_to_be_one(folder):
    (folder / "recipe.yaml").write_text("dataset: org/coco\nmodel: org/whole\n")
    card = ModelCard.load(write_card(folder, "org/tiny"))
    assert "miniature world" not in card.text and card.data.datasets == ["org/coco"]
    assert card.data.base_model == ["org/whole"]
    assert "\naccelerate launch recipes/caption.py --config recipe.yaml" in card.text  # the default


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"cider": {"value": 1.0, "n": 3, "ci95": [0, 2]}}, "`protocol` names no dataset"),
        ({"cider": {"value": 1.0}, "protocol": METRICS["protocol"]}, "`cider` lacks ci95, n"),
    ],
)
def test_a_figure_without_protocol_interval_or_n_is_refused(folder, metrics, message):
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=message):
        write_card(folder, "org/tiny")


# ---- the loopback Hub itself


@pytest.fixture
def shelf(hub, tmp_path):
    """A repository with a large file (not text) in a folder, and the large file's address."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "large.safetensors").write_bytes(bytes(range(100)))
    (tmp_path / "small.txt").write_text("ten letter")
    revision = hub.seed("org/shelf", tmp_path)
    return revision, f"{hub.url}/org/shelf/resolve/{revision}/deep/large.safetensors"


def open_url(url: str, method: str = "GET", **headers: str):
    return urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers))


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [("bytes=10-19", 10, 20), ("bytes=90-", 90, 100), ("bytes=-5", 95, 100), ("bytes=98-200", 98, 100)],
)
def test_the_hub_serves_a_range(shelf, wanted, start, stop):
    reply = open_url(shelf[1], Range=wanted)
    assert reply.status == 206 and reply.headers["Content-Range"] == f"bytes {start}-{stop - 1}/100"
    assert reply.read() == bytes(range(start, stop))


def test_the_hub_refuses_a_range_beyond_the_end(shelf):
    with pytest.raises(urllib.error.HTTPError) as failure:
        open_url(shelf[1], Range="bytes=100-")
    assert failure.value.code == 416 and failure.value.headers["Content-Range"] == "bytes */100"


def test_the_hub_names_size_commit_and_etag_without_a_body(shelf):
    address = urllib.parse.urlsplit(shelf[1])
    with socket.create_connection((address.hostname, address.port)) as line:  # urllib would hide a body sent after HEAD
        line.sendall(f"HEAD {address.path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
        assert line.makefile("rb").read().endswith(b"\r\n\r\n")
    reply = open_url(shelf[1], "HEAD")
    assert (reply.headers["Content-Length"], reply.headers["X-Repo-Commit"]) == ("100", shelf[0])
    # by sha256sum and by `git hash-object`, which are what the real Hub sends for large and for small files
    assert reply.headers["ETag"] == '"bce0aff19cf5aa6a7469a30d61d04e4376e4bbf6381052ee9e7f33925c954d52"'
    assert (
        open_url(shelf[1].replace("deep/large.safetensors", "small.txt"), "HEAD").headers["ETag"]
        == '"910cf7e5a5b360b6aa40741b7db51fe1a917837b"'
    )


def test_the_hub_says_which_of_repository_revision_and_file_is_missing(hub, shelf, tmp_path):
    api, where = HfApi(endpoint=hub.url), {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/nobody")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("org/shelf")  # it is a model
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/shelf", revision="0" * 40)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/shelf", "missing.txt", **where)
    assert list((tmp_path / "cache").glob(f"*/.no_exist/{shelf[0]}/missing.txt"))  # the client learned of which commit
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("org/shelf", "missing"))
    hub.repo("org/shelf").gated = True
    with pytest.raises(GatedRepoError):
        hf_hub_download("org/shelf", "small.txt", **where)
    hub.repo("org/shelf").gated = False


def test_the_hub_lists_folders_and_hands_out_old_commits(hub, shelf, tmp_path):
    api = HfApi(endpoint=hub.url)
    revision = api.create_commit("org/shelf", [], commit_message="nothing").oid  # an empty commit is none
    assert revision == hub.repo("org/shelf").head
    later = api.upload_file(path_or_fileobj=b"new", path_in_repo="small.txt", repo_id="org/shelf").oid
    assert [entry.path for entry in api.list_repo_tree("org/shelf")] == [".gitattributes", "deep", "small.txt"]
    assert [entry.path for entry in api.list_repo_tree("org/shelf", "deep")] == ["deep/large.safetensors"]
    for commit, text in ((revision, "ten letter"), (later, "new")):
        copy = snapshot_download("org/shelf", revision=commit, endpoint=hub.url, cache_dir=tmp_path / "cache")
        assert Path(copy, "small.txt").read_text() == text
        assert Path(copy, "deep", "large.safetensors").read_bytes() == bytes(range(100))


def test_the_hub_refuses_a_commit_on_an_old_parent_and_a_writer_without_token(hub, shelf):
    with pytest.raises(HfHubHTTPError, match="412"):
        HfApi(endpoint=hub.url).upload_file(
            path_or_fileobj=b"new",
            path_in_repo="other.txt",
            repo_id="org/shelf",
            parent_commit=hub.repo("org/shelf").history[0][0],
        )
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(endpoint=hub.url, token=False).create_repo("org/other")


def test_the_hub_refuses_bytes_other_than_those_announced(hub):
    upload = urllib.request.Request(f"{hub.url}/lfs/{'0' * 64}", b"other bytes", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(upload)


def test_a_pinned_revision_finds_the_stand_in_only_where_that_is_asked_for(tmp_path):
    (tmp_path / "small.txt").write_text("stand-in")
    with LoopbackHub(alias_pins=True) as hub:
        hub.seed("google/siglip", tmp_path)
        where = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
        path = hf_hub_download("google/siglip", "small.txt", revision="ab" * 20, **where)
        assert Path(path).read_text() == "stand-in" and Path(path).parent.name == "ab" * 20
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download("google/siglip", "small.txt", revision="v1.0", **where)
