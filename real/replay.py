"""``vla-rl robot replay``: what a policy would have done in a recorded session, step by step, without the robot.

The recorded observations go through the same policy code as on the robot; its actions are compared with those executed.
A session replayed through the policy that played it agrees step for step (pictures come back from a lossy video, so a
policy that looks agrees only nearly); a later policy shows where it would have acted otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from real.contract import load_contract
from real.embodiment import robot_spec
from vla_rl.config import compose
from vla_rl.data.dataset import Episode, load_episodes
from vla_rl.environment import VlaVectorEnv
from vla_rl.errors import UserError
from vla_rl.keys import ACTION, INTERVENTION, TASK
from vla_rl.policies.base import Policy
from vla_rl.policies.load import load_policy
from vla_rl.runtime.metrics import write_json
from vla_rl.runtime.progress import track

SAME = 1e-4
"""Difference below which two actions are the same."""


class Recorded(VlaVectorEnv):
    """The specification of a robot that is not there.

    Args:
        robot: contract.
        task: the sentence.
        steps: of the longest episode.
    """

    def __init__(self, robot: str, task: str, steps: int) -> None:
        self.contract = load_contract(robot)
        self.set_spaces(robot_spec(self.contract, None, task, steps), 1)

    def task_ids(self) -> list[str]:
        """The contract's name."""
        return [self.env_spec.id]


def run(overrides: list[str]) -> int:
    """Replay; writes ``replay.json`` and one plot per episode."""
    config = compose("robot_replay", overrides)
    if not config.get("session"):
        raise UserError(
            "session is not set: session=DIR names a folder that vla-rl robot session wrote, or a data set"
        )
    session = Path(config.session)
    dataset = session / "dataset" if (session / "dataset").is_dir() else session
    from vla_rl.runtime.threads import set_threads

    set_threads(config.threads)
    episodes = load_episodes(dataset, episodes=config.episodes)
    out = Path(config.out) if config.out else session / "replay"
    env = Recorded(config.env.robot, episodes[0].task, max(e.length for e in episodes))
    policy = load_policy(config.policy, env)
    torch.manual_seed(config.seed)
    rows = []
    with track("replay", len(episodes), unit="episode") as bar:
        for episode in episodes:
            wanted = replay(policy, episode)
            rows.append(compare(episode, wanted))
            plot(episode, wanted, env.env_spec.action_names, out / f"episode-{episode.index:03d}.png")
            bar.update(len(rows))
    write_json(out / "replay.json", {"session": str(session), "same_within": SAME, "episodes": rows})
    for row in rows:
        words = f"episode {row['episode']}: {row['same']} of {row['steps']} steps the same"
        if row["first_different"] is not None:
            words += (
                f", the first other one is step {row['first_different']}; mean difference {row['mean']:.4f}"
            )
        print(words + (f"; {row['interventions']} were taken over" if row["interventions"] else ""))
    print(f"wrote {out / 'replay.json'}")
    return 0


def replay(policy: Policy, episode: Episode) -> np.ndarray:
    """[T, A]: what the policy would have done at each recorded observation.

    Raises:
        UserError: the policy reads something that was not recorded.
    """
    for key in (*policy.spec.state_keys, *policy.spec.image_keys):
        if key not in episode.data:
            raise UserError(
                f"the policy reads {key}, which was not recorded: there is {', '.join(episode.data)}"
            )
    state, actions = policy.initial_state(1), []
    for step in range(episode.length):
        observation: dict[str, Any] = {
            key: value[step : step + 1]
            for key, value in episode.data.items()
            if key.startswith("observation.")
        }
        output, state = policy.act(observation | {TASK: [episode.task]}, state, deterministic=True)
        actions.append(output["action"][0].numpy())
    return np.clip(np.array(actions), -1.0, 1.0)


def compare(episode: Episode, wanted: np.ndarray) -> dict[str, Any]:
    """How far the policy's actions are from the executed ones, where nobody had taken over."""
    taken = episode.data.get(INTERVENTION)
    free = ~taken.flatten().bool().numpy() if taken is not None else np.ones(len(wanted), bool)
    apart = np.abs(wanted - episode.data[ACTION].numpy()).max(1)
    other = np.flatnonzero(free & (apart > SAME))
    return {
        "episode": episode.index,
        "steps": int(free.sum()),
        "interventions": int((~free).sum()),
        "same": int((free & (apart <= SAME)).sum()),
        "first_different": int(other[0]) if len(other) else None,
        "mean": float(apart[free].mean()) if free.any() else 0.0,
        "max": float(apart[free].max()) if free.any() else 0.0,
    }


def plot(episode: Episode, wanted: np.ndarray, names: tuple[str, ...], path: Path) -> None:
    """Each action number over the episode, executed and wanted; steps taken over are shaded."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    done, taken = episode.data[ACTION].numpy(), episode.data.get(INTERVENTION)
    count = done.shape[1]
    figure, axes = plt.subplots(
        count, 1, figsize=(7, 1.3 * count), sharex=True, layout="constrained", squeeze=False
    )
    for i, axis in enumerate(axes[:, 0]):
        axis.plot(done[:, i], label="executed")
        axis.plot(wanted[:, i], "--", label="policy")
        axis.set_ylabel(names[i] if i < len(names) else str(i))
        if taken is not None:
            axis.fill_between(
                range(len(done)),
                0,
                1,
                taken.flatten().numpy(),
                transform=axis.get_xaxis_transform(),
                alpha=0.15,
            )
    axes[0, 0].legend(loc="upper right", fontsize="small")
    axes[-1, 0].set_xlabel("step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
