"""Behaviour cloning: any type, bit-exact resume, atomic saves, each bad input in one line."""

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "policies"))

import tiny

from vla_rl.checks.policy import check_policy
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.policies.gaussian_nano.configuration_gaussian_nano import GaussianNanoConfig
from vla_rl.policies.gaussian_nano.modeling_gaussian_nano import GaussianNanoPolicy
from vla_rl.policies.lerobot import LeRobotPolicy
from vla_rl.policies.nano import nano_policy
from vla_rl.policies.nano_dit import nano_dit
from vla_rl.policies.nano_token import token_policy
from vla_rl.pretrain import PretrainConfig, Pretrainer, pretrain
from vla_rl.pretrain_data import Samples, shifted
from vla_rl.pretrain_policy import features_of
from vla_rl.pretrain_vision import warm_start_vision

VLA = PretrainConfig(steps=6, batch_size=4, warmup=2, chunk_size=4, save_every=3, overrides=tiny.TINY)
ENV = "observation.environment_state"


def make_dataset(root, *, lengths=(9, 6), fps=20, state=5, size=64):
    """A stock LeRobotDataset v3 with video, of a task whose action follows from state and sentence."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    rng = np.random.default_rng(0)
    features = {
        "observation.state": {"dtype": "float32", "shape": (state,), "names": None},
        ENV: {"dtype": "float32", "shape": (4,), "names": None},
        "observation.images.base": {
            "dtype": "video",
            "shape": (size, size, 3),
            "names": ["height", "width", "channels"],
        },
        "action": {"dtype": "float32", "shape": (3,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create("local/tiny", fps, features, root=root, use_videos=True)
    for episode, length in enumerate(lengths):
        for step in range(length):
            position = rng.normal(size=state).astype(np.float32)
            frame = {
                "observation.state": position,
                ENV: rng.normal(size=4).astype(np.float32),
                "observation.images.base": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
                "action": np.array([episode, step, position[0]], np.float32),
                "next.success": np.array([step == length - 1]),
                "task": tiny.TASKS[episode % 3],
            }
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set")


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_batches_stay_inside_their_episode(dataset):
    samples = Samples.read([dataset])
    batch, pad = samples.batch(torch.tensor([0, 7, 8, 9]), range(-1, 3), [-1, 0])
    episode_step = batch["action"][..., :2].int().tolist()
    assert episode_step[0] == [[0, 0], [0, 0], [0, 1], [0, 2]]
    assert episode_step[1] == [[0, 6], [0, 7], [0, 8], [0, 8]]
    assert episode_step[3] == [[1, 0], [1, 0], [1, 1], [1, 2]]
    assert pad.tolist() == [
        [True, False, False, False],
        [False] * 3 + [True],
        [False, False, True, True],
        [True] + [False] * 3,
    ]
    state = samples.arrays["observation.state"]
    assert torch.equal(batch["observation.state"][3], state[[9, 9]]) and batch["task"][3] == tiny.TASKS[1]
    assert batch["observation.images.base"].shape == (4, 2, 3, 64, 64)
    assert samples.starts(7).tolist() == [0, 1, 9] and samples.rate_hz == 20


def test_samples_equal_stock_lerobot(dataset):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    stock, samples = LeRobotDataset("local/tiny", root=dataset), Samples.read([dataset])
    for index in (0, 8, 9, 14):
        batch, _ = samples.batch(torch.tensor([index]), [0])
        for key in ("observation.state", "action"):
            torch.testing.assert_close(batch[key].reshape(-1), stock[index][key])
        gap = (batch["observation.images.base"][0] - stock[index]["observation.images.base"]).abs().max()
        assert gap < 1.5 / 255 and batch["task"][0] == stock[index]["task"]


def test_shift_moves_each_sample_by_its_own_offset():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    out = shifted(images, torch.tensor([[0, 1]] * 32), 2)
    padded = torch.nn.functional.pad(images.float(), (2,) * 4, mode="replicate") / 255
    crops = {(y, x): padded[..., y : y + 8, x : x + 8] for y in range(5) for x in range(5)}
    offsets = [next(o for o, c in crops.items() if torch.allclose(c, sample)) for sample in out]
    assert len(set(offsets)) > 8
    assert torch.equal(shifted(images, torch.tensor([[1]]), 0)[0, 0], images[1].float() / 255)


def test_statistics():
    samples = Samples(
        {"observation.state": torch.tensor([[0.0, 5.0], [2.0, 5.0]]), "action": torch.tensor([[1.0], [1.0]])},
        ["a", "a"],
        torch.tensor([1, 1]),
    )
    stats = samples.statistics()
    assert stats["observation.state"]["mean"].tolist() == [1, 5]
    assert stats["observation.state"]["std"].tolist() == [1, 1], "a constant input is not blown up"
    assert stats["action"]["std"].item() < 1e-5, "a constant action stays constant"
    assert stats["observation.state"]["min"].tolist() == [0, 5]


def test_resume_equals_uninterrupted_bit_for_bit(dataset, tmp_path):
    whole = pretrain(VLA, [dataset], tmp_path / "whole")
    part = tmp_path / "part"
    trainer = Pretrainer(VLA, [dataset], part)

    def stop(step, _):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.learn(stop)
    assert json.loads((part / "pretrain.json").read_text())["step"] == 3
    LeRobotPolicy(part)  # an unfinished run is a usable policy
    torch.manual_seed(123)
    steps = []
    pretrain(VLA, [dataset], part, progress=lambda step, _: steps.append(step))
    assert steps == [4, 5, 6] and same(weights(whole), weights(part))
    assert not (part / "training.safetensors").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part", "whole"], "no working folder is left"
    policy = LeRobotPolicy(whole)
    assert policy.spec.rate_hz == 20
    check_policy(policy, tiny.env_spec(), steps=1)


def test_a_kill_between_the_renames_loses_nothing(dataset, tmp_path):
    out = tmp_path / "nano"
    trainer = Pretrainer(VLA, [dataset], out)
    with pytest.raises(KeyboardInterrupt):
        trainer.learn(lambda step, _: (_ for _ in ()).throw(KeyboardInterrupt) if step == 4 else None)
    out.rename(tmp_path / ".nano.old")
    trainer = Pretrainer(VLA, [dataset], out)
    assert trainer.resume() and trainer.step == 3


@pytest.mark.parametrize(
    ("kind", "inputs", "overrides"),
    [
        (
            "act",
            ["observation.state", ENV],
            {k: v for k, v in tiny.ACT.items() if "steps" not in k and "chunk" not in k},
        ),
        ("token_nano", [], {"text_width": 64, "text_layers": 1, "vision_width": 32, "vision_layers": 1}),
        ("gaussian_nano", [], {"modes": 2, "hidden": [16], "camera_features": 8}),
        ("diffusion", [], {"down_dims": [8, 16, 32], "n_groups": 4, "spatial_softmax_num_keypoints": 4}),
    ],
)
def test_other_types_train_and_load(dataset, tmp_path, kind, inputs, overrides):
    config = PretrainConfig(
        type=kind, steps=2, batch_size=4, chunk_size=4, inputs=inputs, overrides=overrides, image_shift=2
    )
    policy = LeRobotPolicy(pretrain(config, [dataset], tmp_path / kind))
    assert policy.spec.chunk_length == 4
    check_policy(policy, tiny.env_spec(env_state_dim=4), steps=1)


def test_fast_words_are_made_of_the_data_and_kept_inside(dataset, tmp_path):
    small = {"text_width": 32, "text_layers": 1, "vision_width": 32, "vision_layers": 1, "fast": 200}
    config = replace(VLA, type="token_nano", overrides=small)
    pretrain(config, [dataset], tmp_path / "policy")
    policy = LeRobotPolicy(tmp_path / "policy")
    words = policy.token_head.words
    assert words.end is not None and words.size <= 201 and words.shape == (4, 3)
    check_policy(policy, tiny.env_spec(), steps=2)
    with pytest.raises(UserError, match="fast=3: these actions have"):
        pretrain(replace(config, overrides=small | {"fast": 3}), [dataset], tmp_path / "other")


def test_a_type_that_ignores_the_environment_state_has_it_in_its_state(dataset, tmp_path):
    """LeRobot's MultiTaskDiT lets it be an input and never looks: such a clone was blind."""
    small = {"text_width": 32, "text_layers": 1, "vision_width": 32, "vision_layers": 1, "hidden_dim": 48}
    config = PretrainConfig(
        type="dit_nano",
        steps=1,
        batch_size=4,
        chunk_size=4,
        inputs=["observation.state", ENV],
        overrides=small | {"num_layers": 1},
    )
    policy = LeRobotPolicy(pretrain(config, [dataset], tmp_path / "dit"))
    assert set(policy.spec.state_keys) == {"observation.state", ENV}
    seen = {
        "observation.state": torch.zeros(2, 5),
        ENV: torch.tensor([[0.0] * 4, [1.0] * 4]),
        "task": [""] * 2,
    }
    vector = policy.encode(seen, policy.initial_state(2))[0]["vector"]
    assert not torch.allclose(vector[0], vector[1])
    check_policy(policy, tiny.env_spec(env_state_dim=4), steps=1)
    with pytest.raises(UserError, match="needs observation.environment_state"):
        policy.act({"observation.state": torch.zeros(1, 5), "task": [""]}, policy.initial_state(1))


