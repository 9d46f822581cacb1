"""Frame replay: every frame stored once, n-step and next frame by index, truncation kept apart from success.

Frames lie in TorchRL's ``LazyTensorStorage``. Each environment row owns a ring segment with its own write
pointer, so rows may finish at different times; ``n_step`` and ``gamma`` are arguments of ``sample`` and can
change without a rebuild. Sampling is index arithmetic on a few flat flag tensors, with no loop over the batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage

from vla_rl.data.mapped import MappedFrames
from vla_rl.errors import UserError
from vla_rl.runtime.tensors import write_tensors

FORMAT = "vla_rl.replay/1"
FILE = "replay.safetensors"
STORED = ("observation", "base_action", "action", "intervention")
FLAGS = ("reward", "terminated", "truncated", "final")


class ReplayBuffer:
    """Frames of ``rows`` environments (format: ``vla_rl.rollout.collector.Collector``).

    Args:
        capacity: frames in all; each row keeps its newest ``capacity // rows``.
        rows: number of environment rows (1 for a set of demonstrations).
        example_frame: a frame batch [1] that allocates the storage now; None = at the first ``append``.
        device: where the storage lives and samples appear.
        folder: keep the frames in files there (``vla_rl.data.mapped``); None = in memory.

    Raises:
        UserError: less than two frames per row, or files with another ``device`` than the CPU.
    """

    def __init__(
        self,
        capacity: int,
        rows: int = 1,
        example_frame: TensorDict | None = None,
        device: str | torch.device = "cpu",
        folder: Path | None = None,
    ) -> None:
        self.length = capacity // rows
        if self.length < 2:
            raise UserError(f"replay capacity {capacity} is too small for {rows} environments: raise it")
        self.rows, self.device = rows, torch.device(device)
        size = self.length * rows
        if folder is not None and self.device.type != "cpu":
            raise UserError(
                f"algorithm.replay_path={folder} is memory of the CPU: set algorithm.device=cpu, or null"
            )
        self.mapped = None if folder is None else MappedFrames(folder, size, rows)
        self.storage: Any = self.mapped or LazyTensorStorage(size, device=self.device)
        self.pointer = torch.zeros(rows, dtype=torch.long, device=device)  # next slot to write in each ring
        self.filled = torch.zeros(rows, dtype=torch.long, device=device)
        self.reward = torch.zeros(size, device=device)
        self.terminated = torch.zeros(size, dtype=torch.bool, device=device)
        self.truncated = torch.zeros(size, dtype=torch.bool, device=device)
        self.final = torch.zeros(size, dtype=torch.bool, device=device)
        self.valid = torch.zeros(size, dtype=torch.bool, device=device)
        """[size]: frames a sample may begin at: a real step whose outcome is known."""
        self._count = 0
        self._powers_of: tuple[int, float] | None = None
        if example_frame is not None:
            self.storage.set(torch.zeros(1, dtype=torch.long), self._stored(example_frame[:1]))  # type: ignore[arg-type]

    def __len__(self) -> int:
        """Frames held, closing frames included."""
        return self._count

    def _stored(self, frames: TensorDict) -> TensorDict:
        return frames.select(*STORED).to(self.device)

    def append(self, frames: TensorDict, rows: Tensor) -> None:
        """Add k frames in order.

        Args:
            frames: [k], see the collector.
            rows: [k] environment row of each; a row may occur several times (whole episodes at once).

        Raises:
            UserError: more frames at once than a row holds.
            ValueError: a truncated frame is followed by one that does not close the episode.
        """
        rows = torch.as_tensor(rows, dtype=torch.long, device=self.device)
        if not len(rows):
            return
        counts = torch.bincount(rows, minlength=self.rows)
        most = int(counts.max())
        if most > self.length:
            raise UserError(f"{most} frames do not fit a replay of {self.length} per row: raise the capacity")
        slot = self.pointer[rows]
        older = self.filled[rows]
        if most > 1:
            rank = _rank(rows)
            slot, older = (slot + rank) % self.length, older + rank
        index = rows * self.length + slot
        if self.mapped:
            self.mapped.coming(counts)
        self.storage.set(index, self._stored(frames))  # type: ignore[arg-type]
        for name in FLAGS:
            getattr(self, name)[index] = frames[name].to(self.device)
        self.pointer = (self.pointer + counts) % self.length
        self.filled = (self.filled + counts).clamp(max=self.length)
        self._count = int(self.filled.sum())
        # A newest frame's outcome is not known yet, unless it ended in success; its predecessor's now is.
        self.valid[index] = self.terminated[index] & ~self.final[index]
        has_previous = older > 0
        previous = (rows * self.length + (slot - 1) % self.length)[has_previous]
        self.valid[previous] = ~self.final[previous]
        if (self.truncated[previous] & ~self.final[previous] & ~self.final[index[has_previous]]).any():
            raise ValueError("a truncated frame must be followed by the episode's closing frame (final=True)")

    def close_rows(self, rows: Tensor) -> None:
        """End the episodes in flight of ``rows`` [k], whose next observation will never be known.

        The newest frame of each becomes the closing one: its observation and base action serve as bootstrap,
        its action is forgotten. Rows that are closed or ended in success already are left alone.
        """
        rows = torch.as_tensor(rows, dtype=torch.long, device=self.device)
        rows = rows[self.filled[rows] > 0]
        newest = rows * self.length + (self.pointer[rows] - 1) % self.length
        newest = newest[~self.final[newest] & ~self.terminated[newest]]
        self.final[newest] = True
        self.truncated[newest] = False
        self.reward[newest] = 0.0

    def forget(self, rows: Tensor, counts: Tensor) -> None:
        """Leave out the newest ``counts`` [k] frames of ``rows`` [k], as far as they are of the episode in flight.

        The oldest of them closes what came before (its observation and base action serve as bootstrap); none is ever
        sampled, and no return runs over them.
        """
        for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
            for back in range(1, min(int(count), int(self.filled[row])) + 1):
                index = row * self.length + (int(self.pointer[row]) - back) % self.length
                if self.final[index] or self.terminated[index]:
                    break
                self.final[index], self.valid[index], self.truncated[index] = True, False, False
                self.reward[index] = 0.0

    def starts(self) -> Tensor:
        """Indices of all frames that a sample may begin at (scans the buffer: not for every step)."""
        return self.valid.nonzero().flatten()

    def interventions(self) -> Tensor:
        """Indices of the frames of ``starts`` at which somebody had taken over (a scan, as that is)."""
        if not self._count:
            return self.starts()
        return (self.valid & self.storage._storage["intervention"]).nonzero().flatten()

    def draw(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """[batch] uniform indices of valid frames, with replacement.

        Raises:
            UserError: there is none.
        """
        if self._count:
            # Twice as many as needed, then drop closing frames: no scan, no loop.
            pick = torch.randint(self._count, (2 * batch_size,), generator=generator, device=self.device)
            if self.rows == 1 or self._count == self.rows * self.length:
                index = pick
            else:  # a row that is not full fills its slots from 0
                ends = self.filled.cumsum(0)
                row = torch.searchsorted(ends, pick, right=True)
                index = pick - (ends - self.filled)[row] + row * self.length
            index = index[self.valid[index]]
            if len(index) >= batch_size:
                return index[:batch_size]
        starts = self.starts()
        if not len(starts):
            raise UserError(
                "replay holds no complete transition: two steps of a row make one "
                "(algorithm.warmup_steps, at least twice the number of environments)"
            )
        return starts[torch.randint(len(starts), (batch_size,), generator=generator, device=self.device)]

    def n_step(self, index: Tensor, n_step: int, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return from each of ``index`` [b].

        Walks forward in the same row: stops at a success (discount 0), at a closing frame (bootstraps there:
        a time limit is not a failure) or at the newest frame (bootstraps there, with fewer steps).

        Returns:
            [b] discounted reward sum, [b] bootstrap discount gamma^m, [b] index of the bootstrap frame.
        """
        base = torch.div(index, self.length, rounding_mode="floor") * self.length
        at = (
            base[:, None]
            + ((index - base)[:, None] + torch.arange(n_step + 1, device=self.device)) % self.length
        )
        body = at[:, :-1]
        ended = self.terminated[body]
        # Step k counts if it is valid and none before it ended the episode. The newest frame of a row is not
        # valid or ended, so that a walk never runs over it into the ring's oldest frames.
        taken = self.valid[body]
        taken[:, 1:].logical_and_(~ended[:, :-1])
        taken = taken.cumprod(1)
        steps = taken.sum(1)
        success = (taken * ended).sum(1)
        powers = self._powers(n_step, gamma)
        reward = (self.reward[body] * taken * powers[:-1]).sum(1)
        discount = powers[steps] * (1 - success)
        # After a success nothing is read; its own frame stands in, since the slot behind may be unwritten.
        last = at.gather(1, (steps - success)[:, None]).squeeze(1)
        return reward, discount, last

    def _powers(self, n_step: int, gamma: float) -> Tensor:
        """[n + 1] gamma^0 .. gamma^n, float32."""
        if self._powers_of != (n_step, gamma):
            self._powers_of = (n_step, gamma)
            exact = gamma ** torch.arange(n_step + 1, dtype=torch.float64, device=self.device)
            self._powers_cache = exact.to(torch.float32)
        return self._powers_cache

    def sample(
        self, batch_size: int, n_step: int, gamma: float, generator: torch.Generator | None = None
    ) -> TensorDict:
        """Uniform n-step transitions.

        Returns:
            TensorDict [batch]: ``observation``, ``base_action`` [b, N, A], ``action`` [b, A], ``intervention``,
            ``reward`` (discounted sum), ``discount`` (gamma^m, 0 after success), ``next_observation``,
            ``next_base_action``.
        """
        return self.gather(self.draw(batch_size, generator), n_step, gamma)

    def gather(self, index: Tensor, n_step: int, gamma: float) -> TensorDict:
        """The transitions that begin at ``index`` [b]; see ``sample``."""
        reward, discount, last = self.n_step(index, n_step, gamma)
        count = len(index)
        frames = self.storage._storage  # a TensorDict; storage.get would copy keys that are not needed
        both = torch.cat([index, last])
        observation, following = {}, {}
        for key, value in frames["observation"].items():
            pair = value.index_select(0, both)
            observation[key], following[key] = pair[:count], pair[count:]
        base = frames["base_action"].index_select(0, both)
        size = torch.Size([count])

        def nest(values: dict) -> TensorDict:
            return TensorDict._new_unsafe(values, batch_size=size)

        return nest(
            {
                "observation": nest(observation),
                "base_action": base[:count],
                "action": frames["action"].index_select(0, index),
                "intervention": frames["intervention"].index_select(0, index),
                "reward": reward,
                "discount": discount,
                "next_observation": nest(following),
                "next_base_action": base[count:],
            }
        )

    # ---- files ------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the filled part to ``folder/replay.safetensors``, whole or not at all; frames in files stay where they are.

        Raises:
            UserError: no space left.
        """
        tensors = {"pointer": self.pointer, "filled": self.filled}
        if self.mapped:
            self.mapped.flush()
            tensors["given"] = self.mapped.given.clone()
        if self._count:
            index = self._filled_index()
            in_files = TensorDict({})
            frames = in_files if self.mapped else self.storage._storage
            for key, value in frames.items(include_nested=True, leaves_only=True):
                name = "/".join(key) if isinstance(key, tuple) else key
                tensors["frame/" + name] = value[index]
            for name in (*FLAGS, "valid"):
                tensors[name] = getattr(self, name)[index]
        header = {"format": FORMAT, "length": str(self.length), "rows": str(self.rows)}
        remedy = "free some, or lower algorithm.capacity"
        write_tensors(folder / FILE, tensors, f"replay to {folder}", remedy=remedy, metadata=header)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote; whatever the buffer held is dropped.

        Of frames in files, those that were written over after the checkpoint are never sampled.

        Raises:
            UserError: missing or truncated file, another format, capacity or number of rows.
        """
        path = folder / FILE
        try:
            with safe_open(path, "pt") as handle:  # type: ignore[no-untyped-call]
                header = handle.metadata() or {}
                tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read replay {path} ({error}): resume from another checkpoint") from error
        if header.get("format") != FORMAT:
            raise UserError(f"{path} is of format {header.get('format')}, this version reads {FORMAT}")
        length, rows = int(header["length"]), int(header["rows"])
        if (length, rows) != (self.length, self.rows):
            raise UserError(
                f"replay in {folder} holds {rows} rows of {length} frames, this run wants {self.rows} of "
                f"{self.length}: keep env.num_envs and algorithm.capacity when resuming"
            )
        self.pointer = tensors.pop("pointer").to(self.device)
        self.filled = tensors.pop("filled").to(self.device)
        self._count = int(self.filled.sum())
        for name in (*FLAGS, "valid"):
            getattr(self, name).zero_()
        given = tensors.pop("given", None)
        if (given is None) != (self.mapped is None) and self._count:
            kept = "memory" if given is None else "files"
            raise UserError(
                f"the replay in {folder} was kept in {kept}: leave algorithm.replay_path as it was"
            )
        if not self._count:
            return
        index = self._filled_index()
        for name in (*FLAGS, "valid"):
            getattr(self, name)[index] = tensors.pop(name).to(self.device)
        if self.mapped:
            assert given is not None
            self.mapped.reopen()
            self._distrust(self.mapped.given - given)
            return
        frames = TensorDict({}, batch_size=[len(index)])
        for name, value in tensors.items():
            frames[tuple(name.split("/")[1:])] = value
        self.storage.set(index, frames.to(self.device))  # type: ignore[arg-type]

    def _distrust(self, later: Tensor) -> None:
        """Leave out, in each ring, what the ``later`` [rows] frames after the checkpoint were written over."""
        slot = torch.arange(self.length)
        ahead = (slot - self.pointer[:, None]) % self.length
        self.valid.view(self.rows, self.length)[ahead < later[:, None]] = False

    def _filled_index(self) -> Tensor:
        """[count] indices of all frames held."""
        slot = torch.arange(self.length, device=self.device)
        used = slot < self.filled[:, None]  # a row that is not full fills its slots from 0
        return (torch.arange(self.rows, device=self.device)[:, None] * self.length + slot)[used]


def _rank(rows: Tensor) -> Tensor:
    """[k] how many times each entry of ``rows`` has occurred before it."""
    order = rows.argsort(stable=True)
    ordered = rows[order]
    position = torch.arange(len(rows), device=rows.device)
    first = torch.searchsorted(ordered, ordered)  # where each run of equal rows begins
    rank = torch.empty_like(rows)
    rank[order] = position - first
    return rank
