"""Models that come from no stored file: one's own, untrained ones, and the random context of the published code."""

import numpy as np
import torch
import torch.nn as nn

from encoders import ENCODERS
from housekeeping.flags import InputError, import_own


def make_own_model(spec: str) -> nn.Module:
    """A model that comes from no file: "my_module:MyEncoder" (a class or a function that gives an nn.Module), one of
    ENCODERS untrained, or "random", the State Encoder initialised as the published code's framework does by mistake
    (orthogonal, gain sqrt 2).

    Raises:
        InputError: it cannot be imported, is no nn.Module, or does not map uint8 (B, 4, 84, 84) to finite (B, n) or
        (B, C, H, W).
    """
    if spec == "random":
        model = ENCODERS["autoencoder"]()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight, np.sqrt(2))
                nn.init.zeros_(layer.bias)
        return model
    if spec in ENCODERS:
        return ENCODERS[spec]()
    try:
        model = import_own(spec)()
    except InputError:
        raise
    except Exception as error:  # someone else's code: anything can happen
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{spec}: cannot be made ({reason}); write module:name of a class or function.") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec}: gives {type(model).__name__}, not an nn.Module.")
    try:
        with torch.no_grad():
            out = model.eval()(torch.zeros(2, 4, 84, 84, dtype=torch.uint8))
    except Exception as error:
        raise InputError(
            f"{spec}: fails on uint8 (2, 4, 84, 84) ({type(error).__name__}: {error}); it must scale pixels itself."
        ) from error
    if not isinstance(out, torch.Tensor) or out.dim() not in (2, 4) or len(out) != 2:
        found = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise InputError(f"{spec}: must map uint8 (2, 4, 84, 84) to (2, n) or (2, C, H, W); it gave {found}.")
    if not out.isfinite().all():
        raise InputError(f"{spec}: what it gives for black frames has numbers that are not finite.")
    try:
        model.output_shape = tuple(out.shape[1:])
    except AttributeError as error:
        raise InputError(f"{spec}: its output_shape cannot be set; call that property otherwise.") from error
    return model
