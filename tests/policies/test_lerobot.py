"""LeRobot policies as bases: conformance, relocation, history, noise, and every broken folder."""

import json
import shutil

import pytest
import tiny
import torch

from vla_rl.checks.policy import check_policy
from vla_rl.errors import UserError
from vla_rl.policies.capabilities import FromNoise
from vla_rl.policies.lerobot import LeRobotPolicy
from vla_rl.policies.open_loop import OpenLoop


def observe(rows, size=64, env_state=0):
    return {
        "observation.state": torch.randn(rows, 5),
        "observation.environment_state": torch.randn(rows, env_state),
        "observation.images.base": torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8),
        "task": [tiny.TASKS[i % 3] for i in range(rows)],
    }


def seeded(policy, observation, state):
    torch.manual_seed(0)
    return policy.act(observation, state)[0]["action"]


def test_smolvla_conforms_alone_and_open_loop(vla_folder):
    policy = LeRobotPolicy(vla_folder)
    assert policy.spec.language and policy.spec.chunk_length == 4
    check_policy(policy, tiny.env_spec(), steps=2)
    check_policy(OpenLoop(policy, horizon=2, candidates=2), tiny.env_spec(), steps=5)


def test_act_on_environment_state_conforms(act_folder):
    policy = LeRobotPolicy(act_folder)
    assert policy.spec.image_keys == () and not policy.spec.language
    assert set(policy.spec.state_keys) == {"observation.state", "observation.environment_state"}
    check_policy(policy, tiny.env_spec(env_state_dim=4), steps=2)
    check_policy(OpenLoop(policy, horizon=3), tiny.env_spec(env_state_dim=4), steps=7)


def test_diffusion_conforms(diffusion_folder):
    policy = LeRobotPolicy(diffusion_folder)
    assert policy.history == 2 and policy.spec.chunk_length == 4
    check_policy(policy, tiny.env_spec(), steps=2)
    check_policy(OpenLoop(policy, horizon=3), tiny.env_spec(), steps=5)


