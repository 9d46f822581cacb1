"""The simulated arm in lockstep: conformance, seeding, the limits of its contract, its expert."""

import numpy as np
import pytest
import torch

from real.contract import load_contract
from real.embodiment import Commander
from real.kinematics import ArmModel
from sim.experts import expert
from sim.sim_arm import SimArmEnv
from sim.vector import make
from vla_rl.checks import check_env, check_policy
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.rollout.evaluate import evaluate

ADAPTER = "sim.sim_arm:SimArmEnv"
CONTRACT = load_contract("sim_arm")
HOME = np.array(CONTRACT.home)


@pytest.fixture(scope="module")
def arm():
    env = SimArmEnv(cameras=[])
    yield env
    env.close()


def test_conformance():
    check_env(lambda: make(ADAPTER, "ArmLift", 2, 0, image_size=32, max_episode_steps=6))
    env = make(ADAPTER, "ArmLift", 1, 0, cameras=[])
    check_policy(expert(env), env.env_spec)
    env.close()


def test_the_tool_is_where_kinematics_say(arm):
    """MuJoCo's Panda and the URDF's are the same arm, but for where along the fingers their tool points lie."""
    arm.reset(0)
    site = arm.world.data.site("gripper0_grip_site")
    position, rotation = arm.model.pose(arm.world.joints)
    apart = site.xpos - arm.world.base - position
    along = rotation[:, 2]
    assert np.linalg.norm(apart - (apart @ along) * along) < 1e-3
    assert abs(apart @ along) < 0.01


def test_the_arm_follows_and_no_limit_is_exceeded(arm):
    arm.reset(0)
    rng = np.random.default_rng(0)
    limits = CONTRACT.limits
    for _ in range(60):
        arm.step(np.append(rng.uniform(-1, 1, 3) + [0, 0, 0.3], -1))
        assert np.abs(arm.world.joints - arm.commands[0][0]).max() < 0.015
        assert (np.abs(arm.world.joint_velocity) <= 1.02 * np.array(limits.velocity)).all()
        _, speed = arm.model.motion(arm.world.joints[None], arm.world.joint_velocity[None])
        assert np.linalg.norm(speed) <= 1.02 * CONTRACT.tool.max_speed
    assert not arm.safety.latched


def test_an_action_of_one_moves_the_tool_by_the_contracts_translation(arm):
    start = arm.reset(0)[0][STATE][7:10]
    for _ in range(4):
        arm.step(np.array([0.0, 1.0, 0.0, 1.0]))
    for _ in range(10):
        after = arm.step(np.array([0.0, 0.0, 0.0, 1.0]))[0][STATE][7:10]
    np.testing.assert_allclose(after - start, [0, 4 * CONTRACT.control.translation, 0], atol=2e-3)


def test_the_cube_is_where_the_seed_puts_it(arm):
    places = [arm.reset(seed)[0][ENV_STATE] for seed in (1, 2, 1)]
    np.testing.assert_array_equal(places[0], places[2])
    assert not np.array_equal(places[0], places[1])


def test_the_expert_lifts_the_cube():
    env = make(ADAPTER, "ArmLift", 2, 0, cameras=[])
    assert evaluate(env, expert(env), 6, 100).summary()["rate"] == 1.0
    env.close()


def test_the_picture_shows_the_red_cube():
    env = SimArmEnv(image_size=64)
    env.reset(0)
    red, green, blue = env.look()["observation.images.agentview"].astype(int)
    assert ((red > 100) & (red > 2 * green) & (red > 2 * blue)).sum() > 5
    env.close()


def test_unknown_task():
    with pytest.raises(UserError, match="there is ArmLift"):
        SimArmEnv("ArmPush")


@pytest.mark.parametrize("mode", ["ee", "ee_pose", "joint"])
def test_every_control_mode_reaches_what_it_asks_for(mode):
    contract = load_contract("sim_arm")
    contract.control.mode = mode
    model = ArmModel(contract)
    commander = Commander(contract, model)
    commander.reset(HOME)
    action = torch.zeros(commander.action_dim).numpy()
    action[1], action[-1] = 0.5, -1.0
    before, joints = model.pose(HOME), HOME
    for _ in range(2):
        joints, finger = commander.command(action, joints)
    assert finger == CONTRACT.gripper.shut
    after = model.pose(joints)
    if mode == "joint":
        np.testing.assert_allclose(joints - HOME, [0, contract.control.rotation, 0, 0, 0, 0, 0], atol=1e-9)
        return
    np.testing.assert_allclose(after[0] - before[0], [0, contract.control.translation, 0], atol=1e-4)
    np.testing.assert_allclose(after[1], before[1], atol=1e-3)
    if mode == "ee_pose":
        action[:], action[5] = 0.0, 1.0
        joints, _ = commander.command(action, joints)
        turned = model.pose(joints)[1] @ after[1].T
        assert np.arctan2(turned[1, 0], turned[0, 0]) == pytest.approx(contract.control.rotation, abs=1e-3)


def test_targets_stay_inside_the_workspace(arm):
    """Pushed at the table, the arm slides on above it; it does not stand still."""
    arm.reset(0)
    for _ in range(25):
        state = arm.step(np.array([0.3, 0.5, -1.0, -1.0]))[0][STATE]
    assert state[9] > CONTRACT.tool.low[2]
    assert state[8] > 0.15


def test_a_saved_moment_goes_on_bit_for_bit_in_another_row_and_another_process():
    rng = torch.Generator().manual_seed(0)
    actions = torch.rand(40, 2, 4, generator=rng) * 2 - 1
    actions[12:16] = 0.0  # at rest on a target, too

    def states(env, row):
        return [s for s in env.save_states([row])][0]

    here = make(ADAPTER, "ArmLift", 2, 0, cameras=[])
    there = make(ADAPTER, "ArmLift", 2, 2, cameras=[])
    try:
        assert here.start_states and there.start_states
        here.reset(seed=[1, 2])
        for action in actions[:14]:
            here.step(action)
        moment = states(here, 0)
        for env in (here, there):
            env.reset(seed=[7, 8])
            env.step(actions[0])
        seen = []
        for env in (here, there):
            observation, _ = env.reset(
                seed=[3, 3], options={"reset_mask": [False, True], "start": {1: moment}}
            )
            for action in actions[14:]:
                observation, *_ = env.step(action[[0, 0]])
            seen.append((observation[STATE][1], observation[ENV_STATE][1], states(env, 1)))
        arm = SimArmEnv(cameras=[])
        arm.restore(moment)
        assert arm.ending.steps == 0
        for action in actions[14:]:
            after, *_ = arm.step(action[0].numpy())
        arm.close()
        for state, cube, later in seen:
            assert torch.equal(state, torch.from_numpy(after[STATE]))
            assert torch.equal(cube, torch.from_numpy(after[ENV_STATE]))
            assert all(np.array_equal(later[key], seen[0][2][key]) for key in later)
    finally:
        here.close()
        there.close()
