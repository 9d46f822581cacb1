"""The shipped base policies as users get them: they load, they obey the sentence, in real physics."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from sim.vector import make
from vla_rl.checks.policy import check_policy
from vla_rl.keys import ENV_STATE, TASK
from vla_rl.policies.base import PolicySpec
from vla_rl.policies.load import load_base

ASSETS = Path(__file__).parents[2] / "assets"
SHIPPED = {"smolvla-nano": 16, "dit-nano": 16, "token-nano": 8}
"""Name -> steps of its chunks."""
SENTENCES = {
    "TablePushCube-v1": "push the cube away from the robot",
    "TablePullCube-v1": "pull the cube towards the robot",
}


@pytest.fixture(scope="module")
def env():
    env = make("sim.maniskill:ManiSkillEnv", "TablePushCube-v1", 6, 2)
    yield env
    env.close()


def base(name):
    return load_base(
        OmegaConf.create(
            {"path": str(ASSETS / name), "horizon": SHIPPED[name], "flow_steps": None, "device": "cpu"}
        )
    )


class Told:
    """The base, told ``sentence`` whatever the environment says."""

    def __init__(self, name: str, sentence: str) -> None:
        self.policy, self.sentence = base(name), sentence
        self.spec: PolicySpec = self.policy.spec
        self.initial_state, self.needs_images = self.policy.initial_state, self.policy.needs_images

    def act(self, observation: dict, state: TensorDict, *, deterministic: bool = False):
        told = observation | {TASK: [self.sentence] * len(observation[TASK])}
        return self.policy.act(told, state, deterministic=deterministic)


def displacement(env, policy) -> torch.Tensor:
    """How far the cube has gone in +x (away from the robot) after 40 steps, [B] metres."""
    torch.manual_seed(0)
    observation, _ = env.reset(seed=900_000)
    start, state = observation[ENV_STATE][:, 9].clone(), policy.initial_state(env.num_envs)
    done = torch.zeros(env.num_envs, dtype=torch.bool)
    moved = torch.zeros(env.num_envs)
    for _ in range(40):
        asked = policy.needs_images(state).nonzero().flatten()
        for key, images in env.look(asked).items() if len(asked) else ():
            full = torch.zeros(env.num_envs, *images.shape[1:], dtype=images.dtype)
            full[asked] = images
            observation[key] = full
        output, state = policy.act(observation, state, deterministic=True)
        observation, _, terminated, truncated, _ = env.step(output["action"])
        moved = torch.where(done, moved, observation[ENV_STATE][:, 9] - start)
        done |= terminated | truncated
        if done.any():
            env.reset(seed=0, options={"reset_mask": done.numpy()})
    return moved


@pytest.mark.parametrize("name", SHIPPED)
def test_a_wrong_sentence_moves_the_cube_the_other_way(env, name):
    away = displacement(env, Told(name, SENTENCES["TablePushCube-v1"]))
    back = displacement(env, Told(name, SENTENCES["TablePullCube-v1"]))
    assert away.mean() > 0.03 and back.mean() < 0.0
    assert (away > back).float().mean() >= 0.8


@pytest.mark.parametrize("name", SHIPPED)
def test_it_conforms(env, name):
    check_policy(base(name), env.env_spec)


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_small_and_says_what_it_is(name):
    size = sum(f.stat().st_size for f in (ASSETS / name).rglob("*") if f.is_file())
    assert size < 16e6
    card = (ASSETS / name / "README.md").read_text()
    assert "vla-rl pretrain" in card and "Wilson" in card