def test_matches_lerobots_own_select_action(diffusion_folder):
    """Our explicit history gives what LeRobot's hidden queues give, over several chunks."""
    policy = LeRobotPolicy(diffusion_folder)
    ours = OpenLoop(policy)
    state, theirs = ours.initial_state(2), policy.model
    steps = [observe(2) for _ in range(10)]
    expected, got = [], []
    torch.manual_seed(3)
    for step in steps:
        action, state = ours.act(step, state)
        got.append(action["action"])
    theirs.reset()
    torch.manual_seed(3)
    for step in steps:
        batch = {k: step[k].float() for k in policy.spec.state_keys}
        batch["observation.images.base"] = step["observation.images.base"].float() / 255
        with torch.no_grad():
            expected.append(policy.after(theirs.select_action(policy.before(batch | {"task": step["task"]}))))
    theirs.reset()
    torch.testing.assert_close(torch.stack(got), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_history_is_looked_at_just_before_the_next_chunk(diffusion_folder):
    loop = OpenLoop(LeRobotPolicy(diffusion_folder), horizon=4)
    state, looks = loop.initial_state(1), []
    for _ in range(9):
        looks.append(bool(loop.needs_images(state)))
        state = loop.act(observe(1), state)[1]
    assert looks == [True, False, False, True, True, False, False, True, True]


def test_a_moved_folder_acts_the_same(vla_folder, tmp_path, monkeypatch):
    observation = observe(2)
    first = seeded(LeRobotPolicy(vla_folder), observation, LeRobotPolicy(vla_folder).initial_state(2))
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(vla_folder, moved)
    before = {f.name: f.read_bytes() for f in moved.glob("*.json")}
    for file in moved.glob("*.json"):
        assert str(vla_folder) not in file.read_text()
    monkeypatch.chdir(moved.parent)
    policy = LeRobotPolicy("./renamed")
    assert torch.equal(seeded(policy, observation, policy.initial_state(2)), first)
    assert before == {f.name: f.read_bytes() for f in moved.glob("*.json")}, "loading must not write"


def test_the_sentence_reaches_the_model(vla_folder):
    policy = LeRobotPolicy(vla_folder)
    observation = observe(1)
    actions = [
        seeded(policy, observation | {"task": [task]}, policy.initial_state(1))
        for task in (tiny.TASKS[0], tiny.TASKS[1])
    ]
    assert not torch.allclose(*actions)


def test_another_image_size_is_resized_by_smolvla_and_refused_by_diffusion(vla_folder, diffusion_folder):
    policy = LeRobotPolicy(vla_folder)
    assert policy.act(observe(1, size=80), policy.initial_state(1))[0]["action"].shape == (1, 4, 3)
    policy = LeRobotPolicy(diffusion_folder)
    with pytest.raises(UserError, match=r"observation.images.base is \(3, 80, 80\).*env.cameras"):
        policy.act(observe(1, size=80), policy.initial_state(1))


def test_from_noise(vla_folder, act_folder, diffusion_folder):
    for folder in (vla_folder, diffusion_folder):
        policy = LeRobotPolicy(folder)
        assert isinstance(policy, FromNoise) and policy.noise_shape is not None
        observation, noise = observe(2), torch.randn(2, *policy.noise_shape)
        chunk = policy.act_from_noise(observation, policy.initial_state(2), noise)[0]["action"]
        assert torch.equal(
            chunk, policy.act_from_noise(observation, policy.initial_state(2), noise)[0]["action"]
        )
        other = policy.act_from_noise(observation, policy.initial_state(2), -noise)[0]["action"]
        assert not torch.allclose(chunk, other)
        with pytest.raises(UserError, match="noise has shape"):
            policy.act_from_noise(observation, policy.initial_state(2), noise[:, :1])
    policy = LeRobotPolicy(act_folder)
    with pytest.raises(UserError, match="act does not act from a given noise"):
        policy.act_from_noise(observe(1, env_state=4), policy.initial_state(1), torch.zeros(1, 6, 3))


def test_flow_steps(vla_folder, act_folder):
    assert LeRobotPolicy(vla_folder, flow_steps=1).config.num_steps == 1
    with pytest.raises(UserError, match="no flow"):
        LeRobotPolicy(act_folder, flow_steps=3)
    with pytest.raises(UserError, match="at least 1"):
        LeRobotPolicy(vla_folder, flow_steps=0)


def test_actions_can_enter_a_graph(vla_folder):
    policy = LeRobotPolicy(vla_folder)
    action = policy.act(observe(1), policy.initial_state(1))[0]["action"]
    layer = torch.nn.Linear(3, 1)
    layer(action).sum().backward()
    assert layer.weight.grad is not None


def break_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop_weight(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.action_out_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def change_config(**changes):
    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


BROKEN = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        r"nano is not a LeRobot policy: it has no config.json",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model.safetensors is missing: copy"),
    "no processor": (
        lambda f: (f / "policy_preprocessor.json").unlink(),
        r"policy_preprocessor.json is missing",
    ),
    "no vlm": (lambda f: shutil.rmtree(f / "vlm"), r"vlm/config.json is missing"),
    "truncated": (break_weights, r"model.safetensors is truncated or damaged"),
    "lacking weight": (drop_weight, r"lacks 1 weights of smolvla \(first: model.action_out_proj.weight\)"),
    "other size": (change_config(expert_width_multiplier=0.5), r"does not load as smolvla"),
    "other version": (change_config(a_new_field=1), r"config.json cannot be read: .*a_new_field"),
    "not json": (lambda f: (f / "config.json").write_text("{"), r"config.json cannot be read"),
    "no statistics": (
        lambda f: [p.unlink() for p in f.glob("*normalizer*")],
        r"processors in .* do not load",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folder_is_one_line(vla_folder, tmp_path, name):
    folder = tmp_path / "nano"
    shutil.copytree(vla_folder, folder)
    breaks, message = BROKEN[name]
    breaks(folder)
    with pytest.raises(UserError, match=message) as caught:
        LeRobotPolicy(folder)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_missing_key(vla_folder):
    with pytest.raises(UserError, match="assets/none is not there"):
        LeRobotPolicy("assets/none")
    policy = LeRobotPolicy(vla_folder)
    observation = observe(1)
    del observation["observation.images.base"]
    with pytest.raises(
        UserError, match="needs observation.images.base; the observation has observation.state"
    ):
        policy.act(observation, policy.initial_state(1))
    with pytest.raises(UserError, match=r"observation.state has shape \(4,\)"):
        policy.act(observe(1) | {"observation.state": torch.zeros(1, 4)}, policy.initial_state(1))
