"""A mirror map against the simulators: the mirrored episode is the one the simulator plays from the mirrored start."""

import math
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from vla_rl.data.mirror import Mirror, load_mirror
from vla_rl.errors import UserError
from vla_rl.keys import ACTION, ENV_STATE, STATE, image_key
from vla_rl.pretrain_data import Samples

M = np.diag([1.0, -1.0, 1.0])


def only(**vectors):
    return Mirror({"axis": "y", "vectors": vectors, "words": {"left": "right"}})


def test_rotations_are_the_reflected_ones():
    mirror = only(q=["quaternion_wxyz"], x=["quaternion_xyzw"], r=["rotation"])
    for rotation in Rotation.random(20, random_state=0):
        wanted = Rotation.from_matrix(M @ rotation.as_matrix() @ M)
        wxyz = mirror.vector("q", torch.tensor(rotation.as_quat(scalar_first=True))).numpy()
        found = [
            Rotation.from_quat(wxyz, scalar_first=True),
            Rotation.from_quat(mirror.vector("x", torch.tensor(rotation.as_quat())).numpy()),
            Rotation.from_rotvec(mirror.vector("r", torch.tensor(rotation.as_rotvec())).numpy()),
        ]
        for one in found:
            np.testing.assert_allclose(one.as_matrix(), wanted.as_matrix(), atol=1e-6)


@pytest.mark.parametrize("name", ["table", "maniskill_goal", "sim_arm", "metaworld"])
def test_twice_is_nothing(name):
    mirror = load_mirror(name)
    for key, rule in mirror.rules.items():
        values = torch.randn(5, len(rule[0]))
        torch.testing.assert_close(mirror.vector(key, mirror.vector(key, values)), values)


def test_words():
    mirror = only(a=["vector"])
    text = "Left of the bowl, not right; leftover"
    assert mirror.task(text) == "Right of the bowl, not left; leftover"
    assert mirror.task(mirror.task(text)) == text


def rollout(env, actions):
    """Vectors of every step."""
    seen = []
    for action in actions:
        observation = env.step(action)[0]
        seen.append((observation[STATE], observation[ENV_STATE]))
    return seen


@pytest.mark.parametrize(
    ("name", "id", "camera"),
    [("table", "TablePushCube-v1", "front"), ("maniskill_goal", "PullCube-v1", "wide")],
)
def test_maniskill_plays_the_mirrored_episode(name, id, camera):
    import sapien

    from sim.maniskill import ManiSkillEnv

    mirror = load_mirror(name)
    env = ManiSkillEnv(id, image_size=64, cameras=(camera,))
    mirror.check({STATE: [env.spec.state_dim], ENV_STATE: [env.spec.env_state_dim], ACTION: [4]})
    env.reset(3)
    cube, qpos = env.env.obj._objs[0], env.robot.get_qpos()
    scene = env.env.get_state_dict()
    # Down to the table before the cube and against it, a little askew.
    towards = cube.pose.p - [0.08, 0, 0] - env.env.agent.tcp._objs[0].entity_pose.p
    actions = np.zeros((40, 4), np.float32)
    actions[:25, :3] = towards / 25
    actions[25:, :3] = [0.008, 0.001, 0]
    picture, seen = env.look()[image_key(camera)], rollout(env, actions)

    env.reset(3)
    env.env.set_state_dict(scene)
    pose = cube.pose
    flipped = mirror.vector(STATE, torch.tensor([*qpos, *pose.p, *pose.q]).float()).numpy()
    env.robot.set_qpos(flipped[:9])
    env.ik.reset(flipped[:9])
    env.target = flipped[:7].astype(np.float64)
    cube.set_pose(sapien.Pose(flipped[9:12], flipped[12:]))
    if name == "maniskill_goal":
        goal = env.env.goal_region._objs[0]
        goal.set_pose(sapien.Pose(goal.pose.p * [1, -1, 1], goal.pose.q))
    other = env.look()[image_key(camera)]
    theirs = rollout(env, mirror.vector(ACTION, torch.tensor(actions)).numpy())
    env.close()
    where = slice(9, 12) if name == "table" else slice(12, 15)
    moved = np.abs(seen[-1][1][where] - seen[0][1][where]).max()
    assert moved > 0.02, "the cube was never touched: the comparison says nothing of contacts"
    for (state, environment), (their_state, their_environment) in zip(seen, theirs, strict=True):
        wanted = mirror.vector(STATE, torch.as_tensor(state)).numpy()
        np.testing.assert_allclose(their_state[:12], wanted[:12], atol=3e-3)
        assert abs(np.dot(their_state[12:], wanted[12:])) > 0.9999
        wanted = mirror.vector(ENV_STATE, torch.as_tensor(environment)).numpy()
        np.testing.assert_allclose(their_environment[where], wanted[where], atol=5e-3)
    # The table's grain and the light have sides; the cube is where the flipped picture shows it.
    there, wanted = blue(other), blue(np.flip(picture, 2))
    assert np.abs(there - wanted).max() < 1.5, (there, wanted)
    assert np.abs(there - blue(picture)).max() > 5


