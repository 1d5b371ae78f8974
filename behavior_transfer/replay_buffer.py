"""The replay buffer of Q-learning: each frame once, as bytes; stacks and n-step returns are put together when drawn."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from housekeeping import files
from housekeeping.flags import InputError
from housekeeping.memory import to_device


class Batch(NamedTuple):
    """Transitions as a loss needs them, on its device."""

    obs: torch.Tensor  # uint8 (B, 4, 84, 84)
    actions: torch.Tensor  # int64 (B,), what the game received
    by_policy: torch.Tensor  # bool (B,), whether the pre-trained policy chose it
    returns: torch.Tensor  # float32 (B,), discounted sum of up to n rewards
    next_obs: torch.Tensor  # uint8 (B, 4, 84, 84), the state whose value stands for what comes after
    discounts: torch.Tensor  # float32 (B,), what that value is multiplied with; 0 after a terminal


class ReplayBuffer:
    """Keeps each frame once, as bytes; stacks of 4 frames and n-step returns are put together when they are drawn.

    Each environment has a ring of slots. A slot is one observation (its newest frame) with what was done there and what
    came of it. A game that is cut off at the frame limit gets one slot more, for the state at which it was cut; nothing
    was done there.

    Raises:
        InputError: the system does not give so much memory, not even before it is written.
    """

    def __init__(self, size: int, num_envs: int, n_step: int, gamma: float):
        self.per_env = -(-size // num_envs)
        self.n_step, self.gamma = n_step, gamma
        shape = (num_envs, self.per_env)
        try:
            self.frames = np.empty((*shape, 84, 84), dtype=np.uint8)  # takes memory as it is written
        except MemoryError as error:
            size_gb = np.prod(shape) * 84 * 84 / 1e9
            raise InputError(f"--buffer-size {size}: this system does not give {size_gb:.1f} GB; lower it.") from error
        self.actions = np.zeros(shape, dtype=np.uint8)
        self.by_policy = np.zeros(shape, dtype=bool)
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.terminals = np.zeros(shape, dtype=bool)
        self.acted = np.zeros(shape, dtype=bool)  # False where a game was cut off
        self.older = np.zeros(shape, dtype=np.uint8)  # how many frames of the same game came before, at most 3
        self.written = np.zeros(num_envs, dtype=np.int64)  # slots written so far; slot i is at index i % per_env
        self.age = np.zeros(num_envs, dtype=np.uint8)  # `older` of the next slot

    def __len__(self) -> int:
        return int(np.minimum(self.written, self.per_env).sum())

    def _write(self, envs: np.ndarray, frames: np.ndarray, **values: np.ndarray | bool) -> None:
        index = self.written[envs] % self.per_env
        self.frames[envs, index] = frames
        self.older[envs, index] = self.age[envs]
        for name, value in values.items():
            getattr(self, name)[envs, index] = value
        self.written[envs] += 1
        self.age[envs] = np.minimum(self.age[envs] + 1, 3)

    def add(
        self,
        frames: np.ndarray,
        actions: np.ndarray,
        by_policy: np.ndarray,
        rewards: np.ndarray,
        terminals: np.ndarray,
        game_over: np.ndarray,
    ) -> None:
        """One step of all environments, each argument (num_envs, ...).

        Args:
            frames: uint8 (num_envs, 84, 84), the newest frames of the observations that were acted on.
            terminals: where nothing that comes after counts: a life was lost, or the game.
            game_over: where the next observation is another game's.
        """
        envs = np.arange(len(frames))
        self._write(
            envs, frames, actions=actions, by_policy=by_policy, rewards=rewards, terminals=terminals, acted=True
        )
        self.age[game_over] = 0

    def cut_off(self, envs: np.ndarray, frames: np.ndarray) -> None:
        """The games of these environments (n,) stop here, but not because they ended: frames uint8 (n, 84, 84) show
        where they stand.

        Call it right after `add`, to which these environments' games were not over.
        """
        self._write(envs, frames, acted=False, terminals=False, rewards=0.0)
        self.age[envs] = 0

    def stacks(self, envs: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Observations uint8 (B, 4, 84, 84), oldest frame first; zeros where the game had not begun."""
        back = np.arange(3, -1, -1)  # 3 frames ago, ..., now
        stacks = self.frames[envs[:, None], (slots[:, None] - back) % self.per_env]
        stacks[back > self.older[envs, slots % self.per_env][:, None]] = 0
        return stacks

    def draw(self, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Environments and slots, each (batch_size,), drawn evenly from all whose n next steps, and whose stack's
        frames, are there. Raises ValueError while there is none."""
        newest = self.written - 1
        oldest = np.maximum(self.written - self.per_env, 0)
        oldest = np.where(oldest > 0, oldest + 3, 0)  # the frames before the oldest slots are overwritten
        room = np.maximum(newest - self.n_step - oldest + 1, 0)  # slots that may be drawn
        if not room.any():
            raise ValueError(f"the buffer holds no transition with the {self.n_step} steps after it yet")
        ends = np.cumsum(room)
        envs, slots = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        while len(envs) < batch_size:
            drawn = rng.integers(ends[-1], size=batch_size - len(envs))
            env = np.searchsorted(ends, drawn, side="right")
            slot = oldest[env] + drawn - (ends - room)[env]
            acted = self.acted[env, slot % self.per_env]
            envs, slots = np.concatenate([envs, env[acted]]), np.concatenate([slots, slot[acted]])
        return envs, slots

    def transitions(self, envs: np.ndarray, slots: np.ndarray, device: torch.device) -> Batch:
        """What happened in these slots, each argument (B,), and in the n steps from there on, or until the life or the
        game ended."""
        returns, discounts = np.zeros(len(slots), dtype=np.float32), np.ones(len(slots), dtype=np.float32)
        ahead = slots.copy()
        for _ in range(self.n_step):
            index = ahead % self.per_env
            # a cut-off game's last state stands for the rest by its value
            goes_on = (discounts > 0) & self.acted[envs, index]
            returns += np.where(goes_on, discounts * self.rewards[envs, index], 0)
            discounts = np.where(goes_on, discounts * self.gamma * ~self.terminals[envs, index], discounts).astype(
                np.float32
            )
            ahead += goes_on & (discounts > 0)
        index = slots % self.per_env
        arrays = (
            self.stacks(envs, slots),
            self.actions[envs, index].astype(np.int64),
            self.by_policy[envs, index],
            returns,
            self.stacks(envs, ahead),
            discounts,
        )
        return Batch(*(to_device(array, device) for array in arrays))

    def state_dict(self) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """All that is filled: one tensor per environment, as torch.save would write the unfilled part of a common one,
        too."""
        filled = np.minimum(self.written, self.per_env)
        names = ("frames", "actions", "by_policy", "rewards", "terminals", "acted", "older")
        state = {
            name: [torch.from_numpy(row[:n]) for row, n in zip(getattr(self, name), filled, strict=True)]
            for name in names
        }
        return state | {"written": torch.from_numpy(self.written), "age": torch.from_numpy(self.age)}

    def load_state_dict(self, state: dict[str, torch.Tensor | list[torch.Tensor]]) -> None:
        """Fill an empty buffer of the same size and number of environments from what state_dict gave."""
        for name, values in state.items():
            if name in ("written", "age"):
                getattr(self, name)[:] = values.numpy()
            else:
                for row, part in zip(getattr(self, name), values, strict=True):
                    row[: len(part)] = part.numpy()

    def store(self, path: Path, env_id: str, next_frames: np.ndarray) -> None:
        """Write all that is filled to `path`; next_frames uint8 (num_envs, 84, 84) are the newest, not acted on yet."""
        contents = {"buffer": self.state_dict(), "next_frames": torch.from_numpy(next_frames.copy())}
        files.save({"kind": "replay buffer"} | self.about(env_id) | contents, path)

    def restore(self, path: Path, env_id: str) -> None:
        """Fill an empty buffer from what `store` wrote. Each game stops where it was left: new games begin.

        Raises:
            InputError: it is the buffer of another run.
        """
        stored = files.load(path, "replay buffer", mmap=True)
        if any(stored.get(name) != value for name, value in self.about(env_id).items()):
            raise InputError(f"{path}: this is the replay buffer of another run; remove it to begin with an empty one.")
        self.load_state_dict(stored["buffer"])
        self.cut_off(np.arange(len(self.frames)), stored["next_frames"].numpy())
        del stored  # else the file's space would not be freed when a newer one takes its name

    def about(self, env_id: str) -> dict[str, str | int]:
        """What a stored buffer must have in common with this one."""
        return {"env_id": env_id, "num_envs": len(self.frames), "per_env": self.per_env}
