"""The simulated arm; every parameter of the node is an argument: ros2 launch vla_rl_sim_arm sim_arm.launch.py latency:=0.05."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from vla_rl_sim_arm.node import PARAMETERS


def generate_launch_description():
    """One node, its parameters declared as arguments with their descriptions."""
    arguments = [
        DeclareLaunchArgument(name, default_value=str(default), description=words)
        for name, (default, words) in PARAMETERS.items()
    ]
    parameters = {
        name: ParameterValue(LaunchConfiguration(name), value_type=type(default))
        for name, (default, _) in PARAMETERS.items()
    }
    node = Node(package="vla_rl_sim_arm", executable="sim_arm", parameters=[parameters], output="screen")
    return LaunchDescription([*arguments, node])
