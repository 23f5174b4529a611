"""
recipes/caption.py killed at any moment, and run again: the weights it would have had, and never an unreadable checkpoint.

Runs are forks of this process, which has imported everything already: a kill costs a few seconds instead of a minute.
"""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.recipes.test_caption import ROOT, recipe, towers  # noqa: F401
from trainers.sealed_checkpoints import broken


def caption(arguments, folder):
    """What `accelerate launch recipes/caption.py` runs, in this process."""
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    sys.path.insert(0, str(ROOT / "recipes"))
    import caption as script
    from trl import TrlParser

    torch.set_num_threads(1)
    parser = TrlParser((script.Recipe, script.CaptioningConfig))
    script.main(*parser.parse_args_and_config(list(map(str, arguments))))


def start(*arguments, folder):
    process = multiprocessing.get_context("fork").Process(target=caption, args=(arguments, folder))
    process.start()
    return process


def finish(*arguments, folder):
    process = start(*arguments, folder=folder)
    process.join(300)
    assert process.exitcode == 0, (folder / "log.txt").read_text()[-3000:]


@pytest.fixture
def settings(recipe, tmp_path):  # noqa: F811
    changes = {"max_steps": 12, "save_steps": 2, "eval_steps": 6, "blind_control": False, "test_examples": 2}
    changes |= {"eval_examples": 2, "eval_metrics": ["rouge_l"], "max_new_tokens": 2}
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | changes))
    return ["--config", recipe]


def kill_at_random(process, run, rng, lasts):
    """Any moment of a run: half of the time the clock decides, half of the time a save that has just begun."""
    saves = rng.randrange(1, 7) if rng.random() < 0.5 else None
    until = time.monotonic() + rng.uniform(0, lasts)
    seen = set()
    while process.is_alive():
        seen |= {path.name for path in run.glob(".saving-*")} if run.exists() else set()
        if (saves is None and time.monotonic() > until) or (saves is not None and len(seen) >= saves):
            time.sleep(rng.uniform(0, 0.03) if saves else 0)
            break
        time.sleep(0.0005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return "in a save" if list(run.glob(".saving-*")) else "between saves"


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_weights_it_would_have_had(settings, tmp_path, kills):
    sys.path.insert(0, str(ROOT / "recipes"))
    import caption  # noqa: F401  before the forks

    rng = random.Random(kills)
    finish(*settings, "--output_dir", "whole", folder=tmp_path)
    began = time.monotonic()
    finish(*settings, "--output_dir", "again", folder=tmp_path)  # everything is cached now, as it is for those killed
    lasts = time.monotonic() - began
    expected = load_file(tmp_path / "whole/model.safetensors")
    moments = []
    for number in range(kills):
        run = tmp_path / f"cut_{number}"
        process = start(*settings, "--output_dir", run.name, folder=tmp_path)
        where = kill_at_random(process, run, rng, lasts)
        checkpoints = sorted(path.name for path in run.glob("checkpoint-*"))
        assert all(broken(run / name) is None for name in checkpoints)
        finish(*settings, "--output_dir", run.name, "--resume_from_checkpoint", "true", folder=tmp_path)
        weights = load_file(run / "model.safetensors")
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected), (number, where, checkpoints)
        moments.append(f"{where}, {len(checkpoints)} checkpoints")
        shutil.rmtree(run)
    print(f"{kills} kills of a run of {lasts:.1f} s: {moments}")
