"""The same training steps in PyTorch, for comparison where it is installed."""

import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

from benchmarks.workloads import Convolutional, Language, Recurrent, Workload

_LEARNING_RATE = 1e-3


def is_installed() -> bool:
    """Whether there is a PyTorch to compare with."""
    return importlib.util.find_spec("torch") is not None


def sgd_training(workload: Workload, steps: int) -> Callable[[], None]:
    """A loop of SGD steps on the processor or the accelerator that JAX has too."""
    import jax
    import torch

    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    torch.manual_seed(0)
    with torch.device(device):
        network, inputs, labels = _made(workload)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=_LEARNING_RATE)

    def train() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            logits = network(inputs)
            torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return train


def _made(workload: Workload) -> tuple[Any, Any, Any]:
    import torch

    size = workload.batch_size
    match workload:
        case Recurrent():
            inputs = torch.randn(size, workload.time_steps, workload.features)
            return _recurrent(workload), inputs, torch.randint(workload.classes, (size,))
        case Convolutional():
            inputs = torch.randn(size, workload.channels, workload.size, workload.size)
            return _convolutional(workload), inputs, torch.randint(workload.classes, (size,))
        case Language():
            tokens = torch.randint(workload.vocabulary, (workload.time_steps, size))
            return _language(workload), tokens, tokens.roll(-1, 0)
    raise TypeError(f"expected a workload that has a counterpart in PyTorch, got {type(workload).__name__}")


def _recurrent(workload: Recurrent) -> Any:
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = [workload.features, *workload.hidden]
            self.layers = nn.ModuleList(
                nn.RNN(width_in, width, nonlinearity="relu", batch_first=True)
                for width_in, width in itertools.pairwise(sizes)
            )
            self.readout = nn.Linear(sizes[-1], workload.classes)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                states, _ = layer(states)
            return self.readout(states[:, -1])

    return Network()


def _convolutional(workload: Convolutional) -> Any:
    import torch
    from torch import nn

    maps = workload.maps

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.feed_forward = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
            self.recurrent = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
            self.norms = nn.ModuleList(nn.BatchNorm2d(maps) for _ in range(4))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            fed = self.feed_forward(inputs)
            state = self.norms[0](self.recurrent(inputs).relu())
            for norm in self.norms[1:]:
                state = norm((fed + self.recurrent(state)).relu())
            return state

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, 1)

    first = [nn.Conv2d(workload.channels, maps, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(maps)]
    last = [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(maps, workload.classes)]
    return nn.Sequential(*first, pool(), Layer(), Layer(), pool(), Layer(), Layer(), *last)


def _language(workload: Language) -> Any:
    import torch
    from torch import nn
    from torch.nn import functional

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(workload.vocabulary, workload.embedding)
            self.bias = nn.Parameter(torch.zeros(workload.vocabulary))
            sizes = [workload.embedding, *workload.hidden]
            self.layers = nn.ModuleList(
                nn.RNN(width_in, width, nonlinearity="relu") for width_in, width in itertools.pairwise(sizes)
            )

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            kept = functional.dropout(torch.ones(workload.vocabulary, 1, device=tokens.device), 0.1)
            states = _same_at_each_step(functional.embedding(tokens, kept * self.embedding.weight), 0.4)
            for index, layer in enumerate(self.layers):
                if index > 0:
                    states = _same_at_each_step(states, 0.2)
                dropped = functional.dropout(layer.weight_hh_l0, 0.1)
                weights = [layer.weight_ih_l0, dropped, layer.bias_ih_l0, layer.bias_hh_l0]
                first = states.new_zeros(1, states.shape[1], dropped.shape[0])
                # By weights given, not by those of the module, which takes no dropped ones.
                states, _ = torch.rnn_relu(states, first, weights, True, 1, 0.0, True, False, False)
            return _same_at_each_step(states, 0.4) @ self.embedding.weight.T + self.bias

    def _same_at_each_step(states: torch.Tensor, rate: float) -> torch.Tensor:
        return states * functional.dropout(states.new_ones(1, *states.shape[1:]), rate)

    return Network()
