"""A critic as a LeRobot reward model, saved and loaded by LeRobot, and back as a critic."""

import pytest
import torch
from films import TASKS, film, untrained
from lerobot.rewards.factory import get_reward_model_class, make_reward_model_config

from vla_rl.critic.lerobot_reward import RewardModelCritic
from vla_rl.critic.model import Critic
from vla_rl.critic.modeling_vlac import VlacRewardModel
from vla_rl.critic.value import step_value
from vla_rl.errors import UserError

KEY = "observation.images.base"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("critic"))


@pytest.fixture(scope="module")
def model(folder):
    return VlacRewardModel(make_reward_model_config("vlac", critic=str(folder), device="cpu"))


def test_the_reward_is_the_chance_of_done(folder, model):
    pictures = film(1).pictures[:4]
    critic = Critic.load(folder)
    with torch.no_grad():
        wanted = critic.done(critic.look(pictures), [TASKS[0]] * 4)
    assert torch.allclose(model.compute_reward({KEY: pictures, "task": TASKS[0]}), wanted, atol=1e-6)
    assert torch.allclose(
        model.compute_reward({KEY: pictures.float() / 255, "task": [TASKS[0]] * 4}), wanted, atol=1e-4
    )


def test_lerobot_saves_and_loads_it_and_it_judges_again(model, tmp_path):
    model.save_pretrained(tmp_path / "reward")
    assert get_reward_model_class("vlac") is VlacRewardModel
    again = RewardModelCritic.load(tmp_path / "reward")
    pictures = film(1).pictures
    tasks = [TASKS[0]] * 3
    score = again.done(pictures[:6], tasks * 2)
    assert torch.allclose(score, model.compute_reward({KEY: pictures[:6], "task": tasks * 2}), atol=1e-5)
    change, deviation = again.progress(again.look(pictures[:3]), again.look(pictures[3:6]), tasks)
    # Progress is the one that leads from the first score to the second.
    assert torch.allclose(step_value(score[:3], change), score[3:], atol=1e-4)
    assert (deviation == 0.1).all()


def test_what_does_not_fit(model, tmp_path):
    pictures = film(1).pictures[:1]
    with pytest.raises(UserError, match="a critic needs the instruction"):
        model.compute_reward({KEY: pictures})
    with pytest.raises(UserError, match="no pictures .one camera. in the batch; it has: none"):
        model.compute_reward({"task": "go"})
    with pytest.raises(UserError, match="float and beyond 1"):
        model.compute_reward({KEY: pictures.float(), "task": "go"})
    with pytest.raises(UserError, match="takes no reference"):
        RewardModelCritic(model, KEY).refer(film(1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="does not load as a LeRobot reward model"):
        RewardModelCritic.load(tmp_path / "empty")
