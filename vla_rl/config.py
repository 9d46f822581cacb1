"""Configuration: hydra composes it; a wrong key fails at once with the nearest valid names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vla_rl.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


def compose(name: str, overrides: Sequence[str]) -> Any:
    """The resolved hydra configuration ``configs/<name>.yaml`` with ``key=value`` overrides.

    Raises:
        UserError: unknown key, group or option, with the nearest names.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for text in overrides:
        if "=" not in text:
            raise UserError(f"'{text}' is not key=value")
        key, _, value = text.partition("=")
        if key == "experiment" and not (CONFIGS / "experiment" / f"{value}.yaml").is_file():
            have = [p.stem for p in (CONFIGS / "experiment").glob("*.yaml")]
            raise UserError(f"unknown experiment '{value}': {nearest(value, have)}")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            config = hydra_compose(name, list(overrides))
            OmegaConf.resolve(config)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(name, overrides, error)) from error
    return config


def _explain(name: str, overrides: Sequence[str], error: Exception) -> str:
    """One line for hydra's several: the offending override and the nearest valid keys."""
    from hydra import compose as hydra_compose
    from hydra.errors import OverrideParseException

    text = str(error)
    if isinstance(error, OverrideParseException):
        where = text.splitlines()[0]
        return f'{error.override} cannot be read ({where}): brackets in pairs, and quotes around what has = : or blanks inside a list, ["a=b"]'
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing:
        group, _, option = missing.group(1).rpartition("/")
        have = sorted(
            str(p.relative_to(CONFIGS / group).with_suffix("")) for p in (CONFIGS / group).rglob("*.yaml")
        )
        return f"unknown {group or 'config'} '{option}': {nearest(option, have)}"
    refused = re.search(r"Could not override '([^']+)'", text)
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if (key == refused[1]) if refused else (key.split(".")[-1] in text or key in text):
            try:
                valid = list(_keys(hydra_compose(name)))
            except Exception:
                valid = []
            groups = [p.name for p in CONFIGS.iterdir() if p.is_dir()]
            return f"unknown configuration key '{key}': {nearest(key, valid + groups)}"
    return text.splitlines()[0]


def nearest(word: str, choices: Iterable[str]) -> str:
    """'did you mean a, b?' or the list of choices."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, 3, 0.4)
    leaf = [c for c in choices if c.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
    close = list(dict.fromkeys(leaf + close))[:4]
    return f"did you mean {', '.join(close)}?" if close else "choose from " + ", ".join(sorted(choices)[:30])


def _keys(node: Any, prefix: str = "") -> Iterable[str]:
    from omegaconf import DictConfig

    for key in node:
        path = f"{prefix}{key}"
        yield path
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _keys(child, path + ".")


def build(node: Any, **extra: Any) -> Any:
    """Instantiate a config node's ``_target_``; wrong arguments become a UserError."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        # Partial, then called: hydra would try to turn the extra objects into configuration.
        factory = instantiate(node, _convert_="all", _partial_=True)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"{node.get('_target_')}: {str(cause or error).splitlines()[0]}") from error
    try:
        return factory(**extra)
    except TypeError as error:
        if "unexpected keyword argument" in str(error) or "required" in str(error):
            raise UserError(f"{node.get('_target_')}: {error}") from error
        raise


def typed(cls: type, node: Any, prefix: str = "algorithm.") -> Any:
    """A dataclass from a config node; unknown keys fail with the nearest field, named with ``prefix``.

    Raises:
        UserError: a key that is no field, or a value of the wrong type.
    """
    import dataclasses

    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
    values = {k: v for k, v in values.items() if k != "_target_"}
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise UserError(f"unknown configuration key '{prefix}{key}': {nearest(str(key), names)}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), values))
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error


def resolve_path(path: str) -> Path:
    """A folder as given, or relative to the repository (``assets/...``)."""
    given = Path(path).expanduser()
    return (
        given if given.exists() or given.is_absolute() else (ROOT / path if (ROOT / path).exists() else given)
    )
