"""The arm: ROS 2, safety, interventions and sessions."""
