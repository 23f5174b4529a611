"""
`generate` with head suppression, for any Hugging Face vision–language model that the Hub's `custom_generate` reaches.

    model.generate(**inputs, custom_generate="ORG/spin-generate", trust_remote_code=True, spin={"keep_ratio": 0.9})
"""

from typing import Any

from .head_suppression import spin as suppressed


def generate(model: Any, spin: dict | None = None, **kwargs) -> Any:
    """
    What `model.generate(**kwargs)` returns, with attention heads that look least at the image turned down.

    spin: SpinConfig's fields; default, what the model's generation config holds as `spin`. Raises ValueError where there is
    neither, and for a model that head suppression has no meaning for.
    """
    kwargs.pop("custom_generate", None)  # or it would be called again
    with suppressed(model, spin):
        return type(model).generate(model, **kwargs)
