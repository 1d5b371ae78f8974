"""Ways to combine several models' embeddings into the one state that the policy sees; one file each.

combine = COMBINERS["wsa"](embedding_shapes={"state_representation": (512,), ...}, context_shape=(64, 16, 16), features_dim=256)
state = combine(embeddings, context)                # {name: (B, *shape)}, (B, *context_shape) -> (B, combine.out_dim)
weights = combine.attention(embeddings, context)    # modes that weigh: (B, N), in the order of embedding_shapes
combine.add_model(name, shape)                      # modes that weigh; others are built for one set of models and raise ValueError
combine.remove_model(name)
state = combine.initial_state(num_envs)             # reservoir only, with
h, state = combine.step(embeddings, state, new_game)
"""

import inspect

import torch.nn as nn

from combiners.cnn import CNN
from combiners.dot_product import DotProductAttention
from combiners.fixed_linear import FixedLinear
from combiners.linear import Linear
from combiners.mixed import Mixed
from combiners.random_weights import RandomWeights
from combiners.reservoir import Reservoir
from combiners.uniform import Uniform
from combiners.weighted_sum import WeightedSum as WeightedSum
from combiners.wsa import WeightSharingAttention

COMBINERS: dict[str, type[nn.Module]] = {
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


def options_of(mode: str) -> dict[str, object]:
    """A mode's own options with their defaults: what its constructor takes beyond the three arguments that all take."""
    parameters = inspect.signature(COMBINERS[mode]).parameters
    common = ("embedding_shapes", "context_shape", "features_dim")
    return {name: parameter.default for name, parameter in parameters.items() if name not in common}
