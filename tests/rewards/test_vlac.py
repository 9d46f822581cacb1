"""An environment that a critic rewards: only the critic's word counts in training, only the truth in evaluations."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from reach import CAMERA, Reach, Walk

from vla_rl.data.collect_demonstrations import demonstrations_of
from vla_rl.data.record import record
from vla_rl.errors import UserError
from vla_rl.rewards.vlac import JudgedEnv, VlacConfig
from vla_rl.rollout.collector import Collector
from vla_rl.rollout.evaluate import evaluate


class Endless(Reach):
    """``Reach`` that goes on after success."""

    def reset(self, *, seed=None, options=None):
        out = super().reset(seed=seed, options=options)
        mask = torch.ones(self.num_envs, dtype=torch.bool)
        if options and options.get("reset_mask") is not None:
            mask = torch.as_tensor(options["reset_mask"])
        if not hasattr(self, "reached"):
            self.reached = torch.zeros(self.num_envs, dtype=torch.bool)
        self.reached[mask] = False
        return out

    def step(self, actions):
        observation, _, terminated, _, _ = super().step(actions)
        first = terminated & ~self.reached
        self.reached |= terminated
        self.over = self.steps >= self.env_spec.max_episode_steps
        nothing = torch.zeros(self.num_envs, dtype=torch.bool)
        return observation, first.float(), nothing, self.over.clone(), {"success": self.reached.clone()}


class Eyes:
    """A critic by geometry: reads positions off the picture. ``wrong`` believes in whatever is at the left edge."""

    device = torch.device("cpu")

    def __init__(self, wrong: bool = False) -> None:
        self.notes = {"skip": 3, "threshold": 0.9, "image": [32, 32]}
        self.wrong, self.asked = wrong, 0

    def check_size(self, pictures):
        if list(pictures.shape[-2:]) != self.notes["image"]:
            raise UserError(f"pictures of {tuple(pictures.shape[-2:])}")

    def look(self, pictures):
        places = []
        for each in pictures:
            self.asked += 1
            points: list[float] = []
            for channel in (0, 1):
                bright = (each[channel] > 200).nonzero().float()
                # The point covers its goal once it is there.
                points += ((bright.mean(0) - 2) / 13 - 1).tolist() if len(bright) else points[:2]
            places.append(points)
        return torch.tensor(places).view(len(pictures), 1, 4)

    def _far(self, seen):
        here = seen[:, 0]
        if self.wrong:
            return (here[:, 0] + 1.1).abs()
        return (here[:, :2] - here[:, 2:]).norm(dim=1)

    def progress(self, first, second, tasks, reference=None):
        one, other = self._far(first), self._far(second)
        change = (one - other) / torch.maximum(one, other).clamp(min=0.05)
        return change.clamp(-1, 1), torch.full_like(change, 0.05)

    def done(self, seen, tasks, reference=None):
        return (self._far(seen) < 0.3).float()


def judged(rows=4, wrong=False, **settings):
    return JudgedEnv(Endless(rows, steps=25), Eyes(wrong), VlacConfig(**{"agree": 2} | settings))


def run(env, steps, policy=None):
    frames, episodes = [], []
    collector = Collector(
        env,
        policy or Walk(0.1),
        lambda e, r: 1000 + e,
        sink=lambda f, rows: frames.append(f),
        on_episode=episodes.append,
    )
    collector.begin()
    for _ in range(steps):
        collector.step()
    return torch.cat(frames), episodes


@pytest.mark.parametrize("late", [False, True])
def test_a_believed_end_is_rewarded_and_ends_the_episode(late):
    env = judged(late=late, shaping="none")
    frames, episodes = run(env, 120)
    ends = frames["terminated"] & ~frames["final"]
    assert ends.any() and (frames["reward"][ends] == 1).all()
    assert (frames["reward"][~ends] == 0).all(), "the simulator's own reward is not to be seen"
    assert sum(e.success for e in episodes) > 5
    found = env.metrics()
    assert found["false_done"] < 0.4 and found["believed"] > 0.5
    env.close()


def test_judged_only_every_few_steps():
    env = judged(rows=1, agree=100)
    run(env, 24)
    assert env.critic.asked == 1 + 8  # the beginning and every third step


def test_potential_pays_what_the_value_moves_and_no_more():
    env = judged(rows=1, agree=100, gamma=1.0, weight=1.0)
    frames, _ = run(env, 24)
    assert float(frames["reward"].sum()) == pytest.approx(float(env.track.value[0]), abs=1e-4)


@pytest.mark.parametrize(("skip", "span"), [(3, 1), (5, 1), (3, 3), (6, 3)])
def test_a_potential_discounted_as_the_learner_does_is_worth_where_it_ends(skip, span):
    """The learner adds rewards up over ``span`` steps and discounts from one such sum to the next."""
    env = judged(rows=1, agree=100, weight=1.0, skip=skip)
    env.discounted_by(0.9, span)
    steps = 24 - 24 % skip
    frames, _ = run(env, steps)
    worth = sum(0.9 ** (t // span) * float(r) for t, r in enumerate(frames["reward"]))
    assert worth == pytest.approx(0.9 ** (steps / span) * float(env.track.value[0]), abs=1e-4)
    assert env.env_spec.returns == (-2.0, 1.0)


@pytest.mark.parametrize("shaping", ["potential", "delta", "clip"])
def test_a_recorded_episode_is_paid_what_the_played_one_was(shaping):
    env = judged(rows=1, agree=100, skip=4, shaping=shaping)
    env.discounted_by(0.9, 1)
    observation, _ = env.reset(seed=[7])
    walk, pictures, paid = Walk(0.1), [env.look()[CAMERA][0]], []
    state, over = walk.initial_state(1), False
    while not over:
        output, state = walk.act(observation, state)
        observation, reward, terminated, truncated, _ = env.step(output["action"])
        pictures.append(env.look()[CAMERA][0])
        paid.append(reward[0])
        over = bool(terminated | truncated)
    assert torch.allclose(
        env.shaping_of(torch.stack(pictures), env.tasks[0], False), torch.stack(paid), atol=1e-5
    )
    assert env.shaping_key == CAMERA and judged(shaping="none").shaping_key is None


def test_demonstrations_are_paid_for_progress_too_or_refused(tmp_path):
    kept = []
    learner = SimpleNamespace(policy=SimpleNamespace(base=Walk()), add_demonstrations=kept.append)
    record(Reach(2), Walk(), 3, tmp_path / "seen", seed=5)
    config = OmegaConf.create({"path": str(tmp_path / "seen"), "episodes": 3})
    for env in (judged(rows=1, shaping="none"), judged(rows=1, weight=1.0)):
        env.discounted_by(0.9, 1)
        assert demonstrations_of(config, env, learner) == 3
    plain, shaped = (frames["reward"] for frames in kept)
    assert plain.sum() == 3 and (plain != shaped).sum() > 6
    info = tmp_path / "seen" / "meta" / "info.json"
    info.write_text(info.read_text().replace(CAMERA, "observation.images.other"))
    with pytest.raises(UserError, match=r"has no .*reward.shaping pays for progress"):
        demonstrations_of(config, judged(rows=1), learner)


def test_evaluations_count_the_truth_and_ask_no_critic():
    env = judged(wrong=True)
    run(env, 10)
    before = env.critic.asked
    with env.truth():
        result = evaluate(env, Walk(0.1), 8, 5)
    assert env.critic.asked == before
    plain = evaluate(Reach(4, steps=25), Walk(0.1), 8, 5)
    assert [e.success for e in result.episodes] == [e.success for e in plain.episodes]
    assert [e.steps for e in result.episodes] == [e.steps for e in plain.episodes]


class Left(Walk):
    """Goes to the left edge, where the wrong critic believes the goal to be."""

    def act(self, observation, state, *, deterministic=False):
        output, state = super().act(observation, state)
        output["action"] = torch.tensor([[-0.1, 0.0]]).expand(len(output["action"]), 2).clone()
        return output, state


def test_an_exploited_critic_stops_training():
    env = judged(wrong=True)
    run(env, 300, Left())
    assert env.halt is not None and "were none: the policy exploits it" in env.halt
    good = judged()
    run(good, 300)
    assert good.halt is None


@pytest.mark.parametrize("late", [False, True])
def test_what_was_taken_for_done_can_be_seen(late):
    env = judged(wrong=True, late=late, shaping="none")
    assert env.exhibits() == {}
    _, episodes = run(env, 200, Left())
    sheet = env.exhibits()["taken for done and not"]
    size, keep = env.env_spec.cameras[env.key][0], 8
    assert sheet.shape == (3, 2 * size, keep * size) and sum(not e.success for e in episodes) >= keep
    for began, taken in (part.chunk(2, dim=1) for part in sheet.chunk(keep, dim=2)):
        places = [env.critic.look(picture[None])[0, 0, 0] for picture in (began, taken)]
        assert places[1] <= -0.8 and places[1] <= places[0], "the left edge is what this critic believes in"
    env.close()


@pytest.mark.parametrize("late", [False, True])
def test_what_was_missed_can_be_seen(late):
    env = judged(late=late, shaping="none", threshold=2.0)
    _, episodes = run(env, 200)
    sheet = env.exhibits()["done and not taken for it"]
    keep = min(8, sum(e.success for e in episodes))
    assert keep > 4 and sheet.shape[2] == keep * env.env_spec.cameras[env.key][0]
    for began, missed in (part.chunk(2, dim=1) for part in sheet.chunk(keep, dim=2)):
        far = [float(env.critic._far(env.critic.look(picture[None]))) for picture in (began, missed)]
        assert far[1] < far[0], "the picture is one from when the goal had been reached"
    assert env.metrics()["missed"] == 1.0
    env.close()


def test_rows_do_not_know_each_other():
    alone, together = judged(rows=1), judged(rows=3)
    one, _ = run(alone, 20)
    many, _ = run(together, 20)
    first = [float(one["reward"][i]) for i in range(9)]
    assert first == pytest.approx([float(many["reward"][3 * i]) for i in range(9)], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"camera": "wrist"}, "reward.camera=wrist: Reach has the cameras " + CAMERA),
        ({"shaping": "potential "}, "choose from none, potential"),
        ({"skip": -1}, "reward.skip=-1 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(settings, says):
    with pytest.raises(UserError, match=says):
        judged(**settings)


def test_a_critic_without_a_threshold_is_refused():
    eyes = Eyes()
    eyes.notes["thresholds"] = {"go left": 1.01}
    with pytest.raises(UserError, match="never right often enough to set a threshold for 'go left'"):
        JudgedEnv(Endless(2), eyes, VlacConfig())
    assert JudgedEnv(Endless(2), eyes, VlacConfig(threshold=0.7)).thresholds["go left"] == 0.7
