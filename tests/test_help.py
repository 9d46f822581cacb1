"""Every example in ``--help``, the README and ``docs/`` is a command that the configuration takes."""

import importlib
import re
import shlex

import pytest

from vla_rl.cli import COMMANDS
from vla_rl.commands.critic import turns_apart
from vla_rl.commands.pretrain import _spelled_out
from vla_rl.config import ROOT, compose


def examples():
    for name in COMMANDS:
        text = importlib.import_module(f"vla_rl.commands.{name}").__doc__ or ""
        for line in text.partition("Examples:")[2].splitlines():
            words = shlex.split(line)
            if words[:2] == ["vla-rl", name]:
                yield pytest.param(words[1:], id=line.strip())
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```\n(.*?)```", file.read_text().replace("\\\n", " "), re.DOTALL):
            for line in block.splitlines():
                if not line.startswith("vla-rl ") or "..." in line:
                    continue
                words = shlex.split(line, comments=True)
                if words[1:2] != ["COMMAND"]:
                    yield pytest.param(words[1:], id=f"{file.name}: {line.strip()[:60]}")


@pytest.mark.parametrize("words", examples())
def test_example(words):
    command, *rest = words
    if command in ("bench", "robot", "critic"):
        action, *rest = rest
        command = f"{command}_{action}"
    if command in ("data", "doctor", "demo", "robot_reset") or any(w.startswith("resume=") for w in rest):
        return  # no configuration of their own
    if command == "critic_turns":
        rest, training = turns_apart(rest)
        compose("train", [*training, "reward=vlac"])  # as turns adds
    compose(command, _spelled_out(rest) if command == "pretrain" else rest)
