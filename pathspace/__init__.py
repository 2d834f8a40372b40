"""Optimise and measure networks in coordinates that respect their rescaling symmetries."""

from .basis import (
    basis_paths as basis_paths,
    from_basis_paths as from_basis_paths,
    inverse_chain_rule as inverse_chain_rule,
    weight_allocation as weight_allocation,
)
from .graph import ReductionGraph as ReductionGraph
from .invariance import invariance_error as invariance_error
from .kappa import path_kappa as path_kappa
from .norms import (
    basis_path_norm as basis_path_norm,
    path_network as path_network,
    path_norm as path_norm,
)
from .optimizers import (
    PathSpaceState as PathSpaceState,
    g_adam as g_adam,
    g_sgd as g_sgd,
    in_path_space as in_path_space,
)
from .path_norm_optimizers import (
    PathKappaState as PathKappaState,
    path_adam as path_adam,
    path_sgd as path_sgd,
    scale_by_path_kappa as scale_by_path_kappa,
)
from .rescaling import (
    balance as balance,
    conservation_error as conservation_error,
    random_scales as random_scales,
    rescale as rescale,
)
from .skeleton import (
    Skeleton as Skeleton,
    choose_skeleton as choose_skeleton,
    skeleton_masks as skeleton_masks,
    with_unit_skeleton as with_unit_skeleton,
)
from .tracing import (
    reduction_graph as reduction_graph,
    register_scale_rule as register_scale_rule,
)
