import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from pathspace.models import max_row_norm


def clipped(weights, limit):
    """The definition, target by target."""
    result = np.array(weights, np.float64)
    for target in range(weights.shape[-1]):
        norm = np.sqrt(np.sum(result[..., target] ** 2))
        if norm > limit:
            result[..., target] *= limit / norm
    return result


@pytest.mark.parametrize(("shape", "limit"), [((4, 3), 15.0), ((2, 2, 4, 3), 56.0)], ids=str)
def test_norms_after_a_step(shape, limit):
    keys = jax.random.split(jax.random.key(0))
    params, updates = (10 * jax.random.normal(key, shape) for key in keys)
    steps, _ = max_row_norm(limit).update(updates, optax.EmptyState(), params)
    expected = clipped(np.asarray(params + updates), limit)
    assert 0 < np.sum(expected != np.asarray(params + updates, np.float64)) < expected.size
    assert_allclose(optax.apply_updates(params, steps), expected, rtol=1e-5, atol=1e-5)


def test_leaves_without_rows_are_left_alone():
    params = {"bias": jnp.full(3, 100.0), "kernel": jnp.full((3, 2), 0.5)}
    updates = {"bias": jnp.full(3, 7.0), "kernel": jnp.full((3, 2), 0.25)}
    steps, _ = max_row_norm().update(updates, optax.EmptyState(), params)
    assert steps["bias"].tolist() == [7.0] * 3
    assert_allclose(steps["kernel"], updates["kernel"], rtol=1e-6)


def test_in_a_chain_under_jit():
    optimizer = optax.chain(optax.sgd(1.0), max_row_norm(2.0))
    params = jnp.zeros((2, 2))
    step = jax.jit(lambda params, state: optimizer.update(jnp.full((2, 2), -3.0), state, params))
    updates, _ = step(params, optimizer.init(params))
    assert_allclose(jnp.linalg.norm(updates, axis=0), [2.0, 2.0], rtol=1e-6)


def test_updates_keep_their_dtype():
    params = jnp.full((2, 2), 100.0, jnp.bfloat16)
    updates, _ = max_row_norm().update(jnp.zeros_like(params), optax.EmptyState(), params)
    assert updates.dtype == jnp.bfloat16


def test_needs_params():
    with pytest.raises(ValueError, match="params"):
        max_row_norm().update(jnp.ones((2, 2)), optax.EmptyState())


def test_limit_above_zero():
    with pytest.raises(ValueError, match="above 0, got 0"):
        max_row_norm(0.0)
