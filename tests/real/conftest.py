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
        mend(nodes)
        yield nodes


def mend(nodes):
    """Start whichever of the two does not run: a test that failed halfway may have left one dead."""
    for name, command in {"sim_arm": sim_arm(log=nodes.log), "safety": safety("sim_arm")}.items():
        process = nodes.processes.get(name)
        if process is None or process.poll() is not None:
            nodes.start(name, command)


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


@pytest.fixture(scope="session")
def janitor(robot):
    """A node that knows whether the arm is stopped."""
    from diagnostic_msgs.msg import DiagnosticStatus

    from real.ros2 import Link
    from real.safety_node import STATE

    link = Link("janitor")
    try:
        link.safety = link.listen(STATE, DiagnosticStatus)
        yield link
    finally:
        link.close()


@pytest.fixture(autouse=True)
def at_ease(request):
    """Every test begins with both nodes running and no stop latched, however the one before it ended."""
    timeless = request.node.get_closest_marker("realtime") is None
    if timeless or "robot" not in request.fixturenames:
        return
    from real.safety_node import describe

    robot, janitor, reset = (request.getfixturevalue(name) for name in ("robot", "janitor", "reset"))
    mend(robot)
    assert janitor.safety.wait(
        janitor.safety.count, 20.0
    )  # of now: a node that was started anew begins stopped
    if describe(janitor.safety)[0] == "stopped":
        reset(janitor)


@pytest.fixture(scope="module")
def env(robot):
    """The robot as an environment, ready to be reset."""
    from real.robot_env import RobotEnv

    env = RobotEnv("sim_arm", max_episode_steps=120)
    yield env
    env.close()
    env.close()
