"""A Gaussian or mixture policy for the toy: ``gaussian_nano`` cloned from its biased base in a second or two."""

from __future__ import annotations

from pathlib import Path

import torch
from toy_diffusion import CHUNK, examples

from vla_rl.keys import ACTION, ENV_STATE, STATE


def cloned(folder: Path, modes: int = 1, bias: float = 0.075, updates: int = 800) -> Path:
    """A LeRobot policy folder."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import make_pre_post_processors

    from vla_rl.policies.gaussian_nano.configuration_gaussian_nano import GaussianNanoConfig
    from vla_rl.policies.gaussian_nano.modeling_gaussian_nano import GaussianNanoPolicy
    from vla_rl.policies.nano import save_policy

    torch.manual_seed(5)
    seen, chunks = examples(bias)
    config = GaussianNanoConfig(
        input_features={
            STATE: PolicyFeature(FeatureType.STATE, (4,)),
            ENV_STATE: PolicyFeature(FeatureType.ENV, (2,)),
        },
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (2,))},
        chunk_size=CHUNK,
        n_action_steps=CHUNK,
        modes=modes,
        hidden=[64, 64],
        device="cpu",
    )
    model = GaussianNanoPolicy(config)
    columns = {STATE: seen[:, :4], ENV_STATE: seen[:, 4:], ACTION: torch.tensor([[-1.0, -1.0], [1.0, 1.0]])}
    stats = {
        key: {"mean": x.mean(0), "std": x.std(0), "min": x.amin(0), "max": x.amax(0)}
        for key, x in columns.items()
    }
    before, after = make_pre_post_processors(config, dataset_stats=stats)
    batch = before({STATE: columns[STATE], ENV_STATE: columns[ENV_STATE], ACTION: chunks})
    inside = torch.zeros(256, CHUNK, dtype=torch.bool)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(updates):
        pick = torch.randint(len(seen), (256,))
        rows = {key: batch[key][pick] for key in (STATE, ENV_STATE, ACTION)}
        loss, _ = model(rows | {"action_is_pad": inside})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_policy(folder, model, before, after)
    return folder
