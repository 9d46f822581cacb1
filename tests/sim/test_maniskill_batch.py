"""The batched ManiSkill environment and rows joined from several; the GPU's own part is marked ``gpu``."""

import pytest
import torch

from sim.joined import JoinedEnv
from sim.maniskill_batch import ManiSkillBatchEnv, make
from sim.vector import make as make_processes
from vla_rl.checks.env import check_env
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE

ADAPTER = "sim.maniskill:ManiSkillEnv"
CAMERA = "observation.images.base"
TABLE = ["TablePushCube-v1", "TablePullCube-v1", "TableLiftCube-v1"]
SHORT = {"max_episode_steps": 5, "image_size": 64}


def one_row(**kwargs):
    return ManiSkillBatchEnv("TablePushCube-v1", 1, backend="physx_cpu", **kwargs)


def test_conformance_of_the_batch():
    check_env(lambda: one_row(**SHORT))


@pytest.mark.parametrize("control", ["ee", "joint"])
def test_it_equals_the_single_environment_step_for_step(control):
    batch, single = one_row(control=control), make_processes(ADAPTER, TABLE[0], 1, 0, control=control)
    try:
        low, high = (torch.tensor(b) for b in (single.env_spec.action_low, single.env_spec.action_high))
        assert batch.env_spec == single.env_spec
        seen, alone = batch.reset(seed=3)[0], single.reset(seed=3)[0]
        generator = torch.Generator().manual_seed(0)
        for _ in range(12):
            for key in (STATE, ENV_STATE):
                assert torch.allclose(seen[key], alone[key], atol=1e-6)
            action = low + (high - low) * torch.rand(1, len(low), generator=generator)
            seen, alone = batch.step(action)[0], single.step(action)[0]
        assert torch.equal(batch.look()[CAMERA], single.look()[CAMERA])
    finally:
        batch.close()
        single.close()


def joined():
    rows = [make_processes(ADAPTER, id, 2, 0, **SHORT) for id in TABLE[:2]]
    return JoinedEnv(rows, [0, 1, 0, 1])


def test_conformance_of_joined_rows():
    check_env(joined)


def test_joined_rows_equal_rows_made_together():
    parts, whole = joined(), make_processes(ADAPTER, TABLE[:2], 4, 0, **SHORT)
    try:
        assert parts.task_ids() == whole.task_ids()
        one, two = parts.reset(seed=9)[0], whole.reset(seed=9)[0]
        assert one["task"] == two["task"] and torch.equal(one[STATE], two[STATE])
        action = torch.tensor([[0.01, 0.0, -0.02, 0.04], [0.0, 0.02, 0.0, 0.0]]).repeat(2, 1)
        one, two = parts.step(action), whole.step(action)
        assert torch.equal(one[0][ENV_STATE], two[0][ENV_STATE]) and torch.equal(one[3], two[3])
        assert torch.equal(parts.look([3, 0])[CAMERA], whole.look([3, 0])[CAMERA])
    finally:
        parts.close()
        whole.close()


def test_backends_by_name():
    with pytest.raises(UserError, match="env.backend=gpu is not one of auto, cpu, cuda"):
        make("PushCube-v1", backend="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch sees no CUDA device"):
            make("PushCube-v1", backend="cuda")
    env = make("PushCube-v1", 2, 0, backend="cpu", cameras=[])
    assert env.num_envs == 2
    env.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device for physx_cuda")
def test_conformance_on_the_gpu():
    check_env(lambda: make(TABLE, 6, backend="cuda", **SHORT))
