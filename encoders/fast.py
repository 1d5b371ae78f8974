"""Faster copies of frozen models: batch norms folded into convolutions.

A copy is only for use; the model itself keeps its weights as its file has them.
"""

import copy

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
