"""
The notebook, run from its first cell to its last in miniature: only its parameters are others, and small towers stand under the
real ids on a loopback Hub, as in test_full_size.py. Then read: what it says of commands, options and settings is so.
"""

import ast
import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from tests.loopback_hub import LoopbackHub
from trainers.captioning_config import CaptioningConfig


ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "recipes/notebooks/ossight_colab.ipynb"


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub(alias_pins=True) as hub:
        hub.seed("google/siglip-base-patch16-224", ROOT / "model_cards/miniature_siglip")
        hub.seed("Qwen/Qwen2.5-1.5B-Instruct", ROOT / "model_cards/miniature_qwen2")
        yield hub


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small val2017 as recipes/download_coco.py leaves it, and the notebook's YAMLs with few steps."""
    place = tmp_path_factory.mktemp("notebook")
    (place / "data/val2017").mkdir(parents=True)
    (place / "data/annotations").mkdir()
    images, captions = [], []
    for i in range(20):
        file = f"{i:012}.jpg"
        Image.new("RGB", (48 + i, 48), (12 * i, 90, 200 - 9 * i)).save(place / "data/val2017" / file)
        images.append({"id": i, "file_name": file})
        captions += [{"id": 5 * i + j, "image_id": i, "caption": f"Thing {i}, said {j}."} for j in range(5)]
    for kind, content in (("captions", captions), ("instances", [])):
        text = json.dumps({"images": images, "annotations": content, "categories": []})
        (place / f"data/annotations/{kind}_val2017.json").write_text(text)
    few = {
        "use_cpu": True, "fp16": False, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 2,
        "warmup_steps": 0, "logging_steps": 1, "eval_steps": 2, "save_steps": 1, "eval_examples": 2, "max_new_tokens": 4,
    }  # fmt: skip
    for name in ("s0_coco.yaml", "s1_lora.yaml"):
        settings = yaml.safe_load((ROOT / "recipes/ossight" / name).read_text())
        (place / name).write_text(yaml.safe_dump(settings | few))
    return place


def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def cell(notebook, id):
    return next(cell for cell in notebook.cells if cell.id == id)


def codes(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook):
    """The cell of parameters, and their values."""
    (tagged,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assignments = ast.parse(tagged.source).body
    return tagged, {one.targets[0].id: ast.literal_eval(one.value) for one in assignments}


def run(place, environment, only=None, where=NOTEBOOK.parent, **changed):
    """The notebook, or those cells of it, executed with some parameters changed. Raises CellExecutionError where one fails."""
    copy = notebook()
    tagged, values = parameters(copy)
    assert changed.keys() <= values.keys()
    tagged.source = "\n".join(f"{name} = {value!r}" for name, value in (values | changed).items())
    copy.cells = [one for one in copy.cells if only is None or one.id in only]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "MPLBACKEND"},
        "HF_DATASETS_CACHE": str(place / "datasets"),
        "IPYTHONDIR": str(place / "ipython"),
        "JUPYTER_DATA_DIR": str(place / "jupyter"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    NotebookClient(copy, timeout=900, resources={"metadata": {"path": str(where)}}).execute(env=environment)
    return copy


def text(cell):
    return "".join(out.text for out in cell.outputs if out.output_type == "stream")


def shown(cell, kind):
    return [out.data[kind] for out in cell.outputs if "data" in out and kind in out.data]


def pictures(cell):
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in shown(cell, "image/png")]


# ---- executed


@pytest.fixture(scope="module")
def miniature(place):
    folders = {"STORE": str(place / "drive"), "DATA": str(place / "data"), "CONFIG": str(place / "s0_coco.yaml")}
    return {**folders, "OVERRIDES": ["--logging_steps", "2"], "ALLOW_CPU": True}


@pytest.fixture(scope="module")
def executed(hub, place, miniature):
    return run(place, hub.env(), **miniature)


@pytest.fixture(scope="module")
def outputs(executed, place):
    return place / "drive/outputs/ossight"


