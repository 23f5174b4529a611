"""
Load a saved folder as a stranger would, and check that nothing is lost: the gate of `make demo`.

    python recipes/stranger.py --model outputs/ossight/quickstart

In a fresh interpreter that cannot import this repository, from an empty Hugging Face cache, by `trust_remote_code` alone.
"""
