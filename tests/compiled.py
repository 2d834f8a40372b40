"""Functions compiled once per graph: eagerly, each of their operations would compile anew for each shape."""

import jax

from pathspace import (
    balance,
    basis_paths,
    choose_skeleton,
    conservation_error,
    path_kappa,
    path_norm,
    rescale,
    skeleton_masks,
    with_unit_skeleton,
)

choose = jax.jit(choose_skeleton, static_argnums=0, static_argnames=["method", "reference"])
rescaled = jax.jit(rescale, static_argnums=1)
balanced = jax.jit(balance, static_argnums=1)
loss_gradient = jax.jit(lambda network, params, inputs: jax.grad(network.loss)(params, inputs), static_argnums=0)
outputs = jax.jit(lambda network, params, inputs: network.outputs(params, inputs), static_argnums=0)
masks_of = jax.jit(skeleton_masks)
unit_skeleton = jax.jit(with_unit_skeleton)
paths_of = jax.jit(basis_paths)
conservation = jax.jit(conservation_error, static_argnums=2)
norm_of = jax.jit(path_norm, static_argnums=0, static_argnames=["p", "log", "per_output"])
kappa_of = jax.jit(path_kappa, static_argnums=0, static_argnames=["second_term"])
