"""``vla-rl``: one command line, lazy imports (help in well under a second)."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "doctor": "what this machine can run, and the fix for what it cannot",
    "demo": "the main job: shipped VLA, residual RL, before/after report",
    "record": "demonstrations or policy rollouts into a LeRobotDataset",
    "pretrain": "behaviour cloning of a base policy from LeRobotDatasets",
    "train": "improve a base policy by reinforcement learning",
    "join": "a robot as one more collector of a training that runs on Ray",
    "eval": "success of a policy with 95 % interval, per task, with videos",
    "data": "smoothness, variety and success of data sets, side by side",
    "critic": "train, measure and use a vision-language critic: progress and done",
    "serve": "a policy behind a websocket, for clients elsewhere",
    "robot": "a policy on a robot over ROS 2, behind the safety node",
    "bench": "measure collection speed; compare algorithms on many tasks",
}

USAGE = """usage: vla-rl COMMAND [key=value ...] [--debug] [--help]

Improve a vision-language-action policy with reinforcement learning.

commands:
{commands}

Every setting is a hydra override: vla-rl train experiment=push_cube algorithm.scale=0.3
`vla-rl COMMAND --help` shows a command's settings and examples.
Exit code 2: wrong input, said in one line. Full traceback: --debug.
"""


def usage() -> str:
    """The text of ``vla-rl --help``."""
    return USAGE.format(commands="\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items()))


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (0 ok, 1 failed, 2 wrong input, 130 interrupted)."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] in ("-V", "--version"):
        from vla_rl import __version__

        print(__version__)
        return 0
    name, rest = args[0], args[1:]
    from vla_rl.errors import NonFiniteError, UserError

    try:
        if name not in COMMANDS:
            import difflib

            near = ", ".join(difflib.get_close_matches(name, COMMANDS, 2, 0.4)) or ", ".join(COMMANDS)
            raise UserError(f"unknown command '{name}': did you mean {near}?")
        module = importlib.import_module(f"vla_rl.commands.{name}")
        if "-h" in rest or "--help" in rest:
            print(module.__doc__.strip())
            return 0
        from vla_rl.runtime.threads import prepare_process

        prepare_process()
        return int(module.run(rest) or 0)
    except UserError as error:
        if debug:
            raise
        print(f"vla-rl: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        if debug:
            raise
        print(
            f"vla-rl: stopped, {error}; the last good checkpoint is kept (resume=... continues)",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("vla-rl: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
