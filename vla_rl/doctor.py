"""What this machine can run; each problem with its fix."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from vla_rl.errors import UserError


@dataclass
class Row:
    """One finding.

    Attributes:
        name: what was looked at.
        ok: works here.
        detail: version or size.
        fix: what to do when it does not.
        needed: without it nothing trains on this machine.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = False


def rows() -> list[Row]:
    """All findings, in the order they are shown."""
    from vla_rl.runtime.threads import cpu_budget

    found = [
        Row(
            "Python",
            sys.version_info[:2] == (3, 12),
            sys.version.split()[0],
            "make setup (Python 3.12)",
            True,
        ),
        Row("cores", True, f"{cpu_budget()} usable of {os.cpu_count()}"),
        _memory(),
        _disk(),
        _torch(),
        _renderer(),
        _mujoco(),
    ]
    for package, needed in (
        ("lerobot", True),
        ("transformers", True),
        ("mani_skill", False),
        ("robosuite", False),
        ("metaworld", False),
        ("ros-rclpy", False),
    ):
        found.append(_package(package, needed))
    return found


def _memory() -> Row:
    import psutil

    memory = psutil.virtual_memory()
    gib = memory.available / 2**30
    return Row(
        "memory",
        gib > 4,
        f"{gib:.1f} GiB free of {memory.total / 2**30:.1f}",
        "free memory: the demo takes up to 6 GiB",
    )


def _disk() -> Row:
    free = shutil.disk_usage(".").free / 2**30
    return Row(
        "disk",
        free > 5,
        f"{free:.0f} GiB free",
        "free some space: a run with its checkpoints takes about 1 GiB",
    )


def _torch() -> Row:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return Row("torch", False, str(error), "make setup", True)
    cuda = (
        f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name(0)}"
        if torch.cuda.is_available()
        else "CPU only"
    )
    return Row("torch", True, f"{torch.__version__} ({cuda})", needed=True)


def _guard(name: str, work: Callable[[], str], fix: str) -> Row:
    try:
        return Row(name, True, work(), fix)
    except UserError as error:
        return Row(name, False, str(error), fix)
    except Exception as error:
        return Row(name, False, f"{type(error).__name__}: {error}".splitlines()[0], fix)


def _renderer() -> Row:
    def work() -> str:
        renderer = importlib.import_module("sim.rendering").setup()
        return renderer.kind + (" with our Vulkan layer" if renderer.needs_layer else "")

    return _guard(
        "ManiSkill rendering (Vulkan)",
        work,
        "make setup as root, or install mesa-vulkan-drivers 25 and libvulkan1",
    )


def _mujoco() -> Row:
    def work() -> str:
        backend = importlib.import_module("sim.rendering").setup_mujoco()
        importlib.import_module("mujoco").GLContext(16, 16).free()
        return backend

    return _guard("MuJoCo rendering", work, "install libegl1 (or libosmesa6 and MUJOCO_GL=osmesa)")


def _package(name: str, needed: bool) -> Row:
    try:
        return Row(name, True, version(name), "make setup", needed)
    except PackageNotFoundError:
        return Row(name, False, "not installed", "make setup", needed)


def show(found: list[Row]) -> None:
    """Print a table and the fixes."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", "", box=None, show_header=False)
    for row in found:
        mark = "[green]ok[/]" if row.ok else ("[red]no[/]" if row.needed else "[yellow]--[/]")
        table.add_row(mark, row.name, row.detail)
    console = Console()
    console.print(table)
    for row in found:
        if not row.ok:
            console.print(f"fix {row.name}: {row.fix}")
