"""Cells whose work on the inputs is done for all time steps at once, and the loop that runs them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

_OUTPUTS = ("last", "every")


class RecurrentCell(nnx.RNNCellBase):
    """One step of a recurrent network, in three parts.

    - `project`: what depends on the inputs alone, for any number of steps at once;
    - `constants`: what is the same in all steps: matrices ready for use, dropout masks;
    - `step`: the rest.

    `nnx.RNN` runs these cells as it runs Flax's own, all three parts in each step; `Recurrence` only the last one, by
    the cell's `loop`.

    Source: the division is ours.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from pathspace.models import Recurrence, RecurrentCell
        >>> class Sum(RecurrentCell):
        ...     def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        ...         return jnp.zeros(input_shape)
        ...     def project(self, inputs):
        ...         return 2 * inputs
        ...     def constants(self, batch_shape):
        ...         return 1.0
        ...     def step(self, carry, projected, constants):
        ...         carry = carry + projected + constants
        ...         return carry, carry
        >>> Recurrence(Sum(), output="every")(jnp.ones((3, 1)))[:, 0].tolist()
        [3.0, 6.0, 9.0]
    """

    def project(self, inputs: Float[Array, "*batch in_features"]) -> PyTree:
        """What a step needs of its inputs, with the same leading axes."""
        raise NotImplementedError

    def constants(self, batch_shape: tuple[int, ...]) -> PyTree:
        """What all steps need."""
        raise NotImplementedError

    def step(self, carry: PyTree, projected: PyTree, constants: PyTree) -> tuple[PyTree, Array]:
        """Next carry, and outputs."""
        raise NotImplementedError

    def loop(self, carry: PyTree, projected: PyTree, constants: PyTree, *, unroll: int = 1) -> tuple[PyTree, Array]:
        """Last carry, and the outputs of all steps; time is the first axis of what `project` has made."""
        return jax.lax.scan(lambda carry, each: self.step(carry, each, constants), carry, projected, unroll=unroll)

    @property
    def hoists_inputs(self) -> bool:
        """Whether it is faster to project the inputs of all steps at once, before the loop."""
        return False

    def __call__(self, carry: PyTree, inputs: Float[Array, "*batch in_features"]) -> tuple[PyTree, Array]:
        """Next carry, and outputs, of shape (*batch, features)."""
        return self.step(carry, self.project(inputs), self.constants(inputs.shape[:-1]))

    @property
    def num_feature_axes(self) -> int:
        """Axes of the inputs behind those of the batch."""
        return 1


class Recurrence(nnx.Module):
    """A cell, over the time steps of sequences.

    Computes (c_t, y_t) = cell(c_{t-1}, x_t) by `lax.scan`, from the cell's initial carry. `nnx.RNN` computes the same.

    Defaults are the fastest of what ``python -m benchmarks recurrence-time`` measured on a CPU. There, hoisting gained
    5 % in GRUs of wide states (400) and lost 10 % to 40 % in low-rank cells and with few inputs; unrolling lost 10 % to
    100 % in all cells but the unitary one. `ReluCell` hoists, for a loop whose gradients take one product.

    Args:
        cell: a `RecurrentCell`, or any other `nnx.RNNCellBase` of one feature axis.
        output: ``"last"`` for the outputs of the last step, ``"every"`` for those of every step.
        unroll: number of time steps in one iteration of the scan, see `jax.lax.scan`.
        hoist_inputs: whether the inputs of all steps are projected at once, before the loop, which takes memory for all
            projections. Needs a `RecurrentCell`; None for what is faster for it.

    Raises:
        ValueError: for an unknown `output`, and to hoist the inputs of a cell that is no `RecurrentCell`; in a call,
            for inputs without a time axis.

    Source: `jax.lax.scan` and `flax.nnx.RNN`; hoisting is ours.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from pathspace.models import Recurrence
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(Recurrence(nnx.GRUCell(2, 50, rngs=rngs)), nnx.Linear(50, 1, rngs=rngs))
        >>> model(jnp.ones((16, 100, 2))).shape
        (16, 1)
    """

    def __init__(
        self, cell: nnx.RNNCellBase, *, output: str = "last", unroll: int = 1, hoist_inputs: bool | None = None
    ) -> None:
        if output not in _OUTPUTS:
            raise ValueError(f"expected output to be one of {_OUTPUTS}, got {output!r}")
        if hoist_inputs and not isinstance(cell, RecurrentCell):
            raise ValueError(
                f"expected a RecurrentCell to hoist inputs from, got {type(cell).__name__}: it cannot tell its work on "
                "the inputs from the rest; leave hoist_inputs at False"
            )
        self.cell = cell
        self.output = output
        self.unroll = unroll
        self.hoist_inputs = hoist_inputs

    def __call__(
        self, inputs: Float[Array, "*batch time in_features"]
    ) -> Float[Array, "*batch features"] | Float[Array, "*batch time features"]:
        """Outputs for a batch of sequences.

        Args:
            inputs: shape (*batch, time, in_features), floating.

        Returns:
            Shape (*batch, features) where `output` is ``"last"``, (*batch, time, features) where it is ``"every"``.
        """
        if inputs.ndim < 2:
            raise ValueError(f"expected inputs of shape (*batch, time, in_features), got {inputs.shape}")
        _, outputs = scan_cell(
            self.cell, jnp.moveaxis(inputs, -2, 0), unroll=self.unroll, hoist_inputs=self.hoist_inputs
        )
        return outputs[-1] if self.output == "last" else jnp.moveaxis(outputs, 0, -2)


def scan_cell(
    cell: nnx.RNNCellBase,
    inputs: Float[Array, "time *batch in_features"],
    carry: PyTree | None = None,
    *,
    unroll: int = 1,
    hoist_inputs: bool | None = None,
) -> tuple[PyTree, Float[Array, "time *batch features"]]:
    """Last carry and the outputs of all steps, from `carry` or else the cell's initial one. Time comes first."""
    if carry is None:
        # Flax's cells ask for random keys, even where the initial carry is zero.
        carry = cell.initialize_carry(inputs.shape[1:], nnx.Rngs(0))

    if not isinstance(cell, RecurrentCell):
        return jax.lax.scan(cell, _typed_carry(cell, carry, inputs), inputs, unroll=unroll)
    constants = cell.constants(inputs.shape[1:-1])
    if cell.hoists_inputs if hoist_inputs is None else hoist_inputs:
        projected = cell.project(inputs)
        carry = _typed_carry(lambda carry, each: cell.step(carry, each, constants), carry, projected)
        return cell.loop(carry, projected, constants, unroll=unroll)

    def step(carry: PyTree, inputs: Array) -> tuple[PyTree, Array]:
        return cell.step(carry, cell.project(inputs), constants)

    return jax.lax.scan(step, _typed_carry(step, carry, inputs), inputs, unroll=unroll)


def _typed_carry(step: Callable[..., tuple[PyTree, Array]], carry: PyTree, sequence: PyTree) -> PyTree:
    """The carry of a loop has one dtype, that of its initial value may be another."""
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), sequence)
    return jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), carry, jax.eval_shape(step, carry, first)[0])
