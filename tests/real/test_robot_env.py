"""A robot as an environment: the simulated arm over real DDS."""

import time

import pytest
import torch
from trajectory_msgs.msg import JointTrajectory

from real.contract import load_contract
from real.robot_env import RobotEnv, RobotFault
from real.ros2 import Link
from real.safety_node import RESET, STOP, TARGET, describe
from sim.experts.sim_arm import SimArmExpert
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.keys import ENV_STATE
from vla_rl.keys import STATE as PROPRIOCEPTION
from vla_rl.rollout.evaluate import evaluate

CAMERA = "observation.images.agentview"


def test_it_sees_what_its_twin_in_simulation_sees(env):
    from sim.vector import make

    twin = make("sim.sim_arm:SimArmEnv", ["ArmLift"], num_envs=1, num_workers=0, robot="sim_arm")
    try:
        theirs, _ = twin.reset(seed=7)
        ours, _ = env.reset(seed=7)
        for name in ("state_dim", "env_state_dim", "action_low", "action_high", "cameras", "tasks", "state_names", "action_names", "rate_hz"):  # fmt: skip
            assert getattr(env.env_spec, name) == getattr(twin.env_spec, name), name
        assert torch.allclose(ours[PROPRIOCEPTION], theirs[PROPRIOCEPTION], atol=0.02)
        assert torch.allclose(ours[ENV_STATE], theirs[ENV_STATE], atol=1e-3)
        pictures = env.look()[CAMERA].float(), twin.look()[CAMERA].float()
        assert (pictures[0] - pictures[1]).abs().mean() < 6  # of 255; one went through JPEG
    finally:
        twin.close()


def test_the_scripted_expert_lifts_the_cube(env):
    result = evaluate(env, SimArmExpert(env), 3, seed=100)
    assert sum(e.success for e in result.episodes) >= 1
    assert all(e.steps < 120 for e in result.episodes if e.success)


def test_the_time_limit_truncates_and_the_end_is_kept(env):
    env.reset(seed=1)
    still = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    for step in range(120):
        observation, reward, terminated, truncated, info = env.step(still)
        assert not terminated.item() and reward.item() == 0 and truncated.item() == (step == 119)
    picture = env.look()[CAMERA]
    with pytest.raises(RuntimeError, match="reset"):
        env.step(still)
    time.sleep(0.2)
    assert torch.equal(env.look()[CAMERA], picture)


def test_bad_actions_never_leave(env):
    env.reset(seed=1)
    with pytest.raises(UserError, match="shape"):
        env.step(torch.zeros(1, 7))
    with pytest.raises(NonFiniteError):
        env.step(torch.tensor([[0.0, float("nan"), 0.0, 0.0]]))


def test_a_frozen_camera_holds_the_arm_and_ends_the_episode_if_it_stays(env, monkeypatch):
    monkeypatch.setattr("real.robot_env.PATIENCE", 1.5)
    env.reset(seed=1)
    still = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    env.step(still)
    env.link.set_parameter("sim_arm", "freeze_camera", True, 10.0)
    try:
        with pytest.raises(
            RobotFault, match=r"camera agentview \(/agentview/image_raw/compressed\) is .* ms old"
        ):
            for _ in range(40):
                env.step(still)
        assert describe(env.safety)[0] == "hold"
    finally:
        env.link.set_parameter("sim_arm", "freeze_camera", False, 10.0)
    env.reset(seed=1)
    env.step(still)


def test_a_stopped_arm_says_so_and_is_not_started_again_by_a_reset(env, reset):
    env.reset(seed=1)
    env.link.pull(STOP)
    with pytest.raises(RobotFault, match="stopped: stop service"):
        for _ in range(40):
            env.step(torch.zeros(1, 4))
    with pytest.raises(RobotFault, match=RESET):
        env.reset(seed=1)
    reset(env.link)
    time.sleep(0.3)
    env.reset(seed=1)


def test_what_does_not_fit_is_named_before_anything_moves(robot, tmp_path, env):
    with pytest.raises(UserError, match="no camera wrist: it has agentview"):
        RobotEnv("sim_arm", cameras=["wrist"])
    text = (tmp_path / "robot.yaml").write_text
    from omegaconf import OmegaConf

    values = OmegaConf.load("configs/robot/sim_arm.yaml")
    values.gripper.joint = "finger"
    text(OmegaConf.to_yaml(values))
    assert load_contract(str(tmp_path / "robot.yaml")).gripper.joint == "finger"
    other = Link("other")
    try:
        with pytest.raises(UserError, match="publishes /vla_rl/target too"):
            other.publisher(TARGET, JointTrajectory)
            other.alone(TARGET, settle=5.0, own=1)
        # Each node discovers the other in its own time: that it knows us does not mean that we are known yet.
        until = time.monotonic() + 10.0
        while not env.link.rival(TARGET, own=1) and time.monotonic() < until:
            time.sleep(0.05)
        with pytest.raises(RobotFault, match="other.* publishes /vla_rl/target too"):
            env.reset(seed=1)
    finally:
        other.close()
