"""Tiny real policies (LeRobot's own classes) and the environment they would act in."""

from pathlib import Path

from vla_rl.environment import EnvSpec
from vla_rl.policies.nano import build_smolvla_nano

TINY = {
    "text_width": 64,
    "text_layers": 2,
    "vision_width": 32,
    "vision_layers": 1,
    "flow_steps": 2,
}
DRAWER = [
    "env=metaworld",
    "env.ids=[drawer-close-v3]",
    "env.num_envs=2",
    "env.num_workers=0",
    "env.max_episode_steps=20",
    "env.image_size=64",
]
"""Overrides of the environment that ``drawer_critic`` judges."""

TASKS = ("push the cube to the goal", "lift the cube", "pull the cube back")


def env_spec(size: int = 64, env_state_dim: int = 0) -> EnvSpec:
    return EnvSpec(
        id="Table",
        state_dim=5,
        env_state_dim=env_state_dim,
        action_low=(-1.0,) * 3,
        action_high=(1.0,) * 3,
        cameras={"observation.images.base": (size, size)},
        tasks=TASKS,
        max_episode_steps=50,
        rate_hz=20.0,
    )


def tiny_vla(out: Path, **settings) -> Path:
    settings = {"image_size": 64, "chunk_size": 4, "tasks": TASKS} | TINY | settings
    return build_smolvla_nano(out, state_dim=5, action_dim=3, **settings)


def tiny_dit(out: Path, **settings) -> Path:
    """A nano MultiTaskDiT of its own CLIP, at random."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import make_pre_post_processors

    from vla_rl.policies.nano import save_policy
    from vla_rl.policies.nano_dit import nano_dit

    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (5,)),
        "observation.images.base": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
    }
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (3,))}
    small = {"text_width": 32, "text_layers": 1, "vision_width": 32, "vision_layers": 1, "hidden_dim": 48}
    small |= {"num_layers": 1, "chunk_size": 6, "num_inference_steps": 3, "num_integration_steps": 3}
    torch.manual_seed(0)
    model = nano_dit(out, features=(inputs, outputs), tasks=TASKS, **(small | settings))
    for (
        block
    ) in model.noise_predictor.transformer_blocks:  # LeRobot starts them at zero: deaf to the condition
        torch.nn.init.normal_(block.adaLN_modulation[-1].weight, std=0.2)
    stats = {
        "observation.state": {"min": -torch.ones(5), "max": torch.ones(5)},
        "observation.images.base": {"mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1)},
        "action": {"min": -torch.ones(3), "max": torch.ones(3)},
    }
    before, after = make_pre_post_processors(model.config, dataset_stats=stats)
    save_policy(out, model, before, after)
    return out


def tiny_token(out: Path, **settings) -> Path:
    """A nano token VLA on its own InternVL, at random, loud enough that its words differ."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import make_pre_post_processors

    from vla_rl.policies.nano import save_policy
    from vla_rl.policies.nano_token import token_policy

    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (5,)),
        "observation.images.base": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
    }
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (3,))}
    small = {"text_width": 64, "text_layers": 2, "vision_width": 32, "vision_layers": 1, "chunk_size": 4}
    torch.manual_seed(0)
    model = token_policy(out, features=(inputs, outputs), tasks=TASKS, **(small | settings))
    torch.nn.init.normal_(model.network.vlm.get_output_embeddings().weight, std=0.3)
    stats = {
        "observation.state": {"mean": torch.zeros(5), "std": torch.ones(5)},
        "action": {"q01": -torch.ones(3), "q99": torch.ones(3)},
    }
    before, after = make_pre_post_processors(model.config, dataset_stats=stats)
    save_policy(out, model, before, after)
    return out


REACH = ["experiment=bench", "env=metaworld", "env.ids=[reach-v3]", "env.cameras=[]", "env.num_workers=0"]
"""Overrides of a training on the environment that ``reach_base`` acts in, on the simulator's state."""


def reach_base(out: Path, kind: str = "act") -> Path:
    """A policy of four steps a chunk for Meta-World's state, at random: ``act`` or ``gaussian_nano``."""
    small = {"chunk_size": 4, "n_action_steps": 4}
    if kind == "act":
        small |= {
            "dim_model": 32,
            "n_heads": 2,
            "dim_feedforward": 32,
            "n_encoder_layers": 1,
            "use_vae": False,
        }
    else:
        small |= {"hidden": [32], "std_first": 0.3}
    return lerobot_folder(out, kind, images=False, env_state=39, state=4, action=4, **small)


def lerobot_folder(
    out: Path,
    kind: str,
    *,
    images: bool = True,
    env_state: int = 0,
    state: int = 5,
    action: int = 3,
    **settings,
) -> Path:
    """Any other LeRobot type with random weights, saved as LeRobot saves it."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    from vla_rl.policies.lerobot_folder import register_types

    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (state,))}
    if images:
        inputs["observation.images.base"] = PolicyFeature(FeatureType.VISUAL, (3, 64, 64))
    if env_state:
        inputs["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (env_state,))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (action,))}
    torch.manual_seed(0)
    register_types()
    config = make_policy_config(
        kind, input_features=inputs, output_features=outputs, device="cpu", push_to_hub=False, **settings
    )
    stats = {}
    for key, feature in {**inputs, **outputs}.items():
        shape = (3, 1, 1) if feature.type.name == "VISUAL" else feature.shape
        one = torch.ones(shape)
        stats[key] = {"mean": one * 0, "std": one, "min": -one, "max": one}
    before, after = make_pre_post_processors(config, dataset_stats=stats)
    get_policy_class(kind)(config).save_pretrained(out)
    before.save_pretrained(out)
    after.save_pretrained(out)
    return out


ACT = {
    "chunk_size": 6,
    "n_action_steps": 6,
    "dim_model": 32,
    "dim_feedforward": 64,
    "n_heads": 4,
    "n_encoder_layers": 1,
    "use_vae": False,
    "pretrained_backbone_weights": None,
}
DIFFUSION = {
    "n_obs_steps": 2,
    "horizon": 8,
    "n_action_steps": 4,
    "drop_n_last_frames": 3,
    "down_dims": (16, 32),
    "n_groups": 4,
    "diffusion_step_embed_dim": 16,
    "noise_scheduler_type": "DDIM",
    "num_inference_steps": 2,
    "pretrained_backbone_weights": None,
    "use_group_norm": True,
    "spatial_softmax_num_keypoints": 4,
}


def observe(count: int, task: str = TASKS[0]) -> dict:
    """What the tiny policies see, of ``count`` rows; the same every time."""
    import torch

    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 255, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)
    state = torch.randn(count, 5, generator=generator)
    return {"observation.state": state, "observation.images.base": images, "task": [task] * count}


def drawer_critic(place: Path) -> Path:
    """A critic of ``DRAWER`` that has seen one film of noise for one step."""
    import torch

    from vla_rl.critic.pairs import PairConfig
    from vla_rl.critic.train import CriticConfig, CriticTrainer
    from vla_rl.critic.trajectories import Trajectory

    noise = torch.randint(
        0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    film = Trajectory(noise, "close the drawer", torch.arange(6) == 5, "noise", 5)
    pairs = PairConfig(skip=4, references=2)
    start = str(tiny_token(place / "start"))
    config = CriticConfig(start=start, steps=1, batch_size=2, held_out=0.0, pairs=pairs)
    CriticTrainer(config, [film], place / "critic").learn()
    return place / "critic"
