"""The arrays of a batch of environments, private or shared between processes."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing import shared_memory

import numpy as np

from vla_rl.environment import EnvSpec
from vla_rl.keys import ENV_STATE, STATE

ALIGN = 64


@dataclass(frozen=True)
class Layout:
    """Name -> (shape, dtype) of every array."""

    arrays: tuple[tuple[str, tuple[int, ...], str], ...]

    @classmethod
    def of(cls, spec: EnvSpec, count: int) -> Layout:
        """Arrays for ``count`` rows of an environment."""
        arrays = [
            ("action", (count, spec.action_dim), "float32"),
            ("reward", (count,), "float32"),
            ("terminated", (count,), "bool"),
            ("truncated", (count,), "bool"),
            ("success", (count,), "bool"),
            (STATE, (count, spec.state_dim), "float32"),
        ]
        if spec.env_state_dim:
            arrays.append((ENV_STATE, (count, spec.env_state_dim), "float32"))
        arrays += [(key, (count, 3, h, w), "uint8") for key, (h, w) in spec.cameras.items()]
        return cls(tuple(arrays))

    def offsets(self) -> tuple[list[int], int]:
        """Byte offset of each array, aligned, and the total size."""
        offsets, at = [], 0
        for _, shape, dtype in self.arrays:
            offsets.append(at)
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            at += -(-size // ALIGN) * ALIGN
        return offsets, max(at, ALIGN)


class Block:
    """The arrays themselves. ``shared``: in shared memory, created here or (``name``) attached to."""

    def __init__(self, layout: Layout, shared: bool = False, name: str | None = None) -> None:
        self.layout = layout
        offsets, size = layout.offsets()
        self._memory = None
        if shared:
            self._memory = (
                shared_memory.SharedMemory(create=True, size=size) if name is None else _attach(name)
            )
            buffer = self._memory.buf
        else:
            buffer = memoryview(bytearray(size))
        self._owner = shared and name is None
        self.name = self._memory.name if self._memory else None
        arrays = {
            key: np.ndarray(shape, dtype, buffer=buffer, offset=offset)
            for (key, shape, dtype), offset in zip(layout.arrays, offsets, strict=True)
        }
        self.action, self.reward = arrays["action"], arrays["reward"]
        self.terminated, self.truncated = arrays["terminated"], arrays["truncated"]
        self.success = arrays["success"]
        self.observations = {k: v for k, v in arrays.items() if k in (STATE, ENV_STATE)}
        self.images = {k: v for k, v in arrays.items() if k.startswith("observation.images.")}

    def write_observation(self, row: int, observation: dict[str, np.ndarray]) -> None:
        """Store one row's vectors."""
        for key, array in self.observations.items():
            array[row] = observation[key]

    def write_step(
        self,
        row: int,
        observation: dict[str, np.ndarray],
        reward: float,
        terminated: bool,
        truncated: bool,
        success: bool,
    ) -> None:
        """Store one row's step."""
        self.write_observation(row, observation)
        self.reward[row], self.success[row] = reward, success
        self.terminated[row], self.truncated[row] = terminated, truncated

    def write_images(self, row: int, images: dict[str, np.ndarray]) -> None:
        """Store one row's pictures."""
        for key, array in self.images.items():
            array[row] = images[key]

    def close(self) -> None:
        """Release (and, by the creator, remove) the shared memory."""
        if self._memory is None:
            return
        memory, self._memory = self._memory, None
        del self.action, self.reward, self.terminated, self.truncated, self.success
        self.observations, self.images = {}, {}
        try:
            memory.close()
        except BufferError:  # somebody still holds a view; the mapping goes with it
            pass
        if self._owner:
            memory.unlink()


def _attach(name: str) -> shared_memory.SharedMemory:
    """Attach without registering with the resource tracker (Python < 3.13 has no ``track=False``)."""
    from multiprocessing import resource_tracker

    register = resource_tracker.register
    resource_tracker.register = lambda *_: None
    try:
        return shared_memory.SharedMemory(name=name)
    finally:
        resource_tracker.register = register
