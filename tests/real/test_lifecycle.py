"""Lifecycle nodes between real processes: configured, active, at rest again, and what they refuse."""

import sys
import threading
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.srv import ChangeState, GetState
from sensor_msgs.msg import JointState

from real.contract import load_contract
from real.nodes import Nodes, sim_arm
from real.ros2 import Link
from real.safety_node import RESET, STATE, describe
from vla_rl.config import ROOT
from vla_rl.errors import UserError

STEPS = {"configure": 1, "cleanup": 2, "activate": 3, "deactivate": 4}
HOME = np.array(load_contract("sim_arm").home)


class Manager:
    """Calls transitions, as ``ros2 lifecycle set`` does."""

    def __init__(self):
        self.link = Link("manager")
        self.state = self.link.listen(STATE, DiagnosticStatus)
        self.joints = self.link.listen("/joint_states", JointState)

    def ask(self, service, kind, request):
        client = self.link.node.create_client(kind, service)
        assert client.wait_for_service(60.0), service
        done = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        assert done.wait(60.0), service
        self.link.node.destroy_client(client)
        return future.result()

    def set(self, node, step):
        request = ChangeState.Request()
        request.transition.id = STEPS[step]
        return self.ask(f"/{node}/change_state", ChangeState, request).success

    def get(self, node):
        return self.ask(f"/{node}/get_state", GetState, GetState.Request()).current_state.label

    def reset(self):
        try:
            self.link.pull(RESET, 10.0)
        except UserError:  # a busy machine: joint states are old
            return False
        return True

    def moving(self):
        return np.abs(self.joints.newest.message.velocity).max() > 0.02

    def until(self, true, seconds=30.0):
        until = time.monotonic() + seconds
        while not true() and time.monotonic() < until:
            time.sleep(0.05)
        return true()


def lifecycle(name, *arguments):
    path = ROOT / f"ros_ws/src/vla_rl_robot/vla_rl_robot/{name}.py"
    return [sys.executable, str(path), "--ros-args", *arguments]


@pytest.mark.timeout(240)
def test_safety_and_policy_are_managed(tmp_path, monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", "0")  # beside the arm of the other tests
    safety, policy = "vla_rl_safety_lifecycle", "vla_rl_policy"
    with Nodes(tmp_path) as nodes:
        manager = Manager()
        try:
            nodes.spawn("safety", lifecycle("safety"))
            assert not manager.set(safety, "configure")  # there is no arm yet
            assert manager.get(safety) == "unconfigured"
            assert "/joint_states has no publisher" in (tmp_path / "safety.log").read_text()
            nodes.start("sim_arm", sim_arm())
            nodes.spawn(
                "policy",
                lifecycle(
                    "policy", "-p", "overrides:=['env.robot=sim_arm', 'policy=expert', 'env.cameras=[]']"
                ),
            )
            assert manager.set(safety, "configure") and manager.set(safety, "activate")
            assert manager.until(lambda: "not started" in describe(manager.state))
            assert manager.set(policy, "configure") and manager.set(policy, "activate")
            assert manager.until(manager.moving)
            # the policy ends: the arm holds
            assert manager.set(policy, "deactivate")
            assert manager.until(lambda: describe(manager.state)[0] == "hold" and not manager.moving())
            # safety ends while the arm moves: it comes to rest, and goes on only after a reset
            assert manager.set(policy, "activate") and manager.until(manager.moving)
            assert manager.set(safety, "deactivate")
            assert manager.until(lambda: not manager.moving(), 3.0)
            assert manager.until(lambda: manager.get(policy) == "inactive")  # a fault: nobody guards the arm
            assert "the safety node has said nothing" in (tmp_path / "policy.log").read_text()
            rest = np.array(manager.joints.newest.message.position)
            assert manager.set(safety, "activate")
            assert manager.until(lambda: "begun again" in describe(manager.state))
            time.sleep(0.5)
            assert np.abs(np.array(manager.joints.newest.message.position) - rest).max() < 0.02
            assert manager.until(manager.reset)
            assert manager.set(policy, "activate") and manager.until(manager.moving)
            assert manager.set(policy, "deactivate") and manager.set(policy, "cleanup")
            assert manager.get(policy) == "unconfigured"
        finally:
            manager.link.close()
