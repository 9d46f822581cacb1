"""Each row is decided by the specialist of its instruction, which remembers nothing of other rows."""

import pytest
import tiny
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from vla_rl.checks.policy import check_policy
from vla_rl.errors import UserError
from vla_rl.policies.base import PolicySpec
from vla_rl.policies.load import load_base, load_policy, load_teacher
from vla_rl.policies.open_loop import OpenLoop
from vla_rl.policies.specialists import Specialists


class Counter:
    """Gives its sign times how many chunks it has given in this row."""

    def __init__(self, sign, length=3, looks=False, action_dim=2):
        cameras = ("observation.images.c",) if looks else ()
        self.spec = PolicySpec(action_dim, length, image_keys=cameras)
        self.sign, self.asked = sign, []

    def initial_state(self, batch_size):
        return TensorDict({"count": torch.zeros(batch_size)}, [batch_size])

    def needs_images(self, state):
        return torch.full((state.batch_size[0],), bool(self.spec.image_keys))

    def act(self, observation, state, *, deterministic=False):
        self.asked.append(list(observation["task"]))
        count = state["count"] + 1
        shape = (len(count), max(1, self.spec.chunk_length), self.spec.action_dim)
        action = (self.sign * count)[:, None, None].expand(shape)
        action = action if self.spec.chunk_length else action[:, 0]
        return TensorDict({"action": action}, [len(count)]), TensorDict({"count": count}, [len(count)])


def observe(*tasks):
    pictures = torch.zeros(len(tasks), 3, 2, 2, dtype=torch.uint8)
    return {
        "observation.state": torch.zeros(len(tasks), 1),
        "observation.images.c": pictures,
        "task": list(tasks),
    }


def test_rows_go_to_the_specialist_of_their_instruction():
    push, pull = Counter(1), Counter(-1, length=2)
    both = Specialists({"push": push, "pull": pull})
    assert both.spec.chunk_length == 2, "the shortest chunk counts"
    state = both.initial_state(3)
    first, state = both.act(observe("pull", "push", "pull"), state)
    second, _ = both.act(observe("pull", "push", "pull"), state)
    assert first["action"][:, :, 0].tolist() == [[-1, -1], [1, 1], [-1, -1]]
    assert second["action"][:, 0, 0].tolist() == [-2, 2, -2]
    assert push.asked == [["push"]] * 2 and pull.asked == [["pull", "pull"]] * 2


def test_a_row_that_is_given_another_task_begins_anew_there():
    both = Specialists({"push": Counter(1), "pull": Counter(-1)})
    state = both.initial_state(2)
    for tasks in (("push", "pull"), ("push", "pull"), ("pull", "pull"), ("push", "pull")):
        output, state = both.act(observe(*tasks), state)
    assert output["action"][:, 0, 0].tolist() == [1, -4]


def test_single_actions_and_chunks_under_way():
    both = Specialists({"push": OpenLoop(Counter(1), 3), "pull": OpenLoop(Counter(-1), 2)})
    assert both.spec.chunk_length == 0
    state, seen = both.initial_state(2), []
    for _ in range(4):
        output, state = both.act(observe("push", "pull"), state)
        seen.append(output["action"][:, 0].tolist())
    assert seen == [[1, -1], [1, -1], [1, -2], [2, -2]]


def test_cameras_are_rendered_only_where_the_specialist_looks():
    both = Specialists({"push": Counter(1, looks=True), "pull": Counter(-1)})
    state = both.initial_state(2)
    assert both.needs_images(state).tolist() == [True, True], "whose row it is shows at its first step"
    _, state = both.act(observe("push", "pull"), state)
    assert both.needs_images(state).tolist() == [True, False]


def test_specialists_that_do_not_go_together():
    with pytest.raises(UserError, match="no policy"):
        Specialists({})
    with pytest.raises(UserError, match="action dimension"):
        Specialists({"push": Counter(1), "pull": Counter(1, action_dim=3)})
    with pytest.raises(UserError, match="single or chunk"):
        Specialists({"push": Counter(1), "pull": Counter(1, length=0)})
    both = Specialists({"push the cube": Counter(1), "pull the cube": Counter(1)})
    with pytest.raises(UserError, match="push a cube.*did you mean push the cube"):
        both.act(observe("push a cube"), both.initial_state(1))


