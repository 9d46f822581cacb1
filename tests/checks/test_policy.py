"""The policy conformance suite passes a good policy and names each way of being a bad one."""

import pytest
import torch
from tensordict import TensorDict

from vla_rl.checks.policy import check_policy
from vla_rl.environment import EnvSpec
from vla_rl.policies.base import PolicySpec
from vla_rl.policies.open_loop import OpenLoop

ENV = EnvSpec(
    id="Table",
    state_dim=3,
    env_state_dim=0,
    action_low=(-1.0,) * 2,
    action_high=(1.0,) * 2,
    cameras={"observation.images.c": (4, 4)},
    tasks=("push", "pull"),
    max_episode_steps=10,
    rate_hz=20.0,
)


class Good:
    """Looks at every second step and remembers the mean of what it saw."""

    spec = PolicySpec(action_dim=2, image_keys=("observation.images.c",))

    def initial_state(self, batch_size):
        parts = {"step": torch.zeros(batch_size, dtype=torch.int64), "seen": torch.zeros(batch_size)}
        return TensorDict(parts, [batch_size])

    def needs_images(self, state):
        return state["step"] % 2 == 0

    def act(self, observation, state, *, deterministic=False):
        picture = observation["observation.images.c"].float().mean((1, 2, 3)) / 255
        seen = torch.where(self.needs_images(state), picture, state["seen"])
        action = observation["observation.state"][:, :2].tanh() + seen[:, None]
        if not deterministic:
            action = action + 0.1 * torch.randn_like(action)
        size = state.batch_size
        return TensorDict({"action": action}, size), TensorDict(
            {"step": state["step"] + 1, "seen": seen}, size
        )


class Chunked(Good):
    spec = PolicySpec(action_dim=2, chunk_length=3, image_keys=("observation.images.c",))

    def act(self, observation, state, *, deterministic=False):
        output, state = super().act(observation, state, deterministic=deterministic)
        return TensorDict({"action": output["action"][:, None].repeat(1, 3, 1)}, state.batch_size), state


def test_good_policies_pass():
    check_policy(Good(), ENV)
    check_policy(Chunked(), ENV)
    check_policy(OpenLoop(Chunked(), horizon=2, candidates=2), ENV)


def broken(change):
    class Bad(Good):
        def act(self, observation, state, *, deterministic=False):
            return change(super().act, observation, state, deterministic)

    return Bad()


def edit(**leaves):
    """A policy whose output leaf is changed by a function of it."""

    def change(act, observation, state, deterministic):
        output, state = act(observation, state, deterministic=deterministic)
        for key, function in leaves.items():
            output[key] = function(output[key])
        return output, state

    return change


def in_place(act, observation, state, deterministic):
    output, after = act(observation, state, deterministic=deterministic)
    state["step"].add_(1)
    return output, after


def writes_observation(act, observation, state, deterministic):
    observation["observation.state"].mul_(2)
    return act(observation, state, deterministic=deterministic)


def reads_all_images(act, observation, state, deterministic):
    output, after = act(observation, state, deterministic=deterministic)
    output["action"] = output["action"] + observation["observation.images.c"].float().mean((1, 2, 3))[:, None]
    return output, after


def mixes_rows(act, observation, state, deterministic):
    output, after = act(observation, state, deterministic=deterministic)
    output["action"] = output["action"] + observation["observation.state"].mean()
    return output, after


def loses_leaf(act, observation, state, deterministic):
    output, after = act(observation, state, deterministic=deterministic)
    return output, after.exclude("seen")


def own_generator():
    generator = torch.Generator().manual_seed(0)

    def change(act, observation, state, deterministic):
        output, after = act(observation, state, deterministic=deterministic)
        output["action"] = output["action"] + torch.randn(2, generator=generator)
        return output, after

    return change


def inference(act, observation, state, deterministic):
    with torch.inference_mode():
        return act(observation, state, deterministic=deterministic)


BAD = {
    "wrong width": (edit(action=lambda a: a[:, :1]), "action has shape"),
    "double": (edit(action=lambda a: a.double()), "float64, not float32"),
    "nan": (edit(action=lambda a: a * float("nan")), "not finite"),
    "state in place": (in_place, "changed the state it was given in place"),
    "observation in place": (writes_observation, "changed the observation in place"),
    "unasked images": (reads_all_images, "images of rows that needs_images did not name were read"),
    "rows mixed": (mixes_rows, "acts otherwise alone than in the batch"),
    "leaf lost": (loses_leaf, "state has leaves"),
    "hidden generator": (own_generator(), "memory outside the state"),
    "inference tensor": (inference, "inference tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_policies_are_named(name):
    change, message = BAD[name]
    with pytest.raises(AssertionError, match=message):
        check_policy(broken(change), ENV)


def test_hidden_episode_memory_is_found():
    class Hidden(Good):
        calls = 0

        def act(self, observation, state, *, deterministic=False):
            self.calls += 1
            output, state = super().act(observation, state, deterministic=deterministic)
            return TensorDict({"action": output["action"] + self.calls}, state.batch_size), state

    with pytest.raises(AssertionError, match="memory outside the state"):
        check_policy(Hidden(), ENV)


def test_looks_must_be_one_bool_per_row():
    class Loose(Good):
        def needs_images(self, state):
            return torch.tensor(True)

    with pytest.raises(AssertionError, match="needs_images gave"):
        check_policy(Loose(), ENV)
