"""Real-time chunking with LeRobot's own SmolVLA: a new chunk goes on from what is left of the old one."""

import time

import pytest
import tiny
import torch
from omegaconf import OmegaConf

from sim.vector import make
from vla_rl.errors import UserError
from vla_rl.policies.asynchronous import Asynchronous
from vla_rl.policies.lerobot import LeRobotPolicy
from vla_rl.policies.load import load_base
from vla_rl.policies.nano import build_smolvla_nano
from vla_rl.rollout.evaluate import evaluate

LENGTH = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    stats = {"action": {"mean": torch.tensor([0.3, -1.0, 2.0]), "std": torch.tensor([0.5, 2.0, 0.1])}}
    return tiny.tiny_vla(tmp_path_factory.mktemp("rtc") / "nano", chunk_size=LENGTH), stats


@pytest.fixture(scope="module")
def policy(folder):
    """With statistics unlike (0, 1): a leftover in the wrong units would be far off."""
    policy = LeRobotPolicy(folder[0], flow_steps=10)
    for pipeline in (policy.before, policy.after):
        for step in pipeline.steps:
            if hasattr(step, "_tensor_stats"):
                step.stats = {**(step.stats or {}), **folder[1]}
                step.__post_init__()
    return policy


def observe(seed):
    draw = torch.Generator().manual_seed(seed)
    return {
        "observation.state": torch.randn(1, 5, generator=draw),
        "observation.images.base": torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=draw),
        "task": [tiny.TASKS[0]],
    }


def plans(policy, delay=4):
    """A chunk, and two that follow it from another observation and another noise: guided and free."""
    draw = torch.Generator().manual_seed(1)
    noises = torch.randn(2, 1, *policy.noise_shape, generator=draw)
    state = policy.initial_state(1)
    old = policy.act_from_noise(observe(0), state, noises[0])[0]["action"]
    left = old[:, 3:]
    free = policy.act_from_noise(observe(9), state, noises[1])[0]["action"]
    guided = policy.act_continuing(observe(9), state, left, delay, noises[1])[0]["action"]
    return left, free, guided


def test_a_guided_chunk_keeps_what_will_be_executed_and_then_lets_go(policy):
    left, free, guided = plans(policy)
    scale = torch.tensor([0.5, 2.0, 0.1])
    off_free, off = (((c[:, :9] - left) / scale).abs().mean((0, 2)) for c in (free, guided))
    assert off_free[:4].min() > 0.3, "the two plans differ, else this shows nothing"
    assert off[:4].max() < 0.05, "the actions under way are kept"
    assert (off[:6] < off_free[:6]).all()
    far = ((guided - free) / scale).abs().mean((0, 2))
    assert far[9:].max() < far[:4].min(), "beyond what is left it is free"


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_prefix_is_kept_with_few_flow_steps_too(folder, steps):
    policy = LeRobotPolicy(folder[0], flow_steps=steps)
    left, _, guided = plans(policy)
    assert (guided[:, :4] - left[:, :4]).abs().max() < 0.15


def test_guidance_leaves_other_chunks_as_they_were(folder):
    policy = LeRobotPolicy(folder[0])
    assert policy.noise_shape is not None
    noise = torch.randn(1, *policy.noise_shape)
    state = policy.initial_state(1)
    before = policy.act_from_noise(observe(3), state, noise)[0]["action"]
    policy.act_continuing(observe(3), state, before[:, 5:], 2)
    assert torch.equal(policy.act_from_noise(observe(3), state, noise)[0]["action"], before)


def jumps(policy, steps=40):
    """[n] how far each takeover is from what the old chunk would have done at that step."""
    torch.manual_seed(0)
    state, out = policy.initial_state(1), []
    for step in range(steps):
        began = time.monotonic()
        index, old = int(state["index"]), state["chunk"]
        output, state = policy.act(observe(step), state)
        if index < LENGTH and int(output["chunk_index"]) != index:
            out.append((output["action"] - old[:, index]).abs().mean())
        time.sleep(max(0.0, 0.02 - (time.monotonic() - began)))
    policy.close()
    return torch.stack(out)


def test_on_a_clock_chunks_join(folder):
    def run(**settings):
        return jumps(Asynchronous(LeRobotPolicy(folder[0]), horizon=5, lead=4, **settings))

    plain, joined, faded = run(), run(rtc=True), run(blend=3)
    assert min(map(len, (plain, joined, faded))) >= 4
    assert joined.median() < 0.2 * plain.median()
    assert faded.median() < 0.5 * plain.median()


def test_in_an_environment(tmp_path):
    """SmolVLA with a camera drives the simulated arm in lockstep; every chunk after the first is guided."""
    env = make("sim.sim_arm:SimArmEnv", "ArmLift", 1, 0, image_size=64, max_episode_steps=30)
    spec = env.env_spec
    folder = build_smolvla_nano(
        tmp_path / "arm",
        state_dim=spec.state_dim,
        action_dim=spec.action_dim,
        cameras=tuple(key.rsplit(".", 1)[1] for key in spec.cameras),
        image_size=64,
        chunk_size=LENGTH,
        tasks=spec.tasks,
        **tiny.TINY,
    )
    policy = Asynchronous(LeRobotPolicy(folder), lead=3, rtc=True)
    evaluate(env, policy, 1, seed=0)
    assert len(policy.durations) >= 4
    policy.close()
    env.close()


def test_from_a_configuration(folder, act_folder):
    def base(path, **settings):
        return load_base(OmegaConf.create({"path": str(path), **settings}))

    policy = base(folder[0], asynchronous=True, rtc=True)
    assert policy.rtc and policy.horizon == LENGTH // 2
    policy.close()
    assert base(act_folder, asynchronous=True, blend=2).blend == 2
    with pytest.raises(UserError, match=r"policy.rtc=true: LeRobot has no real-time chunking for act.*blend"):
        base(act_folder, asynchronous=True, rtc=True)
    with pytest.raises(UserError, match="policy.rtc.*policy.asynchronous=true"):
        base(folder[0], rtc=True)
    with pytest.raises(UserError, match=r"policy.blend=12 is outside 0..11"):
        base(folder[0], asynchronous=True, blend=12)