def blue(picture):
    """Column and row of the middle of what is blue in [3, H, W]."""
    red, _, much = picture.astype(int)
    rows, columns = np.nonzero(much > red + 40)
    return np.array([columns.mean(), rows.mean()])


def test_sim_arm_plays_the_mirrored_episode():
    from sim.sim_arm import SimArmEnv

    mirror = load_mirror("sim_arm")
    env = SimArmEnv(cameras=[])
    mirror.check({STATE: [env.spec.state_dim], ENV_STATE: [3], ACTION: [len(env.spec.action_low)]})
    first, _ = env.reset(5)
    rng = np.random.default_rng(0)
    actions = np.repeat(rng.uniform(-0.4, 0.4, (10, 4)), 4, 0).astype(np.float32)
    seen = rollout(env, actions)
    env.reset(5)  # the arm begins at home, in the plane; the cube is what is mirrored
    data, cube = env.world.data, env.world.cube
    data.qpos[cube : cube + 7] *= [1, -1, 1, 1, -1, 1, -1]
    mujoco.mj_forward(env.world.model, data)
    env.seen = env._seen()
    theirs = rollout(env, mirror.vector(ACTION, torch.tensor(actions)).numpy())
    env.close()
    assert np.abs(seen[-1][0] - first[STATE]).max() > 0.05
    for (state, cube), (their_state, their_cube) in zip(seen, theirs, strict=True):
        wanted = mirror.vector(STATE, torch.as_tensor(state)).numpy()
        # Joints drift by a hundredth of a radian, the hand by millimetres: MuJoCo's Panda is not symmetric to the last digit.
        np.testing.assert_allclose(their_state[:7], wanted[:7], atol=1e-2)
        np.testing.assert_allclose(their_state[7:], wanted[7:], atol=1e-2)
        np.testing.assert_allclose(their_cube, mirror.vector(ENV_STATE, torch.as_tensor(cube)), atol=3e-3)


def test_metaworld_plays_the_mirrored_episode():
    from sim.metaworld import MetaWorldEnv

    mirror = load_mirror("metaworld")
    env = MetaWorldEnv("reach-v3", cameras=[])
    mirror.check({STATE: [4], ENV_STATE: [39], ACTION: [4]})
    first, _ = env.reset(2)
    chosen = env.env._last_rand_vec.copy()
    rng = np.random.default_rng(0)
    actions = np.repeat(rng.uniform(-1, 1, (8, 4)), 5, 0).astype(np.float32)
    seen = rollout(env, actions)
    env.env._freeze_rand_vec = True
    env.env._last_rand_vec = chosen * np.tile([-1, 1, 1], 2)
    env.reset(2)
    theirs = rollout(env, mirror.vector(ACTION, torch.tensor(actions)).numpy())
    env.close()
    assert np.abs(seen[-1][0] - first[STATE]).max() > 0.05
    for (state, environment), (their_state, their_environment) in zip(seen, theirs, strict=True):
        # A Sawyer is not quite its own mirror image: its hand follows the same command to within a centimetre.
        np.testing.assert_allclose(
            their_state, mirror.vector(STATE, torch.as_tensor(state)).numpy(), atol=1e-2
        )
        wanted = mirror.vector(ENV_STATE, torch.as_tensor(environment)).numpy()
        np.testing.assert_allclose(their_environment[4:7], wanted[4:7], atol=1e-2)
        np.testing.assert_allclose(their_environment[-3:], wanted[-3:], atol=1e-6)


