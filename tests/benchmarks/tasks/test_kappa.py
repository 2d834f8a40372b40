"""The comparison of kappa's two terms."""

import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from benchmarks.tasks.kappa import Kappa, term_ratios
from pathspace.models import ReluRNN

TOY = {"lengths": (3,), "widths": (4,), "vocabulary": 3, "batch_size": 2, "seeds": 2, "turns": 1}


def test_command_prints_the_ratio_and_the_times(tmp_path, capsys, monkeypatch):
    from benchmarks.__main__ import main

    words = [(f"--{name.replace('_', '-')}", *np.ravel(value).astype(str)) for name, value in TOY.items()]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "kappa", *itertools.chain(*words), "--output", str(tmp_path)])
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    main()
    text = capsys.readouterr().out
    for name in ("T = 3", "H = 4", "SGD step of 2", " ± 0.0"):
        assert text.count(name) == 1
    (line,) = json.loads((tmp_path / "ratios.json").read_text())
    assert (line["length"], line["width"], len(line["ratios"])) == (3, 4, 2)


def test_rows_are_lengths_and_columns_widths(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.tasks.kappa.term_ratios", lambda length, width, *_: np.array([length + width / 10]))
    monkeypatch.setattr(Kappa, "_measure", lambda self, length, width: [f"measured {length}, {width}", "", ""])
    Kappa(lengths=(2, 3), widths=(4, 5, 6), output=tmp_path).run()
    lines = capsys.readouterr().out.splitlines()
    for length in (2, 3):
        (row,) = (line for line in lines if f"T = {length}" in line)
        assert [float(cell) for cell in row.split("│")[2:-1]] == [length + width / 10 for width in (4, 5, 6)]
        assert sum(f"measured {length}, 6" in line for line in lines) == 1


@pytest.mark.usefixtures("x64")
def test_ratio_is_that_of_the_second_derivatives():
    model = ReluRNN(
        2,
        [3],
        2,
        start="uniform",
        uniform_scale=0.1,
        recurrent_scale=0.1,
        output="every",
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(1),
    )
    kernels = [model.layers[0].input.kernel, model.layers[0].recurrent.kernel, model.readout.kernel]

    def path_network(squares):
        into, recurrent, out = squares
        states, total = jnp.zeros(3), jnp.zeros(2)
        for _ in range(4):
            states = into[0].sum(0) + into[1] + states @ recurrent
            total += states @ out[0] + out[1]
        return total.sum()

    zeros = [jnp.zeros(3), None, jnp.zeros(2)]
    squares = [(k[...] ** 2, b) if b is not None else k[...] ** 2 for k, b in zip(kernels, zeros, strict=True)]
    first = jax.grad(path_network)(squares)
    hessian = jax.hessian(lambda recurrent: path_network([squares[0], recurrent, squares[2]]))(squares[1])
    second = 2 * squares[1] * np.einsum("ijij->ij", hessian)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(first)))
    assert_allclose(term_ratios(4, 3, 2, seeds=2)[1], np.linalg.norm(second) / norm, rtol=1e-10)


@pytest.mark.parametrize(
    "changes", [{"seeds": 0}, {"batch_size": 0}, {"lengths": ()}, {"lengths": (3, 3)}, {"widths": (0,)}]
)
def test_impossible_options_are_named(changes):
    with pytest.raises(ValueError, match=f"expected {next(iter(changes))}"):
        Kappa(**changes)