class Env:
    """Only what loading looks at."""

    env_spec, num_envs = tiny.env_spec(), 3


def named(paths, **more):
    return OmegaConf.create({"paths": paths, "horizon": 3, "device": "cpu", "flow_steps": 2, **more})


def test_real_policies_by_path_keep_the_contract(vla_folder, dit_flow_folder):
    folders = [str(vla_folder), str(dit_flow_folder), str(vla_folder)]
    config = named(dict(zip(tiny.TASKS, folders, strict=True)))
    policy = load_policy(config, Env())
    check_policy(policy, Env.env_spec, steps=4)
    alone = load_base(OmegaConf.create({"path": folders[1], "horizon": 3, "device": "cpu", "flow_steps": 2}))
    observation = {
        "observation.state": torch.randn(1, 5),
        "observation.images.base": torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8),
        "task": [tiny.TASKS[1]],
    }
    torch.manual_seed(1)  # a flow begins from noise
    expected, _ = alone.act(observation, alone.initial_state(1), deterministic=True)
    torch.manual_seed(1)
    found, _ = policy.act(observation, policy.initial_state(1), deterministic=True)
    assert torch.equal(found["action"], expected["action"])
    assert load_teacher(config, Env.env_spec).spec.chunk_length == 4, (
        "a teacher gives its chunks: the shortest"
    )


def test_paths_that_do_not_fit_are_named(vla_folder):
    folder = str(vla_folder)
    with pytest.raises(UserError, match="no policy for the task 'pull the cube back'"):
        load_policy(named({tiny.TASKS[0]: folder, tiny.TASKS[1]: folder}), Env())
    with pytest.raises(UserError, match="no task lift a cube.*lift the cube"):
        load_policy(named({"lift a cube": folder}), Env())
    with pytest.raises(UserError, match="not both"):
        load_policy(named({tiny.TASKS[0]: folder}, path=folder), Env())
    with pytest.raises(
        UserError, match=r"specialist for 'push the cube to the goal': .*data/nothing is not there"
    ):
        load_teacher(named({task: "data/nothing" for task in tiny.TASKS}), Env.env_spec)


def test_environment_ids_name_their_instructions():
    from dataclasses import replace

    spec = replace(tiny.env_spec(), id="Push-v1+Lift-v1+Pull-v1")
    assert [spec.instruction_of(i) for i in ("Lift-v1", tiny.TASKS[0])] == [tiny.TASKS[1], tiny.TASKS[0]]
    with pytest.raises(UserError, match="Lift-v1"):
        spec.instruction_of("Lift-v2")


def test_the_command_line_names_them():
    from vla_rl.config import compose

    given = "{button-press-topdown-v3:runs/a,press a button:runs/b}"
    evaluated = compose("eval", ["env=metaworld", "policy=specialists", f"policy.paths={given}"])
    assert dict(evaluated.policy.paths) == {"button-press-topdown-v3": "runs/a", "press a button": "runs/b"}
    trained = compose("train", ["algorithm=opd", f"algorithm.teacher.paths={given}"])
    assert dict(trained.algorithm.teacher.paths) == dict(evaluated.policy.paths)


@pytest.mark.parametrize("algorithm", ["opd", "rpd"])
def test_a_single_teacher_reaches_its_learner_as_the_command_line_gives_it(algorithm, vla_folder):
    from omegaconf import OmegaConf

    from vla_rl.config import compose

    config = compose("train", [f"algorithm={algorithm}", f"algorithm.teacher.path={vla_folder}"])
    plain = OmegaConf.to_container(config.algorithm.teacher)  # what config.build hands over
    assert load_teacher(plain, Env.env_spec).spec.action_dim == Env.env_spec.action_dim
