"""A start that answers: layers scaled on data, so that no unit is silent and none drowns the others.

From Krähenbühl et al. 2016 (arXiv 1511.06856, section 3) and Mishkin and Matas 2016 (arXiv 1511.06422), who scale each
layer likewise before training.
"""

import torch
import torch.nn as nn


@torch.no_grad()
def standardise_outputs(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Change each convolution and linear layer in place, one after the other, so that each of its units (a
    convolution's channels, over all places) has mean 0 and variance 1 over the data `x`, before any ReLU behind it.

    A unit that gives the same for all data keeps its weights. Returns what the last of `layers` then gives.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            y = layer(x).transpose(0, 1).flatten(1)  # (units, all the rest)
            deviation = y.std(dim=1)
            scale = torch.where(deviation > 1e-6, 1 / deviation, 1.0)
            layer.weight *= scale.view(-1, *[1] * (layer.weight.dim() - 1))
            layer.bias.copy_((layer.bias - y.mean(dim=1)) * scale)
        x = layer(x)
    return x
