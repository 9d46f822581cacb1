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