@pytest.mark.parametrize("chosen", [None, "IDENTITY"])
def test_environment_state_is_scaled_unless_told_otherwise(dataset, tmp_path, chosen):
    """LeRobot's types leave it in metres, where 6 % instead of 88 % of PickCube's episodes succeed."""
    mapping = (
        {"normalization_mapping": {"ENV": chosen, "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}}
        if chosen
        else {}
    )
    config = PretrainConfig(
        type="act",
        steps=1,
        inputs=["observation.state", ENV],
        overrides={"dim_model": 16, "n_heads": 2} | mapping,
    )
    trainer = Pretrainer(config, [dataset], tmp_path / "act")
    raw, _ = trainer.samples.batch(torch.arange(4), range(16), None, 0)
    scaled, mean = trainer.before(dict(raw))[ENV], trainer.samples.arrays[ENV].mean(0)
    spread = trainer.samples.arrays[ENV].std(0, correction=0)
    expected = raw[ENV] if chosen else (raw[ENV] - mean) / spread
    torch.testing.assert_close(scaled, expected)


def test_continuing_from_a_folder_starts_from_its_weights(dataset, tmp_path):
    first = pretrain(VLA, [dataset], tmp_path / "first")
    config = replace(VLA, type=str(first), steps=1, lr=0.0, overrides={})
    second = pretrain(config, [dataset, dataset], tmp_path / "second")
    assert same(weights(first), weights(second)) and (second / "vlm" / "config.json").is_file()
    assert str(tmp_path) not in (second / "config.json").read_text(), "the folder may be moved and published"
    LeRobotPolicy(second)


def test_it_learns(dataset, tmp_path):
    config = PretrainConfig(
        type="act",
        steps=60,
        batch_size=15,
        lr=3e-3,
        warmup=1,
        chunk_size=2,
        inputs=["observation.state", ENV],
        overrides={k: v for k, v in tiny.ACT.items() if "steps" not in k and "chunk" not in k},
    )
    losses = []
    pretrain(config, [dataset], tmp_path / "act", progress=lambda _, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(dataset, tmp_path):
    trainer = Pretrainer(VLA, [dataset], tmp_path / "nano")

    def poison(step, _):
        if step == 4:
            trainer.samples.arrays["action"].fill_(float("nan"))

    with pytest.raises(NonFiniteError, match="at step 5"):
        trainer.learn(poison)
    assert all(w.isfinite().all() for w in weights(tmp_path / "nano").values())


def test_bad_input_is_one_line(dataset, tmp_path):
    out = tmp_path / "out"
    cases = [
        (replace(VLA, type="smolvla_nan"), [dataset], "did you mean smolvla_nano"),
        (replace(VLA, type=str(tmp_path / "none")), [dataset], "none is not there"),
        (
            replace(VLA, inputs=["observation.images.wrist"]),
            [dataset],
            "has no observation.images.wrist .it has",
        ),
        (replace(VLA, inputs=["observation.state"]), [dataset], "needs observation.state and cameras"),
        (
            replace(VLA, type="act", inputs=["observation.state"], overrides={}),
            [dataset],
            "type=act: You must provide",
        ),
        (replace(VLA, overrides={"text_widht": 3}), [dataset], "did you mean text_width"),
        (replace(VLA, batch_size=0), [dataset], "batch_size=0 must be"),
        (VLA, [tmp_path / "no"], "is not a LeRobotDataset"),
        (VLA, [], "names no data set"),
        (
            VLA,
            [dataset, make_dataset(tmp_path / "other", lengths=(3,), state=6)],
            "observation.state has shape .6,.",
        ),
        (
            VLA,
            [dataset, make_dataset(tmp_path / "fast", lengths=(3,), fps=30)],
            "recorded at .20.0, 30.0. Hz",
        ),
    ]
    for config, folders, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            pretrain(config, folders, out)
        assert "\n" not in str(caught.value) and not out.exists()


def test_an_existing_folder_is_never_overwritten(dataset, tmp_path):
    out = tmp_path / "nano"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(UserError, match="exists and is no unfinished run"):
        pretrain(VLA, [dataset], out)
    begun = tmp_path / "begun"
    with pytest.raises(KeyboardInterrupt):
        Pretrainer(VLA, [dataset], begun).learn(
            lambda step, _: (_ for _ in ()).throw(KeyboardInterrupt) if step == 4 else None
        )
    with pytest.raises(UserError, match="begun with lr=0.001, not 0.01"):
        pretrain(replace(VLA, lr=0.01), [dataset], begun)
    notes = begun / "pretrain.json"
    text = notes.read_text()
    notes.write_text('{"step": 3}')
    with pytest.raises(UserError, match="another version of vla-rl"):
        pretrain(VLA, [dataset], begun)
    notes.write_text(text)
    (begun / "training.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="cannot be continued"):
        pretrain(VLA, [dataset], begun)


def test_no_space_left_is_one_line_and_keeps_the_checkpoint(dataset, tmp_path):
    """The system refuses files beyond 100 kB, as a full disk would."""
    trainer = Pretrainer(VLA, [dataset], tmp_path / "nano")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up(step, _):
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    try:
        with pytest.raises(UserError, match="no space left for .*nano at step 6"):
            trainer.learn(fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads((tmp_path / "nano" / "pretrain.json").read_text())["step"] == 3
    trainer = Pretrainer(VLA, [dataset], tmp_path / "nano")
    assert trainer.resume()
    trainer.learn()
    LeRobotPolicy(tmp_path / "nano")


def test_nano_policy_is_deterministic_under_its_seed(dataset, tmp_path):
    from vla_rl.pretrain_policy import features_of

    models = []
    for name in "ab":
        torch.manual_seed(0)
        models.append(
            nano_policy(
                tmp_path / name, features=features_of(Samples.read([dataset])), **tiny.TINY
            ).state_dict()
        )
    assert same(*models)


def test_mirrored_episodes_are_learned_too(dataset, tmp_path):
    """Twice the frames, statistics of both, the map checked before anything is trained."""
    path = tmp_path / "mine.yaml"
    vectors = "{observation.state: [vector, 2], observation.environment_state: [4], action: [vector]}"
    cameras = "{observation.images.base: observation.images.base}"
    path.write_text(f"axis: y\nvectors: {vectors}\ncameras: {cameras}\n")
    config = replace(VLA, mirror=str(path))
    trainer = Pretrainer(config, [dataset], tmp_path / "out")
    plain = Samples.read([dataset])
    assert len(trainer.samples.last) == 2 * len(plain.last)
    assert trainer.samples.arrays["observation.state"][:, 1].mean().abs() < 1e-6
    trainer.learn()
    assert (tmp_path / "out" / "model.safetensors").is_file()
    path.write_text(f"axis: y\nvectors: {vectors}\n")
    with pytest.raises(UserError, match="has no camera observation.images.base"):
        Pretrainer(config, [dataset], tmp_path / "other")
    with pytest.raises(UserError, match="there is no mirror map 'tabel': did you mean table"):
        Pretrainer(replace(VLA, mirror="tabel"), [dataset], tmp_path / "other")


@pytest.mark.parametrize("kind", ["smolvla_nano", "dit_nano", "token_nano", "gaussian_nano"])
def test_the_vision_tower_is_warmed_up(tmp_path, kind):
    """It learns to say what the picture shows, in every type of nano policy."""
    shown = torch.rand(64, 1)
    columns = torch.arange(32.0)[None, None, None]
    images = (255 * torch.exp(-((columns - 32 * shown[:, :, None, None]) / 6).square())).expand(64, 3, 32, 32)
    images = images.to(torch.uint8).clone()
    arrays = {
        "observation.state": torch.cat([shown, torch.randn(64, 4)], 1),
        "observation.images.base": images,
        "action": torch.randn(64, 3),
    }
    samples = Samples(arrays, ["go"] * 64, torch.full((64,), 63))
    small = {"text_width": 32, "text_layers": 1, "vision_width": 32, "vision_layers": 1}
    if kind == "dit_nano":
        policy = nano_dit(tmp_path, features=features_of(samples), hidden_dim=48, num_layers=1, **small)
    elif kind == "token_nano":
        shape = small | {"text_width": 64, "freeze_vision": True}
        policy = token_policy(tmp_path, features=features_of(samples), **shape)
    elif kind == "gaussian_nano":
        inputs, outputs = features_of(samples)
        config = GaussianNanoConfig(
            input_features=inputs, output_features=outputs, chunk_size=4, device="cpu", push_to_hub=False
        )
        policy = GaussianNanoPolicy(config)
    else:
        policy = nano_policy(tmp_path, features=features_of(samples), **tiny.TINY)
    learning = [p.requires_grad for p in policy.parameters()]
    explained = warm_start_vision(
        policy,
        samples,
        {"observation.state": [0]},
        steps=150,
        batch_size=32,
        lr=3e-3,
        generator=torch.Generator().manual_seed(0),
    )
    assert explained > 0.8
    assert [p.requires_grad for p in policy.parameters()] == learning, "what was frozen stays so"


def test_the_warm_start_looks_at_other_scenes_too(dataset, tmp_path):
    scenes = make_dataset(tmp_path / "scenes", lengths=(3, 3, 3))
    config = replace(VLA, vision_steps=2, vision_targets={ENV: []}, vision_datasets=[str(scenes)])
    trainer = Pretrainer(config, [dataset], tmp_path / "out")
    assert len(trainer.samples.last) == 15 and len(trainer.scenes.last) == 24
    assert trainer.warm_start() is not None
    assert trainer.scenes is trainer.samples
    trainer.learn()
    assert (tmp_path / "out" / "model.safetensors").is_file()
    other = make_dataset(tmp_path / "other", lengths=(2,), state=3)
    with pytest.raises(UserError, match=r"observation.state has shape \(3,\)"):
        Pretrainer(replace(config, vision_datasets=[str(other)]), [dataset], tmp_path / "second")
    with pytest.raises(UserError, match="train.vision_datasets are for the visual warm start"):
        Pretrainer(replace(config, vision_steps=0), [dataset], tmp_path / "third")
