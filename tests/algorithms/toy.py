"""A point mass that must come to rest at a goal, and a biased base: seconds instead of hours.

Like the manipulation tasks in small: sparse success, jitter costs success (the mass must be at rest), the base is
chunked and wrong in a systematic way. No simulator; B episodes in torch.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.environment import EnvSpec
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.base import Policy, PolicySpec, reset_rows

LIMIT = 40
SPEC = EnvSpec("PointMass", 4, 2, (-1.0, -1.0), (1.0, 1.0), {}, ("reach",), LIMIT, 20.0)


class PointMass:
    """Velocity-controlled mass with lag; success = within 4 cm of the goal and slower than 0.25."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self.num_envs = num_envs
        self.generator = torch.Generator().manual_seed(seed)
        self.position, self.velocity, self.goal = (torch.zeros(num_envs, 2) for _ in range(3))
        self.time = torch.zeros(num_envs, dtype=torch.long)
        self.reset(torch.ones(num_envs, dtype=torch.bool))

    def reset(self, mask: Tensor) -> None:
        count = int(mask.sum())
        self.position[mask] = torch.rand(count, 2, generator=self.generator) * 0.4 - 1
        self.goal[mask] = torch.rand(count, 2, generator=self.generator) * 1.2 - 0.2
        self.velocity[mask], self.time[mask] = 0.0, 0

    def observe(self) -> dict[str, Tensor]:
        return {STATE: torch.cat([self.position, self.velocity], 1), ENV_STATE: self.goal.clone()}

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.velocity = 0.6 * self.velocity + 0.4 * action.clamp(-1, 1)
        self.position = self.position + 0.1 * self.velocity
        self.time += 1
        near = (self.position - self.goal).norm(dim=1) < 0.04
        success = near & (self.velocity.norm(dim=1) < 0.25)
        return success.float(), success, (self.time >= LIMIT) & ~success


class BiasedBase:
    """Goes to a point beside the goal that depends on the goal; a chunk of ``horizon`` open-loop steps."""

    spec = PolicySpec(2, state_keys=(STATE, ENV_STATE))

    def __init__(self, bias: float = 0.075, horizon: int = 4) -> None:
        self.bias, self.horizon = bias, horizon

    def initial_state(self, batch_size: int) -> TensorDict:
        return TensorDict(
            {"chunk": torch.zeros(batch_size, 2), "index": torch.full((batch_size,), self.horizon)},
            [batch_size],
        )

    def needs_images(self, state: TensorDict) -> Tensor:
        return torch.zeros(state.batch_size[0], dtype=torch.bool)

    def act(self, observation: dict, state: TensorDict, *, deterministic: bool = False):
        goal = observation[ENV_STATE]
        offset = self.bias * torch.stack([torch.sin(7 * goal[:, 0]), torch.cos(5 * goal[:, 1])], 1)
        wanted = goal + offset - observation[STATE][:, :2]
        fresh = (2.0 * wanted).clamp(-1, 1)
        ask = state["index"] >= self.horizon
        chunk = torch.where(ask[:, None], fresh, state["chunk"])
        index = torch.where(ask, torch.zeros_like(state["index"]), state["index"])
        size = [len(chunk)]
        return TensorDict({"action": chunk}, size), TensorDict({"chunk": chunk, "index": index + 1}, size)


class Loop:
    """Collector in small: the same frames in the same order as ``vla_rl.rollout.collector``."""

    def __init__(self, env: PointMass, policy: Policy, sink=None) -> None:
        self.env, self.policy, self.sink = env, policy, sink
        self.state = policy.initial_state(env.num_envs)
        self.successes: list[bool] = []

    def step(self, deterministic: bool = False) -> None:
        env, rows = self.env, torch.arange(self.env.num_envs)
        observation = env.observe()
        output, state = self.policy.act(observation, self.state, deterministic=deterministic)
        reward, terminated, truncated = env.step(output["action"])
        self._emit(observation, output, output["action"], reward, terminated, truncated, rows, False)
        self.state, done = state, terminated | truncated
        if not done.any():
            return
        index = done.nonzero().flatten()
        self.successes += terminated[index].tolist()
        after = env.observe()
        closing, _ = self.policy.act(after, self.state, deterministic=True)
        zero = torch.zeros_like
        self._emit(
            after,
            closing,
            zero(output["action"]),
            zero(reward),
            zero(terminated),
            zero(truncated),
            index,
            True,
        )
        env.reset(done)
        self.state = reset_rows(self.policy, self.state, done)

    def _emit(self, observation, output, action, reward, terminated, truncated, rows, final) -> None:
        if self.sink is None:
            return
        count = len(action)
        base = output.get("base_action", output["action"][:, None])
        frames = TensorDict(
            {
                "observation": TensorDict(observation, [count]),
                "base_action": base,
                "action": action,
                "intervention": output.get("intervention", torch.zeros(count, dtype=torch.bool)),
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
                "final": torch.full((count,), final),
            },
            [count],
        )
        self.sink(frames[rows].clone(), rows)


def train(algorithm, steps: int, loop: Loop | None = None, envs: int = 16) -> list[dict[str, Tensor]]:
    """Collect and update until ``steps`` environment steps; the metrics of every update."""
    loop = loop or Loop(PointMass(envs, 1), algorithm.policy, algorithm.observe)
    metrics = []
    while algorithm.steps < steps:
        loop.step()
        while algorithm.updates_due():
            metrics.append(algorithm.update())
    return metrics


def success_rate(policy: Policy, episodes: int = 200, seed: int = 10_000) -> float:
    """One deterministic episode in each of ``episodes`` rows."""
    env = PointMass(episodes, seed)
    state, alive, won = policy.initial_state(episodes), torch.ones(episodes, dtype=torch.bool), 0
    for _ in range(LIMIT):
        output, state = policy.act(env.observe(), state, deterministic=True)
        _, terminated, _ = env.step(output["action"])
        won += int((terminated & alive).sum())
        alive &= ~terminated
    return won / episodes


def demonstrations(episodes: int, base: Policy, seed: int = 77) -> TensorDict:
    """Successful episodes of an unbiased controller, with what ``base`` would have done at each step."""
    expert = BiasedBase(bias=0.0, horizon=1)
    parts = []
    env = PointMass(episodes, seed)
    rows: list[list[TensorDict]] = [[] for _ in range(episodes)]
    open_rows = set(range(episodes))
    state, base_state = expert.initial_state(episodes), base.initial_state(episodes)
    for _ in range(LIMIT + 1):
        observation = env.observe()
        action, state = expert.act(observation, state)
        guess, base_state = base.act(observation, base_state)
        closed = {r for r in open_rows if rows[r] and bool(rows[r][-1]["terminated"])}
        reward, terminated, _ = env.step(action["action"])
        final = torch.zeros(episodes, dtype=torch.bool)
        final[list(closed)] = True
        frames = TensorDict(
            {
                "observation": TensorDict(observation, [episodes]),
                "base_action": guess["action"][:, None],
                "action": action["action"] * ~final[:, None],
                "intervention": torch.zeros(episodes, dtype=torch.bool),
                "reward": reward * ~final,
                "terminated": terminated & ~final,
                "truncated": torch.zeros(episodes, dtype=torch.bool),
                "final": final,
            },
            [episodes],
        )
        for row in open_rows:
            rows[row].append(frames[row].clone())
        open_rows -= closed
    for row, sequence in enumerate(rows):
        if row not in open_rows:
            parts.append(torch.stack(sequence))
    return torch.cat(parts)
