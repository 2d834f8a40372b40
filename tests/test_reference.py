"""The reference: every public name tells what it is, where it comes from, what it raises, and shows it."""

import inspect

import pytest

import pathspace
import pathspace.models

PUBLIC = {
    f"{module.__name__}.{name}": value
    for module in (pathspace, pathspace.models)
    for name, value in vars(module).items()
    if not name.startswith("_") and not inspect.ismodule(value)
}
# What cannot be called wrongly: records, and functions that raise what their parts raise.
RAISE_NOTHING = {"PathKappaState", "PathSpaceState", "Skeleton", "RecurrentCell", "random_scales"}
# They refer to the docstring of what they are made of.
REFER = {
    "from_basis_paths": "raised errors as in `basis_paths`",
    "g_sgd": "see `in_path_space`",
    "g_adam": "see `in_path_space`",
    "path_sgd": "see `scale_by_path_kappa`",
    "path_adam": "see `scale_by_path_kappa`",
    "PassthroughGRUCell": "`PassthroughCell`",
    "PassthroughLSTMCell": "`PassthroughCell`",
    "ResetAfterGRUCell": "`PassthroughCell`",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings(name):
    text = inspect.getdoc(PUBLIC[name])
    short = name.rpartition(".")[2]
    assert ">>> " in text
    assert "Source:" in text
    if short in REFER:
        assert REFER[short] in text
    elif short not in RAISE_NOTHING:
        assert "Raises:" in text
