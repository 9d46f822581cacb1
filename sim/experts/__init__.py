"""Scripted experts, as policies; ``expert`` finds the one for an environment."""

from __future__ import annotations

from typing import Any

from sim.experts.base import Expert
from vla_rl.environment import VlaVectorEnv
from vla_rl.errors import UserError


def expert(env: VlaVectorEnv, **settings: Any) -> Expert:
    """The scripted expert of the simulator and the tasks that ``env`` plays.

    Args:
        env: the environment it is to act in.
        **settings: of ``sim.experts.base.Expert``: ``noise``, ``correlation``, ``noisy_dims``.

    Raises:
        UserError: a task without expert.
    """
    from sim import maniskill, metaworld, robosuite

    ids = set(env.task_ids())
    if ids <= set(metaworld.INSTRUCTIONS):
        from sim.experts.metaworld import MetaWorldExpert

        return MetaWorldExpert(env, **settings)
    if ids in ({"ArmLift"}, {"sim_arm"}):  # in lockstep, over ROS 2
        from sim.experts.sim_arm import SimArmExpert

        return SimArmExpert(env, **settings)
    if ids <= set(robosuite.TASKS):
        from sim.experts.robosuite import RobosuiteExpert

        return RobosuiteExpert(env, **settings)
    if ids <= set(maniskill.INSTRUCTIONS):
        from sim.experts.maniskill import ManiSkillExpert

        return ManiSkillExpert(env, **settings)
    raise UserError(
        f"no scripted expert for {', '.join(sorted(ids))}: there are experts for all of Meta-World, for Lift and Can "
        "of robosuite, for the simulated arm and for some ManiSkill tasks; name another policy"
    )
