"""Mirror symmetry of a robot and its table, as data augmentation (GR-RL, arXiv 2512.01801).

An episode seen in a mirror is an episode too, if the robot is its own mirror image: pictures are flipped, vectors and
actions reflected, left and right exchanged in the sentence. How, a mirror map says: ``configs/mirror/<name>.yaml``.

- ``axis``: the world's axis that changes its sign, ``x``, ``y`` or ``z``.
- ``vectors``: key -> what its numbers are, in their order. ``vector`` (3: a position, a translation, a velocity),
  ``rotation`` (3: a rotation vector, an angular velocity), ``quaternion_wxyz`` and ``quaternion_xyzw`` (4), ``pose`` (7:
  position, quaternion wxyz), a whole number (so many that do not change), or a name from ``parts``.
- ``parts``: the robot's own, e.g. its joints: ``size``; ``flip``: indices that change sign; ``around``: index -> the
  value it is reflected at (radians, metres); ``swap``: pairs of indices that change places.
- ``cameras``: camera -> the one whose flipped picture it shows in the mirror (itself, if it stands in the plane).
- ``words``: word -> its opposite, both ways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_rl.config import CONFIGS, nearest
from vla_rl.errors import UserError

AXES = ("x", "y", "z")


class Mirror:
    """One mirror map.

    Args:
        values: the map's contents.
        source: what to call it in errors.

    Raises:
        UserError: a key, axis, part or index that makes no sense, named.
    """

    def __init__(self, values: Mapping[str, Any], source: str = "mirror map") -> None:
        known = ("axis", "vectors", "parts", "cameras", "words")
        for key in values:
            if key not in known:
                raise UserError(f"{source}: unknown key '{key}': {nearest(str(key), known)}")
        self.source, axis = source, values.get("axis")
        if axis not in AXES:
            raise UserError(f"{source}: axis={axis}: choose x, y or z, the one that changes its sign")
        parts = _standard(AXES.index(axis)) | {
            str(name): _part(f"{source}: parts.{name}", part)
            for name, part in (values.get("parts") or {}).items()
        }
        self.rules = {
            str(key): _joined(f"{source}: vectors.{key}", items, parts)
            for key, items in (values.get("vectors") or {}).items()
        }
        self.cameras = {str(k): str(v) for k, v in (values.get("cameras") or {}).items()}
        pairs = {str(k).lower(): str(v).lower() for k, v in (values.get("words") or {}).items()}
        self.words = pairs | {v: k for k, v in pairs.items()}

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuse data that the map does not cover.

        Args:
            shapes: key -> shape of one frame's value, pictures and vectors.

        Raises:
            UserError: naming the key, and what the map has instead.
        """
        for key, shape in shapes.items():
            if ".images." in key:
                other = self.cameras.get(key)
                if other is None:
                    have = ", ".join(self.cameras) or "none"
                    raise UserError(
                        f"{self.source} has no camera {key} (it has {have}): leave it out, or add it"
                    )
                if other not in shapes:
                    raise UserError(f"{self.source}: {key} shows {other} in the mirror, which the data lacks")
            elif key not in self.rules:
                raise UserError(f"{self.source} has no {key}: add it to its vectors")
            elif len(self.rules[key][0]) != shape[-1]:
                raise UserError(
                    f"{self.source}: vectors.{key} describes {len(self.rules[key][0])} numbers, there are {shape[-1]}"
                )

    def vector(self, key: str, values: Tensor) -> Tensor:
        """[..., n] as the mirror shows it."""
        order, sign, offset = self.rules[key]
        return values[..., order] * sign.to(values) + offset.to(values)

    def task(self, text: str) -> str:
        """The sentence with left and right exchanged."""

        def other(match: re.Match[str]) -> str:
            word = match[0]
            found = self.words.get(word.lower(), word)
            return found.capitalize() if word[0].isupper() else found

        return re.sub(r"[^\W\d_]+", other, text)


def load_mirror(name: str) -> Mirror:
    """The map ``configs/mirror/<name>.yaml``, or a YAML file anywhere.

    Raises:
        UserError: there is none (those that there are, named), or it makes no sense.
    """
    from omegaconf import OmegaConf

    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / "mirror" / f"{name}.yaml"
    if not path.is_file():
        have = sorted(p.stem for p in (CONFIGS / "mirror").glob("*.yaml"))
        raise UserError(
            f"there is no mirror map '{name}': {nearest(name, have)} (or write one, docs/mirror.md, and give its path)"
        )
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:
        raise UserError(f"{path} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, Mapping):
        raise UserError(f"{path} is no mapping of axis, vectors, parts, cameras and words")
    return Mirror({str(k): v for k, v in values.items()}, f"mirror map {path.stem}")


Rule = tuple[list[int], Tensor, Tensor]
"""x' = x[order] * sign + offset."""


def _standard(axis: int) -> dict[str, Rule]:
    # A polar vector changes sign along the axis; an axial one (rotations) along the two others.
    polar = [-1.0 if i == axis else 1.0 for i in range(3)]
    axial = [-s for s in polar]
    signs = {
        "vector": polar,
        "rotation": axial,
        "quaternion_wxyz": [1.0, *axial],
        "quaternion_xyzw": [*axial, 1.0],
        "pose": [*polar, 1.0, *axial],
    }
    return {name: _rule(values) for name, values in signs.items()}


def _rule(sign: Sequence[float]) -> Rule:
    return list(range(len(sign))), torch.tensor(sign), torch.zeros(len(sign))


def _part(where: str, part: Any) -> Rule:
    known = ("size", "flip", "around", "swap")
    if not isinstance(part, Mapping) or not isinstance(part.get("size"), int) or part["size"] < 1:
        raise UserError(f"{where} needs size: how many numbers it is")
    for key in part:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}': {nearest(str(key), known)}")
    size = part["size"]
    order, sign, offset = _rule([1.0] * size)
    around = {int(k): float(v) for k, v in (part.get("around") or {}).items()}
    flip, swap = list(part.get("flip") or []), [tuple(pair) for pair in part.get("swap") or []]
    for index in [*flip, *around, *(i for pair in swap for i in pair)]:
        if not 0 <= index < size:
            raise UserError(f"{where} names index {index} of {size} numbers")
    for index in [*flip, *around]:
        sign[index], offset[index] = -1.0, 2 * around.get(index, 0.0)
    for one, other in swap:
        order[one], order[other] = other, one
    return order, sign, offset


def _joined(where: str, items: Any, parts: Mapping[str, Rule]) -> Rule:
    if isinstance(items, (str, int)):
        items = [items]
    order: list[int] = []
    signs, offsets = [], []
    for item in items:
        if isinstance(item, int) and item > 0:
            rule = _rule([1.0] * item)
        elif str(item) in parts:
            rule = parts[str(item)]
        else:
            raise UserError(f"{where}: unknown part '{item}': {nearest(str(item), parts)}")
        order += [len(order) + i for i in rule[0]]
        signs.append(rule[1])
        offsets.append(rule[2])
    return order, torch.cat(signs), torch.cat(offsets)
