"""vla-rl bench: measurements, each made by one command.

usage: vla-rl bench collector [key=value ...]
       vla-rl bench residual | diffusion | data_study | distillation | token_ppo | dppo_reference | decoding | encoders | critic | vlac | filtering | rpd | sync [key=value ...]
       vla-rl bench all | learner | ppo | replay | simulators | ray | soak | scaling | profile | first_step [key=value ...]
       vla-rl bench control | faults | sim_arm | hil | hil_robot [key=value ...]

  collector   steps per second with the VLA in the loop, cameras rendered only when it looks, against the stock
              simulator rendering every step; and what the collector itself costs
  residual    base, residual RL, RLPD and filtered BC on many tasks at equal environment steps: fills
              benchmarks/results/residual/README.md; finished runs are kept, so it can be stopped and continued
  diffusion   DPPO, flow-DPPO, DSRL and residual RL on diffusion and flow bases, the same way
  data_study  a VLA cloned from the demonstrations of a noisy expert, of Gaussian PPO and of diffusion RL
  distillation   the specialists of data_study into one token VLA: distillation by several objectives, cloning, PPO
  token_ppo   token PPO on small token VLAs that see pictures, from a few noisy demonstrations and sparse success
  dppo_reference   DPPO's updates against the authors' structure: equal losses, updates per second
  rpd         PPO that is drawn to a teacher against PPO alone, from the same poor student
  decoding    a token VLA's actions per second against transformers' generate() per sample, equal words
  encoders    how well each image encoder of the algorithms says where things are in scenes it has not seen
  critic      pairs of pictures judged per second against transformers' generate() per pair, equal answers
  vlac        DSRL with a critic as its only reward and end, with and without guards, against the true reward
  filtering   clones of a data set with bad episodes in it, against clones of what a critic leaves of it
  sync        bytes per update that bring a VLA's weights to whoever acts with them, against all of its weights
  all         every comparison with what people use today, in one table and one picture: the next six, collector,
              dppo_reference and sync; what has been measured is kept
  learner     residual TD3's updates per second against Stable-Baselines3's TD3, TorchRL's and LeRobot's SAC
  ppo         PPO's updates on a Gaussian policy against rsl_rl's
  replay      batches of two cameras, sampled and shifted, against LeRobot's and TorchRL's replay buffers
  simulators  control steps per second against robosuite as it comes
  ray         training with collectors and a learner in processes of their own against one process
  soak        two hours of training on Ray while a process is killed every minute: what is lost, counted twice, or grows
  scaling     what each item of distributed training costs here, and which part of a larger layout is full first
  profile     flame graphs of trainings that run, and the share of each part
  first_step  seconds from the start of vla-rl train to the first update
  control     on the simulated arm over DDS: the command stream's periods while a VLA infers beside it, how soon a
              stop stops and a stale stream holds
  faults      a recorded session on the simulated arm, disturbed over 200 times: limits exceeded, steps lost, what did
              not come back
  sim_arm     a policy trained in simulation, then the same policy over DDS in real time: success of both
  hil_robot   the same on the simulated arm over DDS in real time, the learner in its own process; then the policy alone
  hil         episodes that a poor policy needs to become a good one, with and without a scripted teleoperator

Examples:
  vla-rl bench collector
  vla-rl bench residual only=[lift,reach] seeds=[0]
"""

from __future__ import annotations

import importlib

BENCHES = {
    "collector": "vla_rl.bench.collector",
    "residual": "vla_rl.bench.residual",
    "diffusion": "vla_rl.bench.diffusion",
    "data_study": "vla_rl.bench.data_study",
    "dppo_reference": "vla_rl.bench.dppo_reference",
    "distillation": "vla_rl.bench.distillation",
    "token_ppo": "vla_rl.bench.token_ppo",
    "rpd": "vla_rl.bench.rpd",
    "decoding": "vla_rl.bench.decoding",
    "encoders": "vla_rl.bench.encoders",
    "critic": "vla_rl.bench.critic",
    "vlac": "vla_rl.bench.vlac",
    "filtering": "vla_rl.bench.filtering",
    "sync": "vla_rl.bench.sync",
    "learner": "vla_rl.bench.learner",
    "ppo": "vla_rl.bench.ppo",
    "replay": "vla_rl.bench.replay",
    "simulators": "vla_rl.bench.simulators",
    "ray": "vla_rl.bench.ray",
    "soak": "vla_rl.bench.soak",
    "scaling": "vla_rl.bench.scaling",
    "profile": "vla_rl.bench.profile",
    "first_step": "vla_rl.bench.first_step",
    "all": "vla_rl.bench.all",
    "control": "real.bench.control",  # by name: this package may not import it
    "faults": "real.bench.faults",
    "sim_arm": "real.bench.sim_arm",
    "hil": "real.bench.hil",
    "hil_robot": "real.bench.hil_robot",
}


def run(overrides: list[str]) -> int:
    """Start the benchmark that the first word names."""
    from vla_rl.config import nearest
    from vla_rl.errors import UserError

    if not overrides or overrides[0] not in BENCHES:
        name = overrides[0] if overrides else ""
        raise UserError(f"unknown benchmark '{name}': {nearest(name, list(BENCHES))}")
    return importlib.import_module(BENCHES[overrides[0]]).run(overrides[1:])
