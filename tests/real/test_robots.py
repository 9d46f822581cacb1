"""The robots whose contracts are shipped: right kinematics, and a filter that keeps each one's limits."""

import numpy as np
import pinocchio as pin
import pytest

from real.contract import contract_of, load_contract
from real.kinematics import ArmModel, urdf_path
from real.safety import Mode, SafetyFilter
from vla_rl.config import CONFIGS
from vla_rl.errors import UserError

ROBOTS = ["fr3", "so101", "ur5e"]


def place(urdf, joints, frame):
    model = pin.buildModelFromUrdf(str(urdf_path(urdf)))
    q = pin.neutral(model)
    q[: len(joints)] = joints
    data = model.createData()
    pin.framesForwardKinematics(model, data, q)
    return data.oMf[model.getFrameId(frame)].homogeneous


def test_fr3_has_the_pandas_kinematics():
    q = np.random.default_rng(0).uniform(-1, 1, 7)
    panda = place("mani_skill/assets/robots/panda/panda_v2.urdf", q, "panda_hand_tcp")
    np.testing.assert_allclose(place("assets/robots/fr3.urdf", q, "fr3_hand_tcp"), panda, atol=1e-6)


def test_ur5e_has_the_makers_denavit_hartenberg_kinematics():
    q = np.random.default_rng(0).uniform(-3, 3, 6)
    rows = [(0, 0.1625, 1), (-0.425, 0, 0), (-0.3922, 0, 0), (0, 0.1333, 1), (0, 0.0997, -1), (0, 0.0996, 0)]
    pose = np.diag([-1.0, -1.0, 1.0, 1.0])  # ROS turns the base by pi
    for theta, (a, d, quarter) in zip(q, rows, strict=True):
        c, s, ca, sa = np.cos(theta), np.sin(theta), float(quarter == 0), float(quarter)
        step = [[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d], [0, 0, 0, 1]]
        pose = pose @ np.array(step)
    np.testing.assert_allclose(place("assets/robots/ur5e.urdf", q, "tool0"), pose, atol=1e-6)


def test_so101_reaches_as_far_as_its_links_are_long():
    stretched = place("assets/robots/so101.urdf", np.zeros(5), "gripper_frame")[:3, 3]
    shoulder = place("assets/robots/so101.urdf", np.zeros(5), "upper_arm")[:3, 3]
    # upper arm (0.116) up, then lower arm, wrist and gripper (0.135 + 0.061 + 0.098) forward
    assert np.linalg.norm(stretched - shoulder) == pytest.approx(np.hypot(0.116, 0.294), abs=0.03)


@pytest.mark.parametrize("robot", ROBOTS)
def test_random_targets_exceed_no_limit(robot):
    contract = load_contract(robot)
    model, limits = ArmModel(contract), contract.limits
    safety, rng = SafetyFilter(contract, model), np.random.default_rng(0)
    dt, now, ran = 1 / contract.command.rate_hz, 0.0, 0
    safety.reset(np.array(contract.home))
    before = safety.acceleration
    for tick in range(4000):
        now += dt
        if tick % 7 == 0:
            size = rng.choice([0.02, 0.1, limits.step])
            safety.aim(safety.position + rng.uniform(-size, size, len(contract.joints)), now)
        setpoint = safety.tick(now, safety.position, 0.0)
        ran += setpoint.mode is Mode.RUN
        (where,), (speed,) = model.motion(setpoint.position[None], setpoint.velocity[None])
        assert (setpoint.position >= np.array(limits.lower) - 1e-6).all()
        assert (setpoint.position <= np.array(limits.upper) + 1e-6).all()
        assert (np.abs(setpoint.velocity) <= np.array(limits.velocity) + 1e-6).all()
        assert (np.abs(setpoint.acceleration) <= np.array(limits.acceleration) + 1e-6).all()
        assert (np.abs(setpoint.acceleration - before) / dt <= np.array(limits.jerk) + 1e-4).all()
        assert np.linalg.norm(speed) <= contract.tool.max_speed + 1e-6
        assert (where >= np.array(contract.tool.low) - 1e-6).all()
        assert (where <= np.array(contract.tool.high) + 1e-6).all()
        assert model.clearance(setpoint.position)[0] >= contract.collision.margin - 1e-6
        before = setpoint.acceleration
    assert ran > 3000
    assert np.abs(safety.position - np.array(contract.home)).max() > 0.05  # it did move


def test_the_generic_arm_is_a_form_to_fill_in():
    with pytest.raises(UserError, match=r"generic.yaml: \w+(\.\w+)? is missing"):
        load_contract("generic")
    from omegaconf import OmegaConf

    form = OmegaConf.load(CONFIGS / "robot" / "generic.yaml")
    known = OmegaConf.load(CONFIGS / "robot" / "ur5e.yaml")
    filled = OmegaConf.create({k: v for k, v in known.items() if k in ("name", "urdf", "joints", "home")})
    filled.limits = {k: known.limits[k] for k in ("lower", "upper", "velocity", "acceleration", "jerk")}
    filled.tool = {k: known.tool[k] for k in ("frame", "low", "high")}
    assert ArmModel(contract_of(OmegaConf.merge(form, filled))).pose(np.array(known.home))[0][2] > 0.3
