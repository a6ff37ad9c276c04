"""What `flashkit` exports is what its three lists say: `__all__`, the lazy table, and what type checkers see."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flashkit
from flashkit import errors


def _type_checkers_names() -> set[str]:
    tree = ast.parse(Path(flashkit.__file__).read_text())
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return {
        alias.asname or alias.name
        for node in imports
        if (node.module or "").startswith("flashkit.")
        for alias in node.names
    }


def test_type_checkers_see_every_exported_name_and_no_other():
    assert _type_checkers_names() | {"__version__"} == set(flashkit.__all__)


def test_every_exported_name_is_in_the_lazy_table():
    assert set(flashkit._HOME_OF) | {"__version__"} == set(flashkit.__all__)


@pytest.mark.parametrize("name", flashkit.__all__)
def test_an_exported_name_can_be_imported(name):
    assert getattr(flashkit, name) is not None


def test_names_are_exported_in_order_and_once():
    assert flashkit.__all__ == sorted(set(flashkit.__all__))


def test_dir_lists_the_exported_names():
    assert dir(flashkit) == sorted(flashkit.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'gpu_endpiont'"):
        flashkit.gpu_endpiont  # noqa: B018


def test_star_import_brings_every_exported_name():
    code = (
        "from flashkit import *; import flashkit; missing = set(flashkit.__all__) - set(globals()); assert not missing"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_exported_exception_is_in_the_tree_of_the_errors_module():
    exported = {
        name
        for name in flashkit.__all__
        if isinstance(value := getattr(flashkit, name), type) and issubclass(value, BaseException)
    }
    assert exported
    for name in exported:
        assert issubclass(getattr(errors, name), flashkit.FlashkitError)
        assert name in (errors.__doc__ or "")


def test_every_exception_of_the_errors_module_is_drawn_in_its_tree():
    classes = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert [name for name in classes if name not in (errors.__doc__ or "")] == []
