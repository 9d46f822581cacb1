"""Safety and policy of one robot: ros2 launch vla_rl_robot robot.launch.py robot:=ur5e policy:=policy.path=runs/NAME.

Then: ros2 lifecycle set /vla_rl_safety_lifecycle configure, activate; the same for /vla_rl_policy.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

ARGUMENTS = {
    "robot": ("sim_arm", "contract: a name of configs/robot, or a YAML file"),
    "policy": ("policy=expert", "settings of vla-rl robot run, separated by spaces"),
}


def nodes(context):
    """Two lifecycle nodes, neither of them active."""
    robot, policy = (LaunchConfiguration(name).perform(context) for name in ARGUMENTS)
    shared = {"package": "vla_rl_robot", "namespace": "", "output": "screen"}
    overrides = [f"env.robot={robot}", *policy.split()]
    return [
        LifecycleNode(
            executable="safety", name="vla_rl_safety_lifecycle", parameters=[{"robot": robot}], **shared
        ),
        LifecycleNode(
            executable="policy", name="vla_rl_policy", parameters=[{"overrides": overrides}], **shared
        ),
    ]


def generate_launch_description():
    """Arguments with their descriptions, and the nodes."""
    declared = [DeclareLaunchArgument(n, default_value=v, description=w) for n, (v, w) in ARGUMENTS.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=nodes)])
