"""The laws of the tree. Files in modeling/ and processing/ are copied side by side to the Hub; they may lean only on each other."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
OURS = {"modeling", "processing", "trainers", "datasets_scripts", "grounding"}
TRAVELLERS = [p for d in ("modeling", "processing") for p in sorted((ROOT / d).glob("*.py")) if p.stem != "__init__"]


def test_no_two_travellers_share_a_name():
    names = [p.name for p in TRAVELLERS]
    assert len(names) == len(set(names))


def test_the_folders_of_travellers_are_flat():
    nested = [p for d in ("modeling", "processing") for p in (ROOT / d).glob("*/*.py")]
    assert not nested


@pytest.mark.parametrize("path", TRAVELLERS, ids=lambda p: p.name)
def test_a_traveller_imports_siblings_or_strangers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module, "write `from .sibling import name`: no other form is followed"
            assert path.with_name(f"{node.module}.py").exists()
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] not in OURS
        elif isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & OURS


@pytest.mark.parametrize("path", TRAVELLERS, ids=lambda p: p.name)
def test_every_import_that_the_copying_regex_sees_is_a_real_one(path):
    """`custom_object_save` reads text, docstrings included, and crashes on a file that is not there."""
    for name in re.findall(r"^\s*(?:from|import)\s+\.(\S*)", path.read_text(), flags=re.MULTILINE):
        assert path.with_name(f"{name}.py").exists(), f"a line of {path.name} begins like an import of .{name}"


def test_importing_the_models_does_not_load_training_libraries():
    heavy = "trl", "peft", "datasets", "matplotlib", "evaluate", "bitsandbytes"
    code = f"import sys, modeling, processing; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert out.stdout.strip() == "[]"


def test_recipes_are_scripts_not_a_package():
    assert not (ROOT / "recipes" / "__init__.py").exists()
