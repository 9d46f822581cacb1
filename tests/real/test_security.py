"""The SROS2 policies name what the nodes use on the network: no less, and nothing else."""

import time
import xml.etree.ElementTree as ET

import pytest

from real import security
from real.contract import load_contract
from real.ros2 import Link
from real.safety_node import RESET
from vla_rl.config import ROOT

FOLDER = ROOT / "ros_ws/security"


def written(folder, node):
    """(group, word) -> names, from a policy file."""
    profile = ET.parse(folder / f"{node}.xml").getroot().find("enclaves/enclave/profiles/profile")
    assert profile is not None and profile.get("node") == node and profile.get("ns") == "/"
    found = {}
    for part in profile:
        ((word, allow),) = part.attrib.items()
        assert allow == "ALLOW"
        found[word] = {entry.text for entry in part}
    return found


def used(link, node):
    """As the network shows it."""
    if node not in link.node.get_node_names():
        return {"request": set()}  # not discovered yet
    words = {"publish": "publisher", "subscribe": "subscriber", "reply": "service", "request": "client"}
    return {
        word: {n for n, _ in getattr(link.node, f"get_{kind}_names_and_types_by_node")(node, "/")}
        for word, kind in words.items()
    }


@pytest.mark.parametrize("node", ["sim_arm", "vla_rl_safety", "vla_rl_robot"])
def test_the_committed_policies_are_what_the_nodes_do(env, node):
    env.reset(seed=0)
    link, allowed = Link("witness"), written(FOLDER, node)
    until = time.monotonic() + 10
    while True:
        seen = used(link, node)
        # services that are called once and let go of
        seen["request"] |= {RESET, "/scene/reset"} if node == "vla_rl_robot" else set()
        if {k: v for k, v in seen.items() if v} == allowed or time.monotonic() > until:
            break
        time.sleep(0.1)
    link.close()
    assert {k: v for k, v in seen.items() if v} == allowed


def test_files_of_another_robot(tmp_path, capsys):
    assert security.main(["fr3", str(tmp_path), "--subscribe", "/joy"]) == 0
    assert {p.stem for p in tmp_path.iterdir()} == {"vla_rl_safety", "vla_rl_robot"}
    safety, contract = written(tmp_path, "vla_rl_safety"), load_contract("fr3")
    assert safety["call"] == {contract.gripper.topic}
    assert contract.command.topic in safety["publish"]
    assert "/joy" in written(tmp_path, "vla_rl_robot")["subscribe"]
    assert contract.command.topic not in written(tmp_path, "vla_rl_robot")["publish"]
    assert security.main(["nobody", str(tmp_path)]) == 2
    assert "unknown robot" in capsys.readouterr().err


def test_the_committed_files_are_up_to_date(tmp_path):
    security.main(["sim_arm", str(tmp_path)])
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        p.name: p.read_text() for p in FOLDER.iterdir()
    }