def test_samples_are_doubled():
    images = torch.arange(4 * 3 * 2 * 6, dtype=torch.uint8).view(4, 3, 2, 6)
    arrays = {
        "observation.images.left": images,
        "observation.images.right": images + 1,
        STATE: torch.randn(4, 3),
        ACTION: torch.randn(4, 4),
    }
    samples = Samples(arrays, ["go left"] * 2 + ["go right"] * 2, torch.tensor([1, 1, 3, 3]))
    mirror = Mirror(
        {
            "axis": "y",
            "vectors": {STATE: ["vector"], ACTION: ["vector", 1]},
            "cameras": {
                "observation.images.left": "observation.images.right",
                "observation.images.right": "observation.images.left",
            },
            "words": {"left": "right"},
        }
    )
    samples.add_mirrored(mirror)
    assert samples.starts().tolist() == list(range(8))
    batch, pad = samples.batch(torch.tensor([1, 6]), [0, 1])
    assert batch["task"] == ["go left", "go left"] and pad.tolist() == [[False, True], [False, False]]
    torch.testing.assert_close(batch["observation.images.left"][0], images[1] / 255)
    torch.testing.assert_close(batch["observation.images.left"][1], (images[2] + 1).flip(-1) / 255)
    torch.testing.assert_close(batch[ACTION][1], arrays[ACTION][2:4] * torch.tensor([1.0, -1, 1, 1]))
    torch.testing.assert_close(batch[STATE][1], arrays[STATE][2] * torch.tensor([1.0, -1, 1]))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"axis": "q"}, "axis=q: choose x, y or z"),
        ({"axis": "y", "vector": {}}, "unknown key 'vector': did you mean vectors"),
        ({"axis": "y", "vectors": {"a": ["vectr"]}}, "vectors.a: unknown part 'vectr': did you mean vector"),
        ({"axis": "y", "parts": {"arm": {"flip": [1]}}}, "parts.arm needs size"),
        ({"axis": "y", "parts": {"arm": {"size": 2, "flip": [2]}}}, "parts.arm names index 2 of 2"),
        ({"axis": "y", "parts": {"arm": {"size": 2, "flp": [1]}}}, "parts.arm: unknown key 'flp'"),
    ],
)
def test_bad_maps(values, says):
    with pytest.raises(UserError, match=says):
        Mirror(values)


def test_what_a_map_does_not_cover():
    mirror = load_mirror("table")
    with pytest.raises(UserError, match="describes 16 numbers, there are 9"):
        mirror.check({STATE: [9]})
    with pytest.raises(
        UserError, match=r"has no camera observation.images.wrist \(it has observation.images.front"
    ):
        mirror.check({"observation.images.wrist": [3, 8, 8]})
    with pytest.raises(UserError, match="has no observation.effort"):
        mirror.check({"observation.effort": [7]})
    with pytest.raises(UserError, match="there is no mirror map 'robosuite'"):
        load_mirror("robosuite")


def test_a_map_of_ones_own(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "axis: x\nvectors: {action: [arm]}\nparts: {arm: {size: 2, around: {1: 1.0}, swap: [[0, 1]]}}\n"
    )
    found = load_mirror(str(path)).vector(ACTION, torch.tensor([0.5, 0.25]))
    assert found.tolist() == [0.25, 1.5] and math.isclose(found[1], 2 - 0.5)
