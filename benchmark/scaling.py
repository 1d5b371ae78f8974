"""What does it cost to combine more models? Parameters, memory and time of every mode for 4 to 100 models, without the
models themselves.

    python -m benchmark.scaling

The embeddings are made up: N vectors of 512 numbers and a context of 64x16x16, so that only the combination and the two
heads are measured. The modes are timed in turns, several rounds of all of them, and the median of the rounds is kept.
Results go to benchmark/scaling.csv and benchmark/scaling.png.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro

from combiners import COMBINERS, Reservoir
from housekeeping import files
from housekeeping.flags import InputError, check_ranges
from ppo_wsa_atari import Agent
from ppo_wsa_atari import Args as AgentArgs

CONTEXT_SHAPE = (64, 16, 16)


@dataclass
class Args:
    numbers: tuple[int, ...] = (4, 10, 50, 100)
    """how many models"""
    modes: tuple[str, ...] = tuple(COMBINERS)
    """which modes"""
    embedding_length: int = 512
    """length of each model's embedding"""
    rounds: int = 5
    """measurements of each; the median is kept"""
    output: str = "benchmark/scaling"
    """<output>.csv and <output>.png"""
    torch_threads: int = 0
    """CPU threads (0: PyTorch's choice)"""


class Case:
    """One mode with N models: the agent, and a minibatch of 256 made-up samples."""

    def __init__(self, mode: str, number: int, length: int):
        names = tuple(f"model_{i}" for i in range(number))
        shapes = {name: (length,) for name in names} | {"context": CONTEXT_SHAPE}
        network = "published" if mode == "wsa" else None  # the paper's
        self.mode, self.number = mode, number
        self.agent = Agent(shapes, "context", 6, AgentArgs(encoders=names, combiner=mode, scorer=network))
        self.optimizer = torch.optim.Adam([p for p in self.agent.parameters() if p.requires_grad], fused=True)
        self.embeddings = {name: torch.randn(256, *shape) for name, shape in shapes.items()}
        if isinstance(self.agent.combiner, Reservoir):  # its states are kept from the rollout; an update reads them
            self.embeddings["reservoir"] = torch.randn(256, self.agent.combiner.out_dim)
        self.actions = torch.randint(6, (256,))

    def combine(self) -> None:
        """What a rollout's step asks for, apart from the frozen models: 8 environments' actions and values."""
        few = {name: z[:8] for name, z in self.embeddings.items()}
        with torch.no_grad():
            if isinstance(self.agent.combiner, Reservoir):
                new_game = torch.zeros(8, dtype=torch.bool)
                few["reservoir"] = self.agent.combiner.step(few, few["reservoir"], new_game)[0]
            self.agent.get_action_and_value(few)

    def update(self) -> None:
        """One minibatch of 256: forward, backward, optimiser."""
        _, logprob, entropy, value, _ = self.agent.get_action_and_value(self.embeddings, self.actions)
        self.optimizer.zero_grad()
        (logprob.mean() + entropy.mean() + value.square().mean()).backward()
        self.optimizer.step()

    def fixed(self) -> int:
        """Numbers that are held but not trained: the reservoir's matrices, the random scorer."""
        tensors = [*self.agent.buffers(), *(p for p in self.agent.parameters() if not p.requires_grad)]
        return sum(tensor.numel() for tensor in tensors)

    def activations(self) -> int:
        """Bytes that an update keeps between forward and backward, beside parameters and inputs."""
        known = {z.untyped_storage().data_ptr() for z in [*self.embeddings.values(), *self.agent.parameters()]}
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outputs = self.agent.get_action_and_value(self.embeddings, self.actions)
        total = sum(kept.values())
        del outputs  # alive until here, so that no address was counted for two tensors
        return total


def milliseconds(call, times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times * 1e3


def main(args: Args) -> None:
    check_ranges(args, ("embedding_length", "rounds"), not_negative=("torch_threads",))
    if unknown := set(args.modes) - set(COMBINERS):
        raise InputError(
            f"--modes {' '.join(sorted(unknown))}: no such mode; the known ones are {', '.join(COMBINERS)}."
        )
    files.require_writable(Path(args.output).parent)
    if args.torch_threads:
        torch.set_num_threads(args.torch_threads)
    rows = []
    for number in args.numbers:
        torch.manual_seed(0)
        cases = [Case(mode, number, args.embedding_length) for mode in args.modes]
        times: dict[str, list[tuple[float, float]]] = {case.mode: [] for case in cases}
        for round_number in range(args.rounds + 1):  # the first one warms up
            for case in cases:
                measured = milliseconds(case.combine, 5), milliseconds(case.update, 3)
                if round_number:
                    times[case.mode].append(measured)
        for case in cases:
            combine, update = np.median(times[case.mode], axis=0)
            trained = sum(p.numel() for p in case.agent.parameters() if p.requires_grad)
            scorer = getattr(case.agent.combiner, "scorer", None)
            row = {
                "mode": case.mode,
                "models": number,
                "trained_parameters": trained,
                "shared_network": sum(p.numel() for p in scorer.parameters()) if scorer else 0,
                "training_megabytes": (16 * trained + 4 * case.fixed() + case.activations())
                / 1e6,  # 16: weight, gradient, two moments
                "combine_8_ms": combine,
                "update_256_ms": update,
            }
            rows.append(
                {key: round(float(value), 3) if isinstance(value, float) else value for key, value in row.items()}
            )
            if len(rows) == 1:
                print("  ".join(f"{column:>18}" if column != "mode" else f"{column:15}" for column in row))
            print(
                "  ".join(
                    f"{value:>18,}" if not isinstance(value, str) else f"{value:15}" for value in rows[-1].values()
                ),
                flush=True,
            )
    path = Path(f"{args.output}.csv")
    files.write_csv(path, rows)

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    titles = {
        "trained_parameters": "trained parameters",
        "combine_8_ms": "combination and heads,\n8 observations (ms)",
        "update_256_ms": "update of one minibatch\nof 256 (ms)",
    }
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        for i, mode in enumerate(args.modes):
            mine = [row for row in rows if row["mode"] == mode]
            style = (
                {"linewidth": 3} if mode == "wsa" else {"linewidth": 1.2, "linestyle": ["-", "--", ":", "-."][i % 4]}
            )
            axis.plot(
                [row["models"] for row in mine],
                [row[column] for row in mine],
                marker="o",
                markersize=3,
                label=mode,
                **style,
            )
        axis.set(xscale="log", yscale="log", xlabel="number of models", title=title)
        axis.set_xticks(args.numbers, [str(number) for number in args.numbers])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(f"{args.output}.png", dpi=120)
    print(f"{path} and {args.output}.png")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
