"""A robot's contract: the shipped ones load, and every mistake is named."""

import copy

import pytest
from omegaconf import OmegaConf

from real.contract import contract_of, load_contract
from real.kinematics import ArmModel
from vla_rl.config import CONFIGS
from vla_rl.errors import UserError

PATH = CONFIGS / "robot" / "sim_arm.yaml"


def changed(**changes):
    """The simulated arm's values with dotted keys changed (``None`` removes one)."""
    values = OmegaConf.to_container(OmegaConf.load(PATH))
    for key, value in changes.items():
        node, parts = values, key.split("__")
        for part in parts[:-1]:
            node = node[part]
        if value is None:
            del node[parts[-1]]
        else:
            node[parts[-1]] = value
    return values


ROBOTS = sorted(p.stem for p in (CONFIGS / "robot").glob("*.yaml") if p.stem != "generic")  # that is a form


@pytest.mark.parametrize("name", ROBOTS)
def test_shipped_robots_load(name):
    contract = load_contract(name)
    model = ArmModel(contract)
    assert len(contract.joints) == model.model.nq


def test_unknown_robot_offers_the_nearest():
    with pytest.raises(UserError, match="unknown robot 'sim_arn': did you mean sim_arm"):
        load_contract("sim_arn")


LOW = OmegaConf.load(PATH).limits.lower


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"home": [0.0] * 6}, "home has 6 numbers for 7 joints"),
        ({"limits__upper": [-2.9, *([2.0] * 6)]}, "limits of panda_joint1 are inverted"),
        ({"home": [2.9, 0.2, 0, -2.6, 0, 2.9, 0.8]}, "home of panda_joint1, 2.9, is outside"),
        ({"limits__jerk": [0.0] * 7}, "limits.jerk of panda_joint1 is 0.0"),
        ({"tool__low": [0.9, -0.4, 0.0]}, "workspace is inverted along x"),
        ({"command__kind": "velocity"}, "command.kind=velocity: .*position"),
        ({"command__rate_hz": 10}, "below control.rate_hz"),
        ({"command__topic": None}, "command.topic is missing"),
        ({"gripper__open": 0.0}, "gripper.open and gripper.shut"),
        ({"limit": 3}, "unknown key 'limit': did you mean limits"),
        ({"tool__max_sped": 3}, "unknown key 'tool.max_sped': did you mean max_speed"),
        ({"limits__lower": "low"}, "lower.*Invalid value"),
        ({"joints": [f"panda_joint{i}" for i in (1, 2, 3, 4, 5, 6, 6)]}, "joints names panda_joint6 twice"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        contract_of(changed(**changes), "my.yaml")
    assert str(caught.value).startswith("my.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joints": [f"joint{i}" for i in range(1, 8)]}, "no joint joint1: did you mean panda_joint1"),
        ({"tool__frame": "panda_hand_tpc"}, "no frame panda_hand_tpc: did you mean panda_hand_tcp"),
        ({"urdf": "mani_skill/assets/robots/panda/none.urdf"}, "there is no mani_skill"),
        ({"collision__ignore": []}, "home is in self-collision|no distance"),
    ],
)
def test_mistakes_against_the_urdf_are_named(changes, message):
    values = changed(**changes)
    if "collision__ignore" in changes:
        values["collision"]["margin"] = 0.05
    with pytest.raises(UserError, match=message):
        ArmModel(contract_of(values))


def test_joint_order_is_the_contracts_own():
    """The same posture in another order of joints is the same pose."""
    import numpy as np

    values = changed()
    other = copy.deepcopy(values)
    order = [3, 1, 0, 6, 5, 4, 2]
    other["joints"] = [values["joints"][i] for i in order]
    other["home"] = [values["home"][i] for i in order]
    for key in ("lower", "upper", "velocity", "acceleration", "jerk"):
        other["limits"][key] = [values["limits"][key][i] for i in order]
    a, b = ArmModel(contract_of(values)), ArmModel(contract_of(other))
    joints = np.array([0.1, 0.3, -0.2, -2.2, 0.4, 2.5, 0.6])
    for x, y in zip(a.pose(joints), b.pose(joints[order]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)
    np.testing.assert_allclose(a.jacobian(joints)[:, order], b.jacobian(joints[order]), atol=1e-12)
    assert a.clearance(joints)[0] == pytest.approx(b.clearance(joints[order])[0])


def test_jacobian_is_the_poses_derivative():
    import numpy as np

    contract = load_contract("sim_arm")
    model = ArmModel(contract)
    joints, step = np.array([0.1, 0.3, -0.2, -2.2, 0.4, 2.5, 0.6]), 1e-6
    moved = [
        (model.pose(joints + step * e)[0] - model.pose(joints - step * e)[0]) / (2 * step) for e in np.eye(7)
    ]
    np.testing.assert_allclose(model.jacobian(joints)[:3], np.stack(moved, axis=1), atol=1e-6)
    velocity = np.arange(7) / 7
    np.testing.assert_allclose(
        model.motion(joints[None], velocity[None])[1][0], model.jacobian(joints)[:3] @ velocity, atol=1e-9
    )
