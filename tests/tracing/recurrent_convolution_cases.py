"""Recurrent convolutional networks: canonical, and as the cited code has them."""

import flax.linen as nn
from flax import nnx

from .building import EPSILON, case, floats, linen, of_nnx


# The first layer has two maps, which the recurrent layer of three maps reads.
@case(units=2 + 3)
def linen_rcnn():
    def body(x):
        x = nn.relu(nn.Conv(2, (2,))(x))
        feed_forward, recurrent = nn.Conv(3, (2,)), nn.Conv(3, (2,), use_bias=False)
        h = nn.relu(feed_forward(x))
        for _ in range(3):
            h = nn.relu(feed_forward(x) + recurrent(h))
        return nn.Dense(2)(h.mean(-2))

    return linen(body, floats(2, 4, 2))


def _nnx_rcnn(rngs, norms=0):
    return {
        "first": nnx.Conv(2, 2, (2,), rngs=rngs),
        "feed_forward": nnx.Conv(2, 3, (2,), use_bias=not norms, rngs=rngs),
        "recurrent": nnx.Conv(3, 3, (2,), use_bias=False, rngs=rngs),
        "out": nnx.Linear(3, 2, rngs=rngs),
        "norms": nnx.List([nnx.BatchNorm(3, epsilon=EPSILON, rngs=rngs) for _ in range(norms)]),
    }


@case(units=2 + 3)
def nnx_rcnn():
    def body(m, x):
        x = nnx.relu(m.first(x))
        h = nnx.relu(m.feed_forward(x))
        for _ in range(3):
            h = nnx.relu(m.feed_forward(x) + m.recurrent(h))
        return m.out(h.mean(-2))

    return of_nnx(_nnx_rcnn, body, floats(2, 4, 2))


# A norm for each step, before the ReLU. The recurrent kernel reads the states of all steps but the last: they are one
# group; the state of the last step, which the readout alone reads, is another. What the norms read, the outputs of both
# kernels, is ground, but the sources of both kernels are not.
@case(units=2 + 3 + 3)
def nnx_rcnn_with_batch_norm():
    def body(m, x):
        x = nnx.relu(m.first(x))
        h = nnx.relu(m.norms[0](m.feed_forward(x)))
        for norm in m.norms[1:]:
            h = nnx.relu(norm(m.feed_forward(x) + m.recurrent(h)))
        return m.out(h.mean(-2))

    return of_nnx(lambda rngs: _nnx_rcnn(rngs, norms=3), body, floats(2, 4, 2))


# One norm for all steps: the states of all steps are one group.
@case(units=2 + 3)
def linen_rcnn_with_one_batch_norm():
    def body(x):
        x = nn.relu(nn.Conv(2, (2,))(x))
        feed_forward, recurrent = (nn.Conv(3, (2,), use_bias=False) for _ in range(2))
        norm = nn.BatchNorm(use_running_average=False, epsilon=EPSILON)
        h = nn.relu(norm(feed_forward(x)))
        for _ in range(2):
            h = nn.relu(norm(feed_forward(x) + recurrent(h)))
        return nn.Dense(2)(h.mean(-2))

    return linen(body, floats(2, 4, 2))


# The cited variant: the recurrent kernel reads the inputs of the block at the first step, so that their units and those
# of the states are one group; the other kernel reads them at all further steps.
@case(units=3)
def linen_cited_rcnn():
    def body(x):
        x = nn.relu(nn.Conv(3, (2,))(x))
        recurrent, shortcut = (nn.Conv(3, (2,), use_bias=False) for _ in range(2))
        h = nn.relu(recurrent(x))
        for _ in range(2):
            h = nn.relu(recurrent(h) + shortcut(x))
        return nn.Dense(2)(h.mean(-2))

    return linen(body, floats(2, 4, 2))


# With its norm behind the ReLU of each step: the scales and biases of all norms but the last feed that group, those of
# the last one feed units of their own.
@case(units=3 + 3)
def linen_cited_rcnn_with_batch_norm():
    def body(x):
        x = nn.relu(nn.Conv(3, (2,))(x))
        recurrent, shortcut = (nn.Conv(3, (2,), use_bias=False) for _ in range(2))

        def norm(h):
            return nn.BatchNorm(use_running_average=False, epsilon=EPSILON)(nn.relu(h))

        h = norm(recurrent(x))
        for _ in range(2):
            h = norm(recurrent(h) + shortcut(x))
        return nn.Dense(2)(h.mean(-2))

    return linen(body, floats(2, 4, 2))