def test_every_cell_runs_and_what_it_makes_is_seen(executed, outputs):
    assert "goes on without one" in text(cell(executed, "gpu"))
    assert "Everything was there already" in text(cell(executed, "download"))
    assert "19 pictures to learn from, 1 to be judged by" in text(cell(executed, "look"))
    assert len(pictures(cell(executed, "look"))) == 1
    log = [json.loads(line) for line in (outputs / "s0_coco/train_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [2], "OVERRIDES says so; the YAML logs every step"
    (table,) = shown(cell(executed, "results"), "text/markdown")
    figures = json.loads((outputs / "s0_coco/metrics.json").read_text())
    assert f"| cider | {figures['cider']['value']:.4f} |" in table and "protocol" not in table
    assert len(pictures(cell(executed, "results"))) == 2
    file, said = text(cell(executed, "describe")).splitlines()[-1].split("\t")
    assert file.endswith(".jpg") and said
    assert len(pictures(cell(executed, "generate"))) == 1
    assert text(cell(executed, "generate")).splitlines()[-1] == said, "the saved folder alone says what the recipe says"


@pytest.mark.slow
def test_a_lost_session_goes_on_and_the_options_tune_merge_and_publish(executed, hub, place, outputs, miniature):
    whole = (outputs / "s0_coco/model.safetensors").read_bytes()
    (outputs / "s0_coco/checkpoint-2/seal.json").unlink()  # as if the session had been lost while this was saved
    for lost in ("model.safetensors", "metrics.json", "contact_sheet.png", "loss.png"):
        (outputs / "s0_coco" / lost).unlink()
    first = (outputs / "s0_coco/checkpoint-1/seal.json").stat().st_mtime_ns
    hub.seed("org/pictures", place / "data/val2017")
    changed = {
        "STAGE_1": True, "STAGE_1_CONFIG": str(place / "s1_lora.yaml"), "PUBLISH_AS": "org/captioner",
        "STAGE_1_SETTINGS": {"dataset_options": {"train_from": "val2017"}},
        "PICTURE": f"{hub.url}/org/pictures/resolve/main/000000000003.jpg",
    }  # fmt: skip
    again = run(place, hub.env(), **miniature, **changed)
    assert "checkpoint-2 is passed over: it has no seal" in text(cell(again, "train"))
    assert (outputs / "s0_coco/checkpoint-1/seal.json").stat().st_mtime_ns == first
    assert (outputs / "s0_coco/model.safetensors").read_bytes() == whole
    assert pictures(cell(again, "generate"))[0].size == (51, 48)

    assert {"config.json", "model.safetensors", "adapter_model.safetensors"} <= set(os.listdir(outputs / "s1_lora"))
    assert (outputs / "s1_merged/model.safetensors").exists()
    assert shown(cell(again, "stage-1"), "text/markdown") and len(pictures(cell(again, "stage-1"))) == 1

    assert "gets the logits of the local folder" in text(cell(again, "publish"))
    published = hub.repo("org/captioner")
    assert published.private and published.history[-1][1] == "Publish s1_lora"
    assert {"adapter_model.safetensors", "metrics.json", "README.md"} <= published.snapshots[published.head].keys()


def test_without_a_gpu_it_stops_and_says_what_to_do(tmp_path):
    with pytest.raises(CellExecutionError, match="no GPU that PyTorch can use. On Colab: Runtime"):
        run(tmp_path, {}, only={"parameters", "places", "install", "gpu"})


def test_a_command_that_fails_stops_the_notebook(tmp_path):
    with pytest.raises(CellExecutionError, match="the command above has failed"):
        run(tmp_path, {}, only={"parameters", "places", "install", "download"}, SPLIT="val1914")


PIP = """
import os, pathlib, sys
print(*sys.argv[1:], file=open("asked", "a"))
if "install" in sys.argv and "BRINGS" in os.environ:
    folder = pathlib.Path(__file__).parents[1] / (os.environ["BRINGS"] + "-99.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text(f"Name: {os.environ['BRINGS']}\\nVersion: 99\\n")
"""


@pytest.fixture
def install(tmp_path):
    """Runs the notebook to its installation, outside a checkout, with PyTorch `have`; returns what pip, a stand-in, was asked."""
    source, there = tmp_path / "source", tmp_path / "there"
    (source / "recipes").mkdir(parents=True)
    for name in ("setup.cfg", "recipes/caption.py"):
        shutil.copy(ROOT / name, source / name)
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "--quiet", "--initial-branch", "main"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *command], check=True)

    def install(have, **more):
        for name, content in (
            ("pip/__init__.py", ""),
            ("pip/__main__.py", PIP),
            (f"torch-{have}.dist-info/METADATA", f"Name: torch\nVersion: {have}\n"),
        ):
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            (there / name).write_text(content)
        environment = {"PYTHONPATH": str(there), "PIP_DRY_RUN": "1", "PIP_NO_INDEX": "1", **more}
        asked = [sys.executable, "-m", "pip", "--version"]
        subprocess.run(asked, check=True, cwd=tmp_path, env={**os.environ, **environment})
        assert (tmp_path / "asked").read_text() == "--version\n", "the real pip would change this environment"
        run(tmp_path, environment, {"parameters", "places", "install"}, where=tmp_path, REPO=str(source))
        return (tmp_path / "sightline/asked").read_text().splitlines()

    return install


