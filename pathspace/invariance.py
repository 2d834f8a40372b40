"""Whether an optimiser respects node-wise rescaling: the law itself, as a measurement."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree, UInt32

from .graph import ReductionGraph
from .rescaling import balance, random_scales, rescale


def invariance_error(
    make_optimizer: Callable[[PyTree], optax.GradientTransformation],
    loss: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    graph: ReductionGraph,
    key: Key[Array, ""] | UInt32[Array, "2"],
    *,
    steps: int = 3,
) -> Float[Array, ""]:
    """How much an optimiser's course depends on the scales of units: 0 if not at all, about 1 if altogether.

    Takes a few steps from `params` and from a random rescaling of them, and compares where they lead:
    |b(w) - b(w')| / |b(w) - b(w_0)|, with the balanced representatives b of both ends and of the start (see `balance`).
    This finds what `conservation_error` cannot see, such as a limit on the norm of gradients with respect to weights.
    Rounding alone causes about the resolution of the dtype, times the size of the weights over the distance moved.

    Args:
      make_optimizer: from parameters to the optimiser for them:
        `lambda params: g_sgd(0.1, choose_skeleton(graph, params))`.
      loss: from parameters to a number; updates get its value as the extra argument `value`.
      params: where to start.
      graph: the reduction graph.
      key: of the random scales, lognormal(0, 1) for each unit.
      steps: how many steps to take.

    Raises:
      ValueError: `steps` below 1; those of `rescale` and of the optimiser.

    Source: ours.

    >>> import optax
    >>> from pathspace import ReductionGraph, choose_skeleton, g_sgd
    >>> params = {"hidden": {"kernel": jnp.ones((1, 2))}, "out": {"kernel": jnp.full((2, 1), 0.5)}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> loss = lambda params: jnp.sum((params["hidden"]["kernel"] @ params["out"]["kernel"] - 3) ** 2)
    >>> key = jax.random.key(0)
    >>> in_path_space = lambda params: g_sgd(0.01, choose_skeleton(graph, params))
    >>> in_weight_space = lambda params: optax.sgd(0.01)
    >>> [bool(invariance_error(make, loss, params, graph, key) < 1e-4) for make in (in_path_space, in_weight_space)]
    [True, False]
    """
    if steps < 1:
        raise ValueError(f"expected 1 step or more, got {steps}.")

    def end(start: PyTree) -> PyTree:
        optimizer = optax.with_extra_args_support(make_optimizer(start))

        def step(carry: tuple[PyTree, optax.OptState], _: None) -> tuple[tuple[PyTree, optax.OptState], None]:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
        return balance(params, graph)

    equivalent = rescale(params, graph, random_scales(key, graph))
    ends = jax.lax.map(end, jax.tree.map(lambda *starts: jnp.stack(starts), params, equivalent))
    reached, reached_from_equivalent = (jax.tree.map(lambda leaf, i=i: leaf[i], ends) for i in range(2))
    moved = optax.tree.norm(optax.tree.sub(reached, balance(params, graph)))
    return optax.tree.norm(optax.tree.sub(reached, reached_from_equivalent)) / moved
