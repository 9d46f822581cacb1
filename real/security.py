"""SROS2 policies of a robot's nodes: what each may publish, subscribe, serve and call, from its contract.

``python -m real.security ROBOT FOLDER [--subscribe TOPIC ...]`` writes one policy file for each node.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import quoteattr

from real.contract import RobotContract, load_contract
from real.safety_node import RESET, STATE, STOP, STOP_BUTTON, TARGET
from vla_rl.errors import UserError

PARAMETERS = (
    "describe_parameters",
    "get_parameter_types",
    "get_parameters",
    "list_parameters",
    "set_parameters",
    "set_parameters_atomically",
)
EVERY_NODE = ("/rosout", "/parameter_events")
"""What rclpy publishes for every node."""

TRAJECTORIES, POSITIONS = (
    "/joint_trajectory_controller/joint_trajectory",
    "/forward_position_controller/commands",
)
"""What the simulated arm also takes, whatever its contract's command."""


@dataclass
class Rights:
    """Of one node: names of topics, services and actions."""

    publish: set[str] = field(default_factory=set)
    subscribe: set[str] = field(default_factory=set)
    reply: set[str] = field(default_factory=set)
    request: set[str] = field(default_factory=set)
    call: set[str] = field(default_factory=set)
    execute: set[str] = field(default_factory=set)


def rights_of(robot: RobotContract) -> dict[str, Rights]:
    """Node name -> what it needs: the safety node, the policy's node and, for ``sim_arm``, the simulated arm."""
    gripper, scene = robot.gripper, robot.scene
    on_topic = {gripper.topic} if gripper and gripper.kind == "topic" else set()
    by_action = {gripper.topic} if gripper and gripper.kind != "topic" else set()
    cameras = {camera.topic for camera in robot.cameras.values()}
    seen = cameras | {stream.topic for stream in robot.objects.values()}
    seen |= {robot.success.topic} if robot.success else set()
    joints, command = robot.joint_states.topic, robot.command.topic
    resets = {scene.service} if scene.service else set()
    seeds = {f"/{scene.node.strip('/')}/{name}" for name in PARAMETERS} if scene.node else set()
    nodes = {
        "vla_rl_safety": Rights(
            publish={STATE, "/diagnostics", command} | on_topic,
            subscribe={TARGET, STOP_BUTTON, joints},
            reply={STOP, RESET},
            call=set(by_action),
        ),
        "vla_rl_robot": Rights(
            publish={TARGET, STOP_BUTTON},
            subscribe={STATE, joints} | seen,
            request={RESET} | resets | seeds,
        ),
    }
    if robot.name == "sim_arm":
        nodes["sim_arm"] = Rights(
            publish={joints, "/diagnostics"} | seen,
            subscribe={TRAJECTORIES, POSITIONS, command} | on_topic,
            reply=set(resets),
            execute=set(by_action),
        )
    for name, rights in nodes.items():
        rights.publish |= {*EVERY_NODE}
        rights.reply |= {f"/{name}/{service}" for service in (*PARAMETERS, "get_type_description")}
    return nodes


def policy_xml(robot: str, node: str, rights: Rights) -> str:
    """The policy file of one node, for ``ros2 security create_permission``."""
    parts = []
    for group, kind, words in (
        ("actions", "action", ("call", "execute")),
        ("services", "service", ("reply", "request")),
        ("topics", "topic", ("publish", "subscribe")),
    ):
        for word in words:
            names = sorted(getattr(rights, word))
            if names:
                lines = "".join(f"\n            <{kind}>{name}</{kind}>" for name in names)
                parts.append(f'          <{group} {word}="ALLOW">{lines}\n          </{group}>')
    body = "\n".join(parts)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<!-- Written by python -m real.security {robot}; change the contract, not this file -->
<policy version="0.2.0">
  <enclaves>
    <enclave path={quoteattr(f"/vla_rl/{node.removeprefix('vla_rl_')}")}>
      <profiles>
        <profile ns="/" node={quoteattr(node)}>
{body}
        </profile>
      </profiles>
    </enclave>
  </enclaves>
</policy>
"""


def main(arguments: list[str] | None = None) -> int:
    """Write the files."""
    parser = argparse.ArgumentParser(
        prog="python -m real.security", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("robot", help="contract: a name of configs/robot, or a YAML file")
    parser.add_argument("folder", type=Path, help="where <node>.xml go")
    parser.add_argument("--subscribe", nargs="*", default=[], help="topics of the policy's devices, as /joy")
    options = parser.parse_args(arguments)
    try:
        nodes = rights_of(load_contract(options.robot))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    nodes["vla_rl_robot"].subscribe |= set(options.subscribe)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, rights in nodes.items():
        (options.folder / f"{name}.xml").write_text(policy_xml(options.robot, name, rights))
        print(options.folder / f"{name}.xml")
    return 0


if __name__ == "__main__":
    sys.exit(main())
