"""Ways to combine several models' embeddings into the one state that the policy sees; one file each.

shapes = {"state_representation": (512,), "object_masks": (20, 84, 84)}
combine = COMBINERS["wsa"](shapes, context_shape=(64, 16, 16), features_dim=256)
h = combine(embeddings, context)                  # {name: (B, *shape)}, (B, *context_shape) -> (B, combine.out_dim)
h, w = combine.state_and_weights(embeddings, context)    # w (B, N) of those that weigh, else None
combine.add_model(name, shape)                    # combiners that weigh; others are built for one set of models
combine.remove_model(name)
state = combine.initial_state(num_envs)            # the reservoir only, with
h, state = combine.step(embeddings, state, new_game)
"""

import inspect
from dataclasses import dataclass, fields
from typing import Any

from combiners import cnn, reservoir, wsa
from combiners.cnn import CNN
from combiners.combiner import Combiner
from combiners.dot_product import DotProductAttention
from combiners.fixed_linear import FixedLinear
from combiners.linear import Linear
from combiners.mixed import Mixed
from combiners.random_weights import RandomWeights
from combiners.reservoir import Reservoir
from combiners.uniform import Uniform
from combiners.wsa import WeightSharingAttention
from housekeeping.flags import InputError, check_ranges, import_own, written

COMBINERS: dict[str, type[Combiner]] = {
    "wsa": WeightSharingAttention,
    "linear": Linear,
    "fixed_linear": FixedLinear,
    "cnn": CNN,
    "mixed": Mixed,
    "reservoir": Reservoir,
    "dot_product": DotProductAttention,
    "uniform": Uniform,
    "random_weights": RandomWeights,
}


@dataclass
class CombinerOptions(wsa.Options, cnn.Options, reservoir.Options):
    """Flags of single combiners; none given: the combiner's default."""


def find_combiner(spec: str) -> type[Combiner]:
    """The class of a combiner by its name, or of one's own, "my_module:MyCombiner"; raises InputError if none is."""
    if spec in COMBINERS:
        return COMBINERS[spec]
    if ":" not in spec:
        known = f"the known ones are {', '.join(COMBINERS)}, and module:name for one of your own"
        raise InputError(f"--combiner {spec}: no such combiner; {known}.")
    found = import_own(spec)
    if not (isinstance(found, type) and issubclass(found, Combiner)):
        raise InputError(f"--combiner {spec}: must be a class derived from Combiner (combiners/combiner.py).")
    return found


def options_of(spec: str) -> dict[str, object]:
    """A combiner's own options with their defaults: what its constructor takes beyond what all take."""
    parameters = inspect.signature(find_combiner(spec)).parameters
    common = ("embedding_shapes", "context_shape", "features_dim")
    return {name: parameter.default for name, parameter in parameters.items() if name not in common}


def make_combiner(
    args: Any, embedding_shapes: dict[str, tuple[int, ...]], context_shape: tuple[int, ...] | None
) -> Combiner:
    """The combiner that the flags --combiner, --features-dim and the combiner's own ask for."""
    flags = {field.name for field in fields(CombinerOptions)}  # what else a combiner of one's own takes is its own
    given = {name: getattr(args, name) for name in options_of(args.combiner) if name in flags}
    options = {name: value for name, value in given.items() if value is not None}
    return find_combiner(args.combiner)(embedding_shapes, context_shape, features_dim=args.features_dim, **options)


def check_options(args: Any) -> None:
    """Refuse a combiner that is not known, and options of a combiner that is not the one chosen; raises InputError.

    A scorer that was not given becomes the combiner's default, so that a checkpoint says which it was.
    """
    own = options_of(args.combiner)
    for option in (field.name for field in fields(CombinerOptions)):
        if option not in own and getattr(args, option) is not None:
            owner = next(combiner for combiner in COMBINERS if option in options_of(combiner))
            raise InputError(f"{written(option)} is an option of --combiner {owner}, not of {args.combiner}.")
    if args.cnn_layers not in (None, 1, 2, 3):
        raise InputError(f"--cnn-layers must be 1, 2 or 3, not {args.cnn_layers}.")
    check_ranges(args, ("reservoir_units",))
    if "scorer" in own and args.scorer is None:
        args.scorer = own["scorer"]
