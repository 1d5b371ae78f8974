"""The context that cancels: the same two embeddings, weighed in three contexts.

    python -m docs.lessons.context

With one linear layer the context adds the same number to both scores, and the softmax takes it out again.
"""

import torch

from combiners.wsa import WeightSharingAttention

SEED = 5  # change this: 3

torch.manual_seed(SEED)
e = torch.randn(1, 2, 64).relu().expand(3, 2, 64)  # the same two adapted embeddings, three times
c = 2 * torch.randn(3, 64).relu()  # three contexts
for scorer in ("published", "linear", "hidden"):
    torch.manual_seed(SEED)
    combiner = WeightSharingAttention({"one": (64,), "two": (64,)}, (64,), features_dim=64, scorer=scorer)
    if scorer == "hidden":
        combiner.scorer[-1].weight.data *= 100  # its last layer starts near 0; training makes it larger
    scores = combiner.scores(e, c)  # (3, 2)
    print(scorer)
    for i, (s, w) in enumerate(zip(scores.tolist(), scores.softmax(dim=1).tolist(), strict=True)):
        print(f"    context {i + 1}: scores {s[0]:5.2f} {s[1]:5.2f}, weights {w[0]:.2f} {w[1]:.2f}")
