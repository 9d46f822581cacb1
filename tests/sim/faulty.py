"""Meta-World with a fault: an action whose gripper component is above 0.9 crashes, hangs or raises."""

import dataclasses
import os
import signal
import time

from sim.metaworld import MetaWorldEnv
from vla_rl.errors import UserError


class FaultyEnv(MetaWorldEnv):
    def __init__(self, id, fault, **kwargs):
        super().__init__(id, **kwargs)
        self.fault = fault

    def step(self, action):
        if action[3] > 0.9:
            if self.fault == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.fault == "hang":
                time.sleep(10_000)
            raise UserError("the gripper must not be shut")
        return super().step(action)


class NamedEnv(MetaWorldEnv):
    """Its instruction is what the environment variable says where the row is built."""

    def __init__(self, id, **kwargs):
        super().__init__(id, **kwargs)
        self.spec = dataclasses.replace(self.spec, tasks=(os.environ["VLA_RL_WORD"],))
