"""The pre-trained models: each file has one network and the loss that trains it without reward.

A network takes the agent's own observation, uint8 (B, 4, 84, 84), oldest frame first, picks the frames it needs and
scales them itself, so that nothing differs between pre-training and use. `load_encoder` opens a stored one, frozen.

What `pretrain_encoders.py` finds in a pre-training (a value of PRETRAININGS):
    stored_models()               what is kept at the end: name -> network
    loss(obs, later_obs, progress)
                                  uint8 (B, 4, 84, 84) twice, progress from 0 to 1 over the run -> dict of (): "loss"
                                  and its parts
    offsets                       later_obs comes (lowest, highest) steps after obs, in the same game
    picture(obs, later_obs)       {title: grey images (B, 1, 84, 84) in [0, 1]}, perhaps "keypoints" (B, K, 2)
    steps, batch_size             by budget: "cpu" or "paper"
    for_cpu(obs)                  perhaps, for the "cpu" budget, before the first step, with 256 training observations:
                                  leaves what is published (start, loss, learning rate) for what learns within hours;
                                  the text of its file says how
    adam, learning_rate_factor(progress)
    max_grad_norm, patience       None: not clipped; validations without a lower loss before it stops, None: never
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from encoders.autoencoder import Autoencoder, AutoencoderPretraining
from encoders.frame_prediction import FramePrediction, FramePredictionPretraining
from encoders.image_completion import ImageCompletion, ImageCompletionPretraining
from encoders.keypoint_features import KeypointFeatures
from encoders.keypoint_maps import KeypointMaps
from encoders.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderPretraining
from encoders.object_masks import ObjectMasks, ObjectMasksPretraining
from encoders.state_representation import StateRepresentation, StateRepresentationPretraining
from encoders.transporter import TransporterPretraining
from housekeeping import files
from housekeeping.flags import InputError

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"  # this repository's stored models, from anywhere

ENCODERS: dict[str, type[nn.Module]] = {
    "state_representation": StateRepresentation,
    "keypoint_features": KeypointFeatures,
    "keypoint_maps": KeypointMaps,
    "object_masks": ObjectMasks,
    "autoencoder": Autoencoder,
    "image_completion": ImageCompletion,
    "frame_prediction": FramePrediction,
    "masked_autoencoder": MaskedAutoencoder,
}

PRETRAININGS: dict[str, type[nn.Module]] = {  # which pre-training makes which model
    "state_representation": StateRepresentationPretraining,
    "keypoint_features": TransporterPretraining,
    "keypoint_maps": TransporterPretraining,
    "object_masks": ObjectMasksPretraining,
    "autoencoder": AutoencoderPretraining,
    "image_completion": ImageCompletionPretraining,
    "frame_prediction": FramePredictionPretraining,
    "masked_autoencoder": MaskedAutoencoderPretraining,
}

FORMAT_VERSION = 1


def save_encoder(path: Path, name: str, pretraining: nn.Module, description: dict[str, Any]) -> None:
    """Store the model `name` of a pre-training in half precision, with what it is: `description` holds game, training
    data, steps, losses.

    What is only needed to train it or to judge it (a decoder, say) is kept beside it, as "heads"; it is small. A tensor
    that half precision cannot hold (it would become infinite) stays in single precision.
    """
    models = pretraining.stored_models()
    in_models = {id(tensor) for model in models.values() for tensor in model.state_dict(keep_vars=True).values()}
    heads = {
        key: half_if_finite(t) for key, t in pretraining.state_dict(keep_vars=True).items() if id(t) not in in_models
    }
    files.save(
        {
            "kind": "encoder",
            "version": FORMAT_VERSION,
            "name": name,
            "input": f"uint8 (B, 4, 84, 84); sees: {models[name].input}",
            "output_shape": list(models[name].output_shape),
            **description,
            "state": {key: half_if_finite(tensor) for key, tensor in models[name].state_dict().items()},
            "heads": heads,
        },
        path,
    )


def half_if_finite(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU in half precision, or as it is where that would overflow."""
    half = tensor.detach().cpu().half() if tensor.is_floating_point() else tensor.detach().cpu()
    return half if half.isfinite().all() else tensor.detach().cpu()


def load_encoder(path: Path, device: torch.device | str = "cpu", game: str | None = None) -> nn.Module:
    """Open a stored model, frozen: evaluation mode, no gradients, its weights the file's bit for bit (in float32).

    Args:
        path: a file that `pretrain_encoders.py` wrote; it is called as the model is.
        game: if given, the model must be of this game, e.g. "Pong".

    Returns:
        A module that maps uint8 (B, 4, 84, 84) to its embedding, with `output_shape` (without the batch), `description`
        (what the file says of itself) and `sha256` (of the file).

    Raises:
        InputError: no such file, damaged, of another model or game, or its weights do not fit its network.
    """
    path = Path(path)
    payload = files.load(path, "encoder")
    description = {key: value for key, value in payload.items() if key not in ("state", "heads")}
    if payload.get("version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {payload.get('version')}, this project reads version {FORMAT_VERSION}."
        )
    if payload.get("name") not in ENCODERS:
        raise InputError(f"{path}: a model named '{payload.get('name')}'; the known ones are {', '.join(ENCODERS)}.")
    if payload["name"] != path.stem:
        raise InputError(f"{path}: the model in this file is {payload['name']}, not {path.stem}.")
    if game is not None and payload.get("game") != game:
        raise InputError(f"{path}: this model is of {payload.get('game')}, not of {game}.")
    with torch.device("meta"):  # fast: no random weights first (a state has all of a model's tensors)
        model = ENCODERS[payload["name"]]()
    if tuple(payload["output_shape"]) != tuple(model.output_shape):
        raise InputError(
            f"{path}: its output shape is {tuple(payload['output_shape'])}, {payload['name']} here gives "
            f"{model.output_shape}."
        )
    try:
        state = payload["state"].items()
        weights = {name: value.float() if value.is_floating_point() else value for name, value in state}
        model.load_state_dict(weights, assign=True)
    except (AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: its weights do not fit the network of {payload['name']}.") from error
    model.description, model.sha256 = description, files.sha256(path)
    return model.requires_grad_(False).eval().to(device)


def load_pretraining(folder: Path, name: str, device: torch.device | str = "cpu") -> nn.Module:
    """The whole pre-training that made `folder`/`name`.pt, with its stored weights, frozen: to compute its loss or to
    draw its picture.

    Raises:
        InputError: as `load_encoder`, for each model that the pre-training made.
    """
    pretraining = PRETRAININGS[name]()
    for model_name, model in pretraining.stored_models().items():
        stored = load_encoder(Path(folder) / f"{model_name}.pt")
        model.load_state_dict(stored.state_dict())
        pretraining.cpu = stored.description["training"].get("budget") == "cpu"  # which may change the loss
    pretraining.load_state_dict(files.load(Path(folder) / f"{name}.pt", "encoder")["heads"], strict=False)
    return pretraining.requires_grad_(False).eval().to(device)
