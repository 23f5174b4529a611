"""
Sealed checkpoints: a training run killed at any moment, the save itself included, resumes from a checkpoint that is whole.

    outputs/run/.saving-400/checkpoint-400/…      while it is written, by every process
    outputs/run/.saving-400/checkpoint-400/seal.json    last: size and sha256 of every file
    outputs/run/checkpoint-400/                   by one rename, once all of it is on the disk

Unusual: Trainer writes in place, takes the highest number for the newest checkpoint, whole or not, and deletes old checkpoints
before it can know that the new one is whole, file by file. Here a checkpoint has its name only when it is sealed, older ones
go only after that and lose their name first, and `newest_sealed` believes a seal only when the files are those it names.

For any Trainer, TRL's included: `class SealedSFTTrainer(SealedCheckpoints, SFTTrainer)`.
"""

import json
import logging
import os
import shutil
from hashlib import file_digest
from pathlib import Path
from typing import Any

from transformers.trainer_utils import sort_checkpoints


logger = logging.getLogger(__name__)

SEAL = "seal.json"
STAGING = ".saving-"
REMOVING = ".removing-"


def seal(folder: Path) -> None:
    """Write the seal of a folder that will not change any more, after everything in it has reached the disk."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, file_digest(file, "sha256").hexdigest()]
    with (folder / SEAL).open("w", encoding="utf-8") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def broken(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None for one that is whole."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return "it has no seal"
    except (ValueError, KeyError) as error:
        return f"its seal cannot be read ({error})"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, its seal says {size}"
        with path.open("rb") as file:
            if file_digest(file, "sha256").hexdigest() != digest:
                return f"{name} is not what was sealed"
    return None


def newest_sealed(run: str | Path) -> str | None:
    """The newest checkpoint of a run that is whole, or None; says which it passes over, and why."""
    for path in reversed(sort_checkpoints(str(run))) if Path(run).is_dir() else []:
        problem = broken(Path(path))
        if problem is None:
            return path
        logger.warning(f"{path} is passed over: {problem}")
    return None


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint: its name first, so that none is ever seen half deleted."""
    nameless = checkpoint.with_name(REMOVING + checkpoint.name)
    os.replace(checkpoint, nameless)
    shutil.rmtree(nameless)


def remove_oldest(run: Path, keep: int | None, best: str | None) -> None:
    """Delete checkpoints, oldest first, until `keep` are left (None: all); never the newest, never the `best`."""
    checkpoints = [Path(path) for path in sort_checkpoints(str(run))]
    kept = {checkpoints[-1], Path(best)} if best else {checkpoints[-1]}
    surplus = max(len(checkpoints) - max(keep, len(kept)), 0) if keep else 0
    for checkpoint in [path for path in checkpoints if path not in kept][:surplus]:
        remove(checkpoint)


def _configs(model: Any) -> list:
    """Where a model says whether it writes with a cache: its configuration, its language model's, its generation's."""
    config = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None
    return [one for one in (config, text, getattr(model, "generation_config", None)) if one is not None]


class SealedCheckpoints:
    """A mixin, before the Trainer in the list of bases."""

    _staging: Path | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """`resume_from_checkpoint=True` goes on from the newest sealed checkpoint, or begins where there is none."""
        if isinstance(resume_from_checkpoint, str) and resume_from_checkpoint.lower() in ("true", "false"):
            resume_from_checkpoint = resume_from_checkpoint.lower() == "true"  # as the command line gives it
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_sealed(self.args.output_dir)
        elif resume_from_checkpoint and (problem := broken(Path(resume_from_checkpoint))):
            raise ValueError(f"cannot resume from {resume_from_checkpoint}: {problem}")
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _save(self, *args, **kwargs) -> None:
        """As Trainer does, but what is saved says that it writes with a cache, which Trainer turns off in the model it trains."""
        model = self.accelerator.unwrap_model(self.model)
        told = [config for config in _configs(model) if getattr(config, "use_cache", None) is False]
        for config in told:
            config.use_cache = True
        try:
            super()._save(*args, **kwargs)
        finally:
            for config in told:
                config.use_cache = False

    def _get_output_dir(self, trial) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # what is not sealed is not pushed
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model, trial) -> None:
        run, name = Path(super()._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            for left in [
                *run.glob(f"{STAGING}*"),
                *run.glob(f"{REMOVING}*"),
            ]:  # of a run that was killed while it saved
                shutil.rmtree(left)
        self.accelerator.wait_for_everyone()
        self._staging = run / f"{STAGING}{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        finally:
            staging, self._staging = self._staging, None
        if self.state.best_global_step == self.state.global_step:  # Trainer noted where it lay, not where it will lie
            self.state.best_model_checkpoint = str(run / name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(staging / name / "trainer_state.json"))
            if (run / name).exists():  # a broken one that was passed over
                remove(run / name)
            seal(staging / name)
            os.replace(staging / name, run / name)
            staging.rmdir()
            remove_oldest(run, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))
