"""Faster frozen models: copies with batch norms folded into convolutions, and on a GPU recordings of their kernels.

A copy is only for use; the model itself keeps its weights as its file has them.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn as nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(model: nn.Module) -> nn.Module:
    """A copy in which each convolution does the work of the batch norm behind it (w' = w g / s, b' = (b - m) g / s +
    shift), and each ReLU overwrites its input.

    Args:
        model: in evaluation mode; within its `nn.Sequential`s each batch norm directly behind a convolution is folded.
    """
    model = copy.deepcopy(model)
    for part in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        for i in range(len(part) - 1):
            if isinstance(part[i], nn.Conv2d) and isinstance(part[i + 1], nn.BatchNorm2d):
                part[i], part[i + 1] = fuse_conv_bn_eval(part[i], part[i + 1]), nn.Identity()
        for layer in part:
            if isinstance(layer, nn.ReLU):
                layer.inplace = True  # fast: no new memory for what is not needed twice
    return model.requires_grad_(False).eval().to(memory_format=torch.channels_last)


class Recording:
    """What frozen models compute of a batch on a GPU, as a CUDA graph: hundreds of small kernels are started as one.

    For a few observations a GPU computes faster than Python starts kernels. The kernels are those of `function`.

    Args:
        function: observations -> {name: embedding}, with no copy from or to the CPU.
        example: observations on the GPU; every call's must have their shape.
    """

    def __init__(self, function: Callable[[torch.Tensor], dict[str, torch.Tensor]], example: torch.Tensor):
        # the graph reads and writes the same memory at each replay
        self.input, self.graph = example.clone(), torch.cuda.CUDAGraph()
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):  # libraries set themselves up at their first calls: not to be recorded
            for _ in range(3):
                function(self.input)
        torch.cuda.current_stream().wait_stream(side_stream)
        with torch.cuda.graph(self.graph):
            self.output = function(self.input)

    def __call__(self, obs: torch.Tensor) -> dict[str, torch.Tensor]:
        if obs.shape != self.input.shape:  # copy_ would repeat a smaller batch
            raise ValueError(f"recorded for observations {tuple(self.input.shape)}, not {tuple(obs.shape)}.")
        self.input.copy_(obs)
        self.graph.replay()
        return {name: z.clone() for name, z in self.output.items()}  # the next replay writes over them
