"""Matrices that act on the state of a passthrough network: full, low-rank, low-rank plus diagonal."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .initializers import Initializer, uniform

KERNEL_INIT: Initializer = nnx.initializers.glorot_uniform()
DIAGONAL_INIT = uniform(0.01)


class Kernel(nnx.Module):
    """Weights of shape (sources, targets); with weight normalisation w = g v / |v|, |v| the norm for each target.

    Args:
        sources: size of the first axis.
        targets: size of the second axis.
        weight_norm: whether the weights are normalised.
        scale: whether the norms g are parameters, which start at those of v; otherwise they are 1.
        kernel_init: initialiser of v.
        param_dtype: dtype of the parameters.
        rngs: random keys; the stream ``params`` is used.

    Source: Salimans and Kingma, "Weight Normalization" (2016), eq. 2.
    """

    def __init__(
        self,
        sources: int,
        targets: int,
        *,
        weight_norm: bool,
        scale: bool,
        kernel_init: Initializer,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.weight_norm = weight_norm
        kernel = kernel_init(rngs.params(), (sources, targets), param_dtype)
        self.kernel = nnx.Param(kernel)
        self.scale = nnx.data(nnx.Param(jnp.linalg.norm(kernel, axis=0)) if weight_norm and scale else None)

    def weights(self, dtype: DTypeLike | None) -> Float[Array, "sources targets"]:
        """The weights w."""
        weights = self.kernel[...]
        if self.weight_norm:
            squares = jnp.sum(weights * weights, axis=0)
            weights = weights / jnp.sqrt(jnp.where(squares > 0, squares, 1))
        if self.scale is not None:
            weights = weights * self.scale[...]
        return weights if dtype is None else weights.astype(dtype)


class Factors(NamedTuple):
    """R, L and D of x R L + x D, with D its diagonal or None."""

    projection: Float[Array, "hidden_features rank"]
    expansion: Float[Array, "rank hidden_features"]
    diagonal: Float[Array, " hidden_features"] | None


class StateMatrix(nnx.Module):
    """A matrix on the state: W, the low-rank product R L of two factors, or R L + D with D diagonal.

    In the paper, which has the state on the right, W is written L R + D. The inner components, the `rank` targets of R
    and sources of L, have the rescaling symmetry: they are units of the reduction graph.

    Args:
        hidden_features: size n of the state.
        rank: number d of inner components; None for a full matrix.
        diagonal: whether a diagonal is added to the low-rank product.
        projection: the kernel R, where it is shared with another matrix; None for one of its own.
        weight_norm: whether rows of the paper's matrices are normalised: of W and L with a trainable norm, of R with
            norm 1, the diagonal never.
        kernel_init: initialiser of W, R and L.
        diagonal_init: initialiser of the diagonal.
        param_dtype: dtype of the parameters.
        rngs: random keys; the stream ``params`` is used.

    Raises:
        ValueError: a rank below 1 or above `hidden_features`; a diagonal with a full matrix.

    Source: Miceli Barone, "Low-rank passthrough neural networks" (2016), equations 4 and 5, appendix A.2.
    """

    def __init__(
        self,
        hidden_features: int,
        *,
        rank: int | None,
        diagonal: bool,
        projection: Kernel | None,
        weight_norm: bool,
        kernel_init: Initializer,
        diagonal_init: Initializer,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        if rank is not None and not 1 <= rank <= hidden_features:
            raise ValueError(
                f"expected a rank from 1 to the size of the state, {hidden_features}, got {rank}: "
                "give None for a full matrix"
            )
        if rank is None and diagonal:
            raise ValueError("expected a rank with a diagonal, got None: a full matrix has a diagonal already")

        def kernel(sources: int, targets: int, scale: bool) -> Kernel:
            return Kernel(
                sources,
                targets,
                weight_norm=weight_norm,
                scale=scale,
                kernel_init=kernel_init,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.full: Kernel | None = nnx.data(
            kernel(hidden_features, hidden_features, scale=True) if rank is None else None
        )
        if rank is None:
            return
        self.projection = kernel(hidden_features, rank, scale=False) if projection is None else projection
        self.expansion = kernel(rank, hidden_features, scale=True)
        self.diagonal = nnx.data(
            nnx.Param(diagonal_init(rngs.params(), (hidden_features,), param_dtype)) if diagonal else None
        )

    def weights(self, dtype: DTypeLike | None) -> Float[Array, "hidden_features hidden_features"] | Factors:
        """The matrix or its factors, for `apply_matrix`."""
        if self.full is not None:
            return self.full.weights(dtype)
        diagonal = None if self.diagonal is None else jnp.asarray(self.diagonal[...], dtype)
        return Factors(self.projection.weights(dtype), self.expansion.weights(dtype), diagonal)


def apply_matrix(
    weights: Float[Array, "hidden_features hidden_features"] | Factors,
    state: Float[Array, "*batch hidden_features"],
    between: Callable[[Array], Array] = lambda components: components,
) -> Float[Array, "*batch hidden_features"]:
    """Product of the state and the matrix, with a function of the inner components between the factors."""
    if not isinstance(weights, Factors):
        return state @ weights
    product = between(state @ weights.projection) @ weights.expansion
    return product if weights.diagonal is None else product + state * weights.diagonal
