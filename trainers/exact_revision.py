"""Which weights exactly: a Hub id's commit, or a hash of a folder's."""

from hashlib import sha256
from pathlib import Path

from huggingface_hub import HfApi


def exact_revision(model: str, revision: str | None = None, files: str = "*.safetensors") -> str:
    """The commit of a Hub id's branch, tag or commit; of a folder, "sha256:" and a hash of its weights (`files`)."""
    if not Path(model).is_dir():
        return HfApi().model_info(model, revision=revision).sha
    digest = sha256()
    for path in sorted(Path(model).glob(files)):
        digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()[:16]}"
