"""colcon builds this ament package; nothing here is needed without a ROS installation."""

from glob import glob

from setuptools import setup

NAME = "vla_rl_robot"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.py")),
    ],
    install_requires=["setuptools"],
    entry_points={"console_scripts": [f"safety = {NAME}.safety:main", f"policy = {NAME}.policy:main"]},
)
