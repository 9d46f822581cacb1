"""Real DDS on a domain of this process's own."""

import os
import time

os.environ["ROS_DOMAIN_ID"] = str(os.getpid() % 100 + 1)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

import pytest  # noqa: E402

from real.nodes import Nodes, safety, sim_arm  # noqa: E402


@pytest.fixture(scope="session")
def robot(tmp_path_factory):
    """The simulated arm and its safety node, running; ``robot.log`` is the arm's own record of its motion."""
    folder = tmp_path_factory.mktemp("robot")
    with Nodes(folder) as nodes:
        nodes.log = folder / "motion.f64"
        nodes.start("sim_arm", sim_arm(log=nodes.log))
        nodes.start("safety", safety("sim_arm"))
        yield nodes


@pytest.fixture(scope="session")
def reset():
    """``reset(link)`` ends a latched stop, as soon as the safety node lets it: an arm that brakes is refused."""
    from real.safety_node import RESET
    from vla_rl.errors import UserError

    def patiently(link, seconds=20.0):
        until = time.monotonic() + seconds
        while True:
            try:
                return link.pull(RESET, 10.0)
            except UserError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    return patiently


@pytest.fixture(scope="module")
def janitor(robot, reset):
    """A node that has seen to it that the arm is not stopped."""
    from diagnostic_msgs.msg import DiagnosticStatus

    from real.ros2 import Link
    from real.safety_node import STATE, describe

    link = Link("janitor")
    try:
        state = link.listen(STATE, DiagnosticStatus)
        assert state.wait(0, 20.0)
        time.sleep(0.5)
        if describe(state)[0] == "stopped":
            reset(link)
        yield link
    finally:
        link.close()


@pytest.fixture(scope="module")
def env(janitor):
    """The robot as an environment, ready to be reset."""
    from real.robot_env import RobotEnv

    env = RobotEnv("sim_arm", max_episode_steps=120)
    yield env
    env.close()
    env.close()
