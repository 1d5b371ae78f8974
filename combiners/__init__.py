"""Ways to combine several models' embeddings into the one state that the policy sees; one file each.

combine = COMBINERS["wsa"](embedding_shapes={"state_representation": (512,), ...}, context_shape=(64, 16, 16), features_dim=256)
state = combine(embeddings, context)                # {name: (B, *shape)}, (B, *context_shape) -> (B, combine.out_dim)
weights = combine.attention(embeddings, context)    # modes that weigh: (B, N), in the order of embedding_shapes
combine.add_model(name, shape)                      # modes whose out_dim does not depend on N; others raise ValueError
combine.remove_model(name)
"""

import torch.nn as nn

from combiners.wsa import WeightSharingAttention

COMBINERS: dict[str, type[nn.Module]] = {
    "wsa": WeightSharingAttention,
}
