"""Real DDS on a domain of this process's own."""

import os

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


@pytest.fixture(scope="module")
def env(robot):
    """The robot as an environment, ready to be reset."""
    import time

    from diagnostic_msgs.msg import DiagnosticStatus

    from real.robot_env import RobotEnv
    from real.ros2 import Link
    from real.safety_node import RESET, STATE, describe

    link = Link("janitor")
    state = link.listen(STATE, DiagnosticStatus)
    state.wait(0, 20.0)
    time.sleep(1.0)
    if describe(state)[0] == "stopped":
        link.pull(RESET, 10.0)
    env = RobotEnv("sim_arm", max_episode_steps=120)
    yield env
    env.close()
    env.close()
    link.close()
