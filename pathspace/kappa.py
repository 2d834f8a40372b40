"""The curvature of the path-regulariser along each weight."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .tracing.path_evaluation import Powers, TracedPaths, is_weight
from .tracing.recurrences import Exposure, Recurrence, RecurrentNetwork, passed_repeatedly, recurrence
from .trees import as_arrays

_BATCH = 64  # how many columns or vectors are worked on at once: more of them need more memory


def path_kappa(
    fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    second_term: bool = False,
    num_probes: int | None = None,
    key: PRNGKeyArray | None = None,
    frozen: Sequence[str] = (),
) -> PyTree:
    """The curvature of the path-regulariser gamma^2 (the squared l_2 path-norm) along each weight.

        kappa_i = 1/2 d^2 gamma^2 / d theta_i^2 = g_i + 2 theta_i^2 g_ii

    with the derivatives of g, the path network, at the squares of the parameters. The first term costs about one
    training step on a batch of one. The second is 0 unless a path passes a weight twice, as in recurrent networks. It
    is computed

    - for the matrix of a recurrence (one product with a vector in each step of a `lax.scan`) in closed form, in
      O(T H^3) for T steps and H units:

          g_ij,ij = 2 sum_{s<t} h_s[i] P_{t-s}[j, i] d_t[j]

      with what goes into the matrix in step s, h_s, the derivative of g by what comes out of it in step t, d_t, and the
      sum P_{t-s} over the paths from what came out of it to what goes into it t - s steps later;
    - for all other weights that paths pass repeatedly from Hessian-vector products: exactly, by one for each weight
      (for small networks), or with `num_probes` as an estimate.

    Args:
      fn: see `path_network`.
      params: the parameters.
      *inputs: of one example, or arrays like it; see `path_network`.
      second_term: whether to add the second term. Path-SGD works with the first alone.
      num_probes: where there is no closed form, estimate g_ii by the mean of v_i (Hessian v)_i over so many random
        vectors of signs v for each leaf (Hutchinson). The estimate is unbiased, and may be negative.
      key: for the random vectors.
      frozen: see `path_network`.

    Returns:
      A tree like `params`, in float32 or wider; 0 for weights that no path passes, and for leaves that are not floating
      point; infinite where sums over paths overflow, so that Path-SGD leaves such weights as they are.

    Raises:
      ValueError: see `path_network`; `num_probes` below 1, or without a key or the second term.

    Source: Neyshabur et al., "Path-Normalized Optimization of Recurrent Neural Networks with ReLU Activations" (2016),
    equation 8, Lemma 1 and Theorem 3 (the second term as printed there is half of its definition); the estimate:
    Bekas, Kokiopoulou and Saad, "An Estimator for the Diagonal of a Matrix" (2007).

    >>> params = {"first": jnp.array([[2.0, -1.0]]), "second": jnp.array([[3.0], [-4.0]])}
    >>> def network(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> path_kappa(network, params, jnp.zeros((1, 1)))["first"].tolist()
    [[9.0, 16.0]]
    """
    _check_probes(second_term, num_probes, key)
    wide = jax.tree.map(lambda leaf: leaf.astype(_wide(leaf)) if is_weight(leaf) else leaf, as_arrays(params))
    traced = TracedPaths(fn, jax.lax.stop_gradient(wide), inputs, 2, frozen)
    squares = traced.powers(jax.tree.leaves(wide))

    matrices = {place: matrix for place in squares if (matrix := recurrence(traced.jaxpr, place)) is not None}
    kappas, flows = _first_terms(traced, squares, matrices)
    if second_term:
        probe_keys = None if key is None or num_probes is None else jax.random.split(key, num_probes)
        repeated = passed_repeatedly(traced.jaxpr)
        for place in (place for place in squares if repeated[place] and squares[place].size):
            if place in flows and flows[place].steps_are_alike:
                diagonal = _recurrent_diagonal(traced, squares, place, flows[place])
            elif probe_keys is not None:
                diagonal = _estimated_diagonal(traced, squares, place, probe_keys)
            else:
                diagonal = _hessian_diagonal(traced, squares, place)
            kappas[place] += 2 * squares[place] * diagonal
    # 0 times an infinite sum over paths is no number.
    finite_or_infinite = {place: jnp.where(jnp.isnan(kappa), jnp.inf, kappa) for place, kappa in kappas.items()}
    leaves = [
        finite_or_infinite.get(place, jnp.zeros(jnp.shape(leaf), jnp.float32))
        for place, leaf in enumerate(traced.leaves)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


class _Flow(NamedTuple):
    """What flows through the matrix of a recurrence, in the order of time."""

    matrix: Recurrence
    entering: Float[Array, "time source"]  # h_t
    leaving: Float[Array, "time target"]  # d_t
    steps_are_alike: bool


def _first_terms(
    traced: TracedPaths, squares: Powers, matrices: Mapping[int, Recurrence]
) -> tuple[Powers, dict[int, _Flow]]:
    """The derivatives of g. Those by matrices of recurrences are one product behind the loop, not one in each step."""
    perturbations = {place: _unperturbed(squares[place], matrix) for place, matrix in matrices.items()}
    others = {place: square for place, square in squares.items() if place not in matrices}

    def total(others: Powers, perturbations: Powers) -> tuple[Array, Any]:
        return _exposed_total(traced, {**squares, **others}, perturbations)

    (terms, leaving), (entering, steps_are_alike) = jax.grad(total, argnums=(0, 1), has_aux=True)(others, perturbations)
    if hidden := [place for place in matrices if entering[place] is None]:
        return _first_terms(traced, squares, {place: matrices[place] for place in matrices if place not in hidden})
    flows = {
        place: _Flow(matrix, entering[place], leaving[place], steps_are_alike[place])
        for place, matrix in matrices.items()
    }
    products = {place: _oriented(flow.matrix, flow.entering.T @ flow.leaving) for place, flow in flows.items()}
    return {**terms, **products}, flows


def _exposed_total(
    traced: TracedPaths, squares: Powers, perturbations: Powers
) -> tuple[Array, tuple[dict[int, Array | None], dict[int, bool]]]:
    """g, what enters the perturbed matrices, and whether steps are alike there."""
    arguments = traced.arguments(squares)
    exposures = {place: Exposure(arguments[place], each) for place, each in perturbations.items()}
    total = traced.total(RecurrentNetwork([*exposures.values()], traced.statistics()), arguments)
    entering = {place: each.operands for place, each in exposures.items()}
    return total, (entering, {place: each.steps_are_alike for place, each in exposures.items()})


def _unperturbed(square: Array, matrix: Recurrence) -> Float[Array, "time target"]:
    return jnp.zeros((matrix.length, square.shape[1 if matrix.from_rows else 0]), square.dtype)


def _oriented(matrix: Recurrence, by_source_and_target: Array) -> Array:
    return by_source_and_target if matrix.from_rows else by_source_and_target.T


def _recurrent_diagonal(traced: TracedPaths, squares: Powers, place: int, flow: _Flow) -> Array:
    """g_ij,ij of the matrix of a recurrence."""

    def entering(perturbations: Array) -> Array | None:
        return _exposed_total(traced, squares, {place: perturbations})[1][0][place]

    _, respond = jax.linearize(entering, jnp.zeros_like(flow.leaving))
    targets = jnp.arange(flow.leaving.shape[1])

    # As steps are alike, P depends on t - s alone: d backwards in time brings forth sum_t P_{t-s} d_t, backwards too.
    # No sum of products behind it, which XLA is slow at on CPUs: with JAX 0.12 all of this takes 1.7 times as long so
    # with 1024 units and 50 steps, 2 times with 100 units and 784.
    def of_target(target: Array) -> Float[Array, " source"]:
        response = respond(jnp.where(targets == target, flow.leaving[::-1], 0))
        return 2 * jnp.einsum("ts,ts->s", flow.entering[::-1], response)

    by_target = jax.lax.map(of_target, targets, batch_size=_BATCH)
    return _oriented(flow.matrix, by_target.T)


def _hessian_diagonal(traced: TracedPaths, squares: Powers, place: int) -> Array:
    """g_ii of one leaf."""
    leaf = squares[place]

    def entry(index: Array) -> Array:
        direction = jnp.zeros_like(leaf).ravel().at[index].set(1).reshape(leaf.shape)
        return _hessian_times(traced, squares, place, direction).ravel()[index]

    return jax.lax.map(entry, jnp.arange(leaf.size), batch_size=_BATCH).reshape(leaf.shape)


def _estimated_diagonal(traced: TracedPaths, squares: Powers, place: int, keys: Array) -> Array:
    """The mean of v_i (Hessian v)_i over random vectors of signs."""
    leaf = squares[place]

    def probe(key: PRNGKeyArray) -> Array:
        signs = jax.random.rademacher(jax.random.fold_in(key, place), leaf.shape, leaf.dtype)
        return signs * _hessian_times(traced, squares, place, signs)

    return jnp.mean(jax.lax.map(probe, keys, batch_size=_BATCH), axis=0)


def _hessian_times(traced: TracedPaths, squares: Powers, place: int, direction: Array) -> Array:
    def total(leaf: Array) -> Array:
        return traced.total(traced.network(), traced.arguments({**squares, place: leaf}))

    return jax.jvp(jax.grad(total), (squares[place],), (direction,))[1]


def _wide(leaf: Array) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _check_probes(second_term: bool, num_probes: int | None, key: PRNGKeyArray | None) -> None:
    if num_probes is not None and num_probes < 1:
        raise ValueError(f"expected num_probes to be 1 or more, or None for the exact second term, got {num_probes}.")
    if (num_probes is None) != (key is None):
        given, missing = ("key", "num_probes") if num_probes is None else ("num_probes", "key")
        raise ValueError(f"an estimate of the second term needs num_probes and key, got {given} without {missing}.")
    if num_probes is not None and not second_term:
        raise ValueError("num_probes is for the second term, got it with second_term=False.")
