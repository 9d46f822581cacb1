"""A diffusion policy for the toy: an MLP cloned from its biased base in a few seconds."""

from __future__ import annotations

import copy

import torch
from diffusers import DDIMScheduler
from tensordict import TensorDict
from torch import Tensor, nn
from toy import BiasedBase, PointMass

from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.base import PolicySpec
from vla_rl.policies.denoising import Chain, of_flow, of_scheduler

CHUNK = 4


class Denoiser(nn.Module):
    """(x [B, 4, 2], time [B], observation [B, 6]) -> [B, 4, 2]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(CHUNK * 2 + 6 + 4, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 8),
        )

    def forward(self, x: Tensor, time: Tensor, seen: Tensor) -> Tensor:
        t = time.float()[:, None]
        clock = torch.cat([t.sin(), t.cos(), (t / 10).sin(), (t / 10).cos()], 1)
        return self.layers(torch.cat([x.flatten(1), seen, clock], 1)).view(-1, CHUNK, 2)


class ToyHead:
    """``vla_rl.policies.heads.Head``."""

    shape, first, from_noise = (CHUNK, 2), 0, True

    def __init__(self, flow: bool) -> None:
        self.flow, self.network = flow, Denoiser()
        self.scheduler = DDIMScheduler(
            100, beta_schedule="squaredcos_cap_v2", clip_sample=True, prediction_type="sample"
        )

    def chain(self, steps: int | None = None) -> Chain:
        return of_flow(steps or 5, "noise") if self.flow else of_scheduler(self.scheduler, steps or 5)

    def predict(self, network, x, time, condition):
        return network(x, time * 100 if self.flow else time, condition["seen"])

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.network).requires_grad_(True)


class ToyDiffusion:
    """A policy with the ``Denoising`` capability."""

    spec = PolicySpec(2, CHUNK, state_keys=(STATE, ENV_STATE))

    def __init__(self, flow: bool = False, bias: float = 0.06, updates: int = 1500) -> None:
        torch.manual_seed(5)
        self.head = ToyHead(flow)
        self._clone(bias, updates)
        self.head.network.requires_grad_(False).eval()

    def _clone(self, bias: float, updates: int) -> None:
        seen, chunks = examples(bias)
        head = self.head
        optimizer = torch.optim.Adam(head.network.parameters(), lr=2e-3)
        for _ in range(updates):
            pick = torch.randint(len(seen), (256,))
            data, noise = chunks[pick], torch.randn(256, CHUNK, 2)
            condition = {"seen": seen[pick]}
            if head.flow:
                time = torch.rand(256)
                x = time[:, None, None] * noise + (1 - time[:, None, None]) * data
                target = noise - data
            else:
                time = torch.randint(100, (256,))
                x, target = head.scheduler.add_noise(data, noise, time), data
            loss = (head.predict(head.network, x, time, condition) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def initial_state(self, batch_size: int) -> TensorDict:
        return TensorDict({}, [batch_size])

    def needs_images(self, state: TensorDict) -> Tensor:
        return torch.zeros(state.batch_size[0], dtype=torch.bool)

    def encode(self, observation, state):
        seen = torch.cat([observation[STATE], observation[ENV_STATE]], 1)
        return TensorDict({"seen": seen}, [len(seen)]), state

    def actions_of(self, x: Tensor) -> Tensor:
        return x


def examples(bias: float, episodes: int = 200) -> tuple[Tensor, Tensor]:
    """Observations [n, 6] and the chunks [n, 4, 2] that the biased controller would carry out."""
    env, base = PointMass(episodes, 3), BiasedBase(bias, horizon=1)
    state, seen, done = base.initial_state(episodes), [], []
    for _ in range(40):
        observation = env.observe()
        output, state = base.act(observation, state)
        seen.append(torch.cat([observation[STATE], observation[ENV_STATE]], 1))
        done.append(output["action"])
        env.step(output["action"])
    chunks = torch.stack([torch.stack(done[i : i + CHUNK], 1) for i in range(40 - CHUNK + 1)])
    return torch.cat(seen[: 40 - CHUNK + 1]), chunks.flatten(0, 1)