@pytest.mark.parametrize("have, fits", [("2.11.0+cu128", True), ("2.10.0+cu128", False)])
def test_outside_a_checkout_it_clones_and_installs_around_a_pytorch_that_fits(install, have, fits):
    """Colab's PyTorch of August 2026, and Kaggle's of September."""
    needs = next(line.strip() for line in (ROOT / "setup.cfg").read_text().splitlines() if "torch>" in line)
    upgrade = f"install --quiet --upgrade {needs} torchvision --index-url https://download.pytorch.org/whl/cu128"
    assert install(have) == [upgrade] * (not fits) + [f"install --quiet --editable .[quantize] torch=={have}"]


def test_it_stops_where_pip_replaces_what_it_has_loaded(install):
    with pytest.raises(CellExecutionError, match="restart the session, .*: pip has replaced packaging"):
        install("2.11.0+cu128", BRINGS="packaging")


# ---- read


def python(cell):
    """A cell's syntax tree; `!` and `%` lines have become calls."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def commands(notebook):
    """(cell's id, words) for every `!` line."""
    for one in codes(notebook):
        for node in ast.walk(python(one)):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "system":
                yield one.id, shlex.split(node.args[0].value)


def flags(script):
    """Every option of a recipe: of its argparse, of its dataclass, and of what it hands over to TrlParser."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / script).read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "add_argument":
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
        if isinstance(node, ast.ClassDef) and node.decorator_list:
            found |= {f"--{line.target.id}" for line in node.body if isinstance(line, ast.AnnAssign)}
    if script == "recipes/caption.py":
        found |= {"--config", *(f"--{name}" for name in CaptioningConfig.__dataclass_fields__)}
    return found


def test_it_is_stored_without_outputs_and_opens_on_a_gpu():
    stored = json.loads(NOTEBOOK.read_text())
    nbformat.validate(stored)
    assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
    for one in stored["cells"]:
        assert one["id"] and one.get("outputs", []) == [] and one.get("execution_count") is None
    assert stored["metadata"]["kernelspec"]["name"] == "python3"
    assert stored["metadata"]["accelerator"] == "GPU" and stored["metadata"]["colab"]["gpuType"] == "T4"


def test_every_cell_of_code_parses_and_its_parameters_are_plain():
    for one in codes(notebook()):
        python(one)
    assert parameters(notebook())[1]["CONFIG"] == "recipes/ossight/s0_coco.yaml"


def test_every_command_names_a_recipe_that_is_there_and_options_that_it_has():
    launcher = {option for action in launch_command_parser()._actions for option in action.option_strings}
    seen = set()
    for id, words in commands(notebook()):
        scripts = [word for word in words if word.startswith("recipes/") and word.endswith(".py")]
        if not scripts:
            assert words[0] in ("git", "nvidia-smi"), id
            continue
        (script,) = scripts
        at = words.index(script)
        assert words[:at] == ["python"] or words[:2] == ["accelerate", "launch"]
        assert {word for word in words[:at] if word.startswith("-")} <= launcher
        asked = {word for word in words[at:] if word.startswith("--")}
        assert asked <= flags(script), f"{id}: {script} has no {asked - flags(script)}"
        seen.add(script.removeprefix("recipes/"))
    assert seen == {"download_coco.py", "caption.py", "describe.py", "merge.py", "publish.py"}


def test_every_option_that_it_suggests_is_one_of_training():
    words = "\n".join(one.source for one in notebook().cells)
    quoted = set(re.findall(r'["`](--\w+)[ "`]', words))
    assert {"--max_steps", "--bf16", "--resume_from_checkpoint"} <= quoted <= flags("recipes/caption.py")
    settings = parameters(notebook())[1]["STAGE_1_SETTINGS"]
    assert {f"--{name}" for name in settings} <= flags("recipes/caption.py")


def test_every_file_and_setting_that_it_speaks_of_is_there():
    words = "\n".join(one.source for one in notebook().cells)
    files = set(re.findall(r'[`"\s]([\w./]+\.(?:py|yaml|md|cfg))[`"\s]', words)) - {"s1.yaml"}  # which it writes
    assert {"recipes/describe.py", "recipes/ossight/s0_coco.yaml", "s1_lora.yaml", "setup.cfg"} <= files
    for name in files:
        assert (ROOT / name).exists() or (ROOT / "recipes/ossight" / name).exists(), name
    settings = yaml.safe_load((ROOT / "recipes/ossight/s0_coco.yaml").read_text())
    table = cell(notebook(), "about-train").source
    told = {key: value for one in re.findall(r"`(\w+: \w+)`", table) for key, value in yaml.safe_load(one).items()}
    assert len(told) == 8 and told.items() <= settings.items()
