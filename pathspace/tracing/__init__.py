"""The structure of a network, read from the jaxpr of its function."""

from .reduction import reduction_graph as reduction_graph
from .tables import register_scale_rule as register_scale_rule
