"""The definition of kappa: half the second derivatives of the path-regulariser."""

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from pathspace import path_kappa


def normal(seed, **shapes):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def half_second_derivatives(regulariser, params):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda flat: regulariser(unravel(flat))))(flat)
    return unravel(jnp.diag(hessian) / 2)


def with_second_term(fn, x, **options):
    return jax.jit(lambda params: path_kappa(fn, params, x, second_term=True, **options))


def check_second_term(fn, regulariser, params, x):
    chex.assert_trees_all_close(
        with_second_term(fn, x)(params), half_second_derivatives(regulariser, params), rtol=1e-10
    )
