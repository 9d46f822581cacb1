"""Observation keys, LeRobot's own spelling, so that datasets and policies need no renaming."""

STATE = "observation.state"
"""Proprioception [B, S] float32, what a real robot also has."""

ENV_STATE = "observation.environment_state"
"""Privileged simulator state [B, E] float32 (object and goal poses); absent on a robot."""

IMAGES = "observation.images."
"""Prefix of a camera: ``observation.images.<camera>`` [B, 3, H, W] uint8."""

TASK = "task"
"""List of B instructions."""

INSTRUCTION = "observation.instruction"
"""The task as a vector [B, 16] float32 (``vla_rl.nn.language``), for the learner's networks."""

ELAPSED = "elapsed"
"""Control steps of the episode so far [B, 1] float32: of a critic's observation where a time limit ends episodes."""

ACTION = "action"

INTERVENTION = "is_intervention"
"""Bool [1] per recorded step: somebody had taken over (rosetta's and LeRobot's spelling)."""


def image_key(camera: str) -> str:
    """LeRobot feature key of a camera's name."""
    return camera if camera.startswith(IMAGES) else IMAGES + camera
