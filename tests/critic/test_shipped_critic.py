"""The shipped critics on fresh episodes of the real simulator: values follow time, both ways, and the end is seen."""

import pytest
import torch

from sim.experts.metaworld import MetaWorldExpert
from sim.vector import make
from vla_rl.config import ROOT
from vla_rl.critic.metrics import voc
from vla_rl.critic.model import Critic
from vla_rl.critic.trajectories import read_trajectories
from vla_rl.data.record import record


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    out = tmp_path_factory.mktemp("drawer") / "episodes"
    settings = {"max_episode_steps": 150, "cameras": ["corner2"], "after_success": 5}
    env = make("sim.metaworld:MetaWorldEnv", ["drawer-open-v3"], 2, 0, **settings)
    try:
        record(env, MetaWorldExpert(env, noise=0.2), 2, out, seed=930_000)
    finally:
        env.close()
    return read_trajectories([out])


@pytest.mark.parametrize("name", ["vlac-nano", "vlac-keypoints"])
def test_values_follow_time(episodes, name):
    critic = Critic.load(ROOT / "assets" / name)
    for each in episodes:
        assert each.success
        until = each.pictures[: each.end + 1]
        forward, backward = (critic.judge(p, each.task) for p in (until, until.flip(0)))
        assert voc(forward.work) > 0.8 and voc(backward.work) < -0.5
        assert forward.value[-1] > 0.6
        with torch.no_grad():
            first, last = critic.look(each.pictures[[0, -1]])
        done = critic.done(torch.stack([first, last]), [each.task] * 2)
        assert done[0] < 0.3 < 0.7 < done[1]
