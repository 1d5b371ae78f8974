"""Several frozen models at once: opened, checked, run on each observation, and what they said kept for the update."""

import functools
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from encoders import ENCODERS, PRETRAINED, load_encoder
from encoders.fast import Recording, folded
from encoders.own_model import make_own_model
from environments import folder_name, random_play
from environments.rendered import is_rendered
from housekeeping import precision
from housekeeping.flags import InputError
from housekeeping.memory import require_memory, take_rows
from housekeeping.precision import Precision
from housekeeping.seeds import env_seeds, seed_of


def short_name(spec: str) -> str:
    """What a model is called in logs and checkpoints: "object_masks", or for one's own "my_module:MyEncoder" its last
    part."""
    return spec.rpartition(":")[2]


def require_known(specs: tuple[str, ...]) -> None:
    """Refuse models that are neither known nor of the form module:name; raises InputError."""
    unknown = [spec for spec in specs if spec not in (*ENCODERS, "random") and ":" not in spec]
    if unknown:
        known = f"the known ones are {', '.join(ENCODERS)}, and module:name for a model of your own"
        raise InputError(f"{', '.join(unknown)}: no such model; {known}.")


class FrozenModels(nn.Module):
    """The models that an agent sees through: never trained, always in evaluation mode.

    `sha256` has the hash of each one that comes from a file; the others (one's own, untrained ones) are in `own`, and a
    checkpoint keeps their weights.

    Args:
        env_id: the game of the stored models.
        specs: names of stored models, or "my_module:MyEncoder" for one's own.
        context: likewise, the model that gives the context; "random" is the autoencoder's network, untrained; None:
            none.
        untrained: give the models of `specs` random weights.
        seed: of random weights.
        pretrained_dir: the stored models are <pretrained_dir>/<Game>/<name>.pt; None: those of this repository.
        carried: names of models whose weights a checkpoint carries, so that `restore` brings them and no file is read.

    Raises:
        InputError: names the models that are missing, with the command that makes them; two have one name; a file is
            damaged, or holds another model.
    """

    def __init__(
        self,
        env_id: str,
        specs: tuple[str, ...],
        context: str | None = None,
        untrained: bool = False,
        seed: int = 1,
        pretrained_dir: str | None = None,
        carried: Collection[str] = (),
    ):
        super().__init__()
        self.env_id, game = env_id, folder_name(env_id)
        folder = Path(pretrained_dir or PRETRAINED) / game
        by_name: dict[str, str] = {}

        def need(name: str, spec: str) -> None:
            if by_name.setdefault(name, spec) != spec:
                raise InputError(f"{by_name[name]} and {spec} are both called {name}; rename one.")

        for spec in specs:
            need(short_name(spec), spec)
        untrained_names = set(by_name) & set(ENCODERS) if untrained else set()
        self.context_name = None
        if context:
            self.context_name = short_name(context)
            # the context stays what it is: not the untrained model of that name
            if self.context_name in untrained_names:
                self.context_name = f"context_{self.context_name}"
            need(self.context_name, context)
        without_file = {*untrained_names, *carried}
        stored = {name: spec for name, spec in by_name.items() if spec in ENCODERS and name not in without_file}
        missing = [spec for spec in stored.values() if not (folder / f"{spec}.pt").is_file()]
        if missing:
            where = f" --pretrained-dir {folder.parent}" if folder.parent != PRETRAINED else ""
            raise InputError(
                f"{folder}: no stored {', '.join(missing)}; make them with "
                f"python pretrain_encoders.py --env-id {env_id} --encoders {' '.join(missing)}{where}"
            )
        self.models, self.sha256 = nn.ModuleDict(), {}
        for name, spec in by_name.items():
            if name in stored:
                self.models[name] = load_encoder(folder / f"{spec}.pt", game=game)
                self.sha256[name] = self.models[name].sha256
            else:
                with torch.random.fork_rng():  # random weights of its own, so that nothing else's randomness moves
                    torch.manual_seed(seed_of(seed, name))
                    self.models[name] = make_own_model(spec)
        self.shapes = {name: tuple(model.output_shape) for name, model in self.models.items()}
        self.requires_grad_(False).eval()
        for model in self.models.values():
            if type(model) in ENCODERS.values():  # one's own stays as it was tried: views of its maps may need it
                model.to(memory_format=torch.channels_last)  # fast: the layout that convolutions prefer
        # copies made by `prepare`; not in the state dict, which has each model once
        self.fast: dict[str, nn.Module] = {}
        self.centre: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # mean and scale of each embedding
        self.precision = "float32"
        self.recordings: dict[tuple, Recording] = {}  # by models and shape of the batch

    @property
    def own(self) -> dict[str, nn.Module]:
        """The models that come from no file, by name."""
        return {name: model for name, model in self.models.items() if name not in self.sha256}

    def state(self) -> dict[str, dict]:
        """What a checkpoint keeps: hashes of stored models, weights of the others, and what centring takes away."""
        own = {name: model.state_dict() for name, model in self.own.items()}
        return {"encoders": self.sha256, "own_models": own, "centre": self.centre}

    def restore(self, checkpoint: dict, path: Path) -> None:
        """Bring back the weights of models that come from no file; refuse stored models other than the checkpoint's.

        Raises:
            InputError: names the stored models that differ, or the model of one's own whose weights no longer fit.
        """
        other = [name for name, sha256 in self.sha256.items() if checkpoint["encoders"].get(name) != sha256]
        if other:
            raise InputError(
                f"{path}: the stored {', '.join(other)} is not the one this agent was trained with; "
                "give the folder that holds it as --pretrained-dir."
            )
        for name, model in self.own.items():
            try:
                model.load_state_dict(checkpoint["own_models"][name])
            except (KeyError, RuntimeError) as error:
                raise InputError(f"{path}: the weights of {name} here do not fit the model of that name.") from error

    def prepare(
        self,
        precision: Precision,
        device: torch.device,
        centre: bool = False,
        measured: dict[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
        compile: bool = False,
    ) -> None:
        """Move to the device and make the copies that are really run; without this call the models run as stored.

        Args:
            centre: subtract from each embedding its mean over random play, and divide by the deviation around it.
            measured: these means and deviations from a checkpoint, so that an agent stays what it is.
        """
        self.to(device)
        self.precision = precision
        self.recordings.clear()
        for name, model in self.models.items():
            if type(model) in ENCODERS.values():
                self.fast[name] = folded(model)  # fast: each batch norm is computed with the convolution before it
                self.fast[name].to(getattr(torch, precision))  # fast: rounded once, not at each call
            if compile:
                compiled = torch.compile(self.fast.get(name, model), options={"freezing": True})
                self.fast[name] = compiled  # fast: fused kernels, with the weights as constants
        if measured:
            self.centre = {name: (mean.to(device), scale.to(device)) for name, (mean, scale) in measured.items()}
        elif centre:
            for name, model in self.models.items():
                with torch.no_grad():
                    z = torch.cat([model(batch.to(device)).float() for batch in typical_frames(self.env_id).split(32)])
                if not z.isfinite().all():
                    raise InputError(f"{name}: what it gives in random play has numbers that are not finite.")
                mean = z.mean(dim=0)  # what all frames share: walls, borders, empty space
                scale = (z - mean).square().mean().sqrt()
                self.centre[name] = mean, torch.where(scale > 1e-6, scale, 1.0)  # what never moved keeps its scale

    def wanted(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The models named and the context, each once."""
        return tuple(dict.fromkeys((*names, self.context_name) if self.context_name else names))

    @torch.no_grad()
    def forward(self, obs: torch.Tensor, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """uint8 (B, 4, 84, 84) -> {name: embedding (B, *shape)} of the models named and the context, in the
        precision."""
        names = self.wanted(names)
        if not obs.is_cuda or any(type(self.models[name]) not in ENCODERS.values() for name in names):
            return self.compute(obs, names)  # one's own model may do what cannot be recorded
        key = (names, obs.shape)
        if key not in self.recordings:
            if any(recorded != names for recorded, _ in self.recordings):  # memory of models that have come or gone
                self.recordings.clear()
            self.recordings[key] = Recording(functools.partial(self.compute, names=names), obs)
        return self.recordings[key](obs)  # fast: on a GPU all kernels are started as one

    @torch.no_grad()
    def compute(self, obs: torch.Tensor, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """What `forward` gives, of exactly the models named, without a recording."""
        embeddings, dtype = {}, getattr(torch, self.precision)
        with precision.autocast(self.precision, obs.device):  # fast, where it is bfloat16
            for name in names:
                embeddings[name] = self.fast.get(name, self.models[name])(obs)
        for name in self.centre.keys() & embeddings.keys():
            mean, scale = self.centre[name]
            embeddings[name] = (embeddings[name].float() - mean) / scale
        return {name: z.to(dtype) for name, z in embeddings.items()}


class KeptEmbeddings:
    """What the frozen models said in one rollout, so that the update need not run them again: they do not change.

    Args:
        example: {name: (any number of rows, *shape)}, what they say of some observations.
        rows: steps of a rollout, over all environments.
        minibatch: rows of a minibatch.
    """

    def __init__(self, example: dict[str, torch.Tensor], rows: int, minibatch: int):

        def room(rows: int, z: torch.Tensor) -> torch.Tensor:
            layout = torch.channels_last if z.dim() == 4 else torch.contiguous_format
            shape = (rows, *z.shape[1:])
            return torch.empty(shape, dtype=z.dtype, device=z.device, memory_format=layout).zero_()

        self.kept = {name: room(rows, z) for name, z in example.items()}  # (rows, *shape)
        self.of_minibatch = {name: room(minibatch, z) for name, z in example.items()}
        self.nbytes = sum(kept.nbytes for kept in self.kept.values())

    @staticmethod
    def require_memory(
        shapes: dict[str, tuple[int, ...]], rows: int, minibatch: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Refuse, before any work, what there is no memory for; raises InputError."""
        needed = sum(math.prod(shape) for shape in shapes.values()) * (rows + minibatch) * dtype.itemsize
        what = f"the kept embeddings of a rollout of {rows:,} steps and of a minibatch"
        require_memory(needed, device, what, "lower --num-envs or --num-steps")

    def __setitem__(self, rows: slice, embeddings: dict[str, torch.Tensor]) -> None:
        for name, kept in self.kept.items():
            kept[rows] = embeddings[name]

    def __getitem__(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """{name: (len(rows), *shape)}, valid until the next call (fast: written to the same memory each time)."""
        return {name: take_rows(kept, rows, self.of_minibatch[name]) for name, kept in self.kept.items()}


@functools.cache
def typical_frames(env_id: str) -> torch.Tensor:
    """uint8 (256, 4, 84, 84) from random play with a seed of its own, always the same: what centring takes means of.
    (Actions are not repeated, whatever an agent's --action-repeat.)"""
    envs, draw = random_play(env_id, 8, np.random.default_rng(0))
    every = 5 if is_rendered(env_id) else 25  # drawing takes longer, and episodes are shorter
    obs, _ = envs.reset(seed=env_seeds(8, 0, 8))
    frames = []
    for step in range(32 * every):
        if step % every == 0:
            frames.append(torch.from_numpy(obs.copy()))
        obs, *_ = envs.step(draw())
    envs.close()
    return torch.cat(frames)
