"""Faster copies of frozen models: batch norms folded into convolutions, and arithmetic on bytes.

A copy is only for use; the model itself keeps its weights as its file has them.
"""

import copy
import warnings

import torch
import torch.nn as nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from encoders.autoencoder import Autoencoder
from encoders.keypoint_features import KeypointFeatures
from encoders.keypoint_maps import KeypointMaps

# Where bytes pay: networks of convolutions and ReLU. `object_masks` (bilinear upsampling between its convolutions) gets no faster and loses
# a seventh of its signal; `state_representation` is too small to matter.
INT8 = (KeypointFeatures, KeypointMaps, Autoencoder)


def folded(model: nn.Module) -> nn.Module:
    """A copy in which each convolution does the work of the batch norm behind it (w' = w g / s, b' = (b - m) g / s + shift), and each ReLU
    overwrites its input.

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


def int8(model: nn.Module, frames: torch.Tensor) -> nn.Module:
    """A copy for a CPU that multiplies bytes: weights and activations in 8 bits, sums in 32 (PyTorch's static quantisation).

    Args:
        model: one of the classes in `INT8`.
        frames: uint8 (n, 4, 84, 84), typical observations; the range of each activation is taken from them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch is moving this to a package of its own
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        torch.backends.quantized.engine = "x86" if "x86" in torch.backends.quantized.supported_engines else "qnnpack"
        mapping = get_default_qconfig_mapping(torch.backends.quantized.engine)
        with torch.no_grad():
            prepared = prepare_fx(copy.deepcopy(model).eval(), mapping, example_inputs=(frames[:8],))
            for batch in frames.split(32):
                prepared(batch)
            return convert_fx(prepared)
