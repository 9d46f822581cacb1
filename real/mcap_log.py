"""Every message of chosen topics, as it came over the wire, in an MCAP file that Foxglove and ros2 bag read.

Messages are written one by one, not in chunks: what has been flushed survives ``kill -9``, what has been synced survives
a power cut; ``mcap recover`` (or ``read_log``) reads a file that was never closed.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from real.ros2 import Link
from vla_rl.errors import UserError

PRIMITIVES = {"boolean": "bool", "octet": "byte", "float": "float32", "double": "float64"}
SEPARATOR = "=" * 80

FLUSH = 0.5
"""Seconds between flushes to the operating system."""


class McapLog:
    """Follows topics and writes them down, from the executor's thread.

    Args:
        link: the node that listens.
        path: of the file; written as ``<name>.part`` and renamed when closed.
        topics: topic -> message class.

    Raises:
        UserError: the file is there already, or cannot be written.
    """

    def __init__(self, link: Link, path: Path, topics: dict[str, type]) -> None:
        from mcap.writer import Writer

        part = path.with_name(path.name + ".part")
        if path.exists() or part.exists():
            raise UserError(f"{path if path.exists() else part} exists: name another file")
        self.link, self.path, self.part = link, path, part
        self.count, self.lost = 0, ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(part, "xb")  # noqa: SIM115  (closed in close)
        except OSError as error:
            raise UserError(f"cannot write {part}: {error.strerror}") from error
        self._lock = threading.Lock()
        self._flushed = time.monotonic()
        self._writer = Writer(self._file, use_chunking=False)
        self._writer.start("ros2", "vla_rl")
        self._open = True
        # All channels first: what is heard is written from another thread, and the writer stands only one.
        channels = {topic: self._register(topic, kind) for topic, kind in topics.items()}
        for topic, kind in topics.items():
            link.listen(topic, kind, lambda m, c=channels[topic]: self._write(c, m))

    def _register(self, topic: str, kind: type) -> int:
        schema = self._writer.register_schema(type_name(kind), "ros2msg", definition(kind).encode())
        return self._writer.register_channel(topic, "cdr", schema)

    def _write(self, channel: int, message: Any) -> None:
        from rclpy.serialization import serialize_message

        now = int(self.link.now() * 1e9)
        data = serialize_message(message)
        with self._lock:
            if not self._open or self.lost:
                return
            try:
                self._writer.add_message(channel, now, data, now, self.count)
                self.count += 1
                if time.monotonic() - self._flushed > FLUSH:
                    self._file.flush()
                    self._flushed = time.monotonic()
            except (
                OSError
            ) as error:  # a full disk must not stop the arm's loop: it is reported, and asked about
                self.lost = f"{self.part} is no longer written: {error.strerror}"

    def sync(self) -> None:
        """Make everything so far survive a power cut (end of an episode).

        Raises:
            UserError: it cannot be written.
        """
        with self._lock:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                self.lost = self.lost or f"{self.part} is no longer written: {error.strerror}"
        if self.lost:
            raise UserError(self.lost)

    def close(self) -> None:
        """Finish the file; safe to call twice."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            try:
                self._writer.finish()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self.part, self.path)
            except OSError as error:
                self.lost = self.lost or f"{self.part} could not be finished: {error.strerror}"


def read_log(path: Path) -> Iterator[tuple[str, float, Any]]:
    """(topic, seconds, decoded message) in order; of a file that was never finished, all that is whole.

    Raises:
        UserError: not an MCAP file.
    """
    from mcap.exceptions import McapError
    from mcap.records import Channel, Message, Schema
    from mcap.stream_reader import StreamReader
    from mcap_ros2.decoder import DecoderFactory

    schemas: dict[int, Any] = {}
    channels: dict[int, Any] = {}
    factory, decoders = DecoderFactory(), {}
    with open(path, "rb") as file:
        if file.read(5) != b"\x89MCAP":
            raise UserError(f"{path} is no MCAP file")
        file.seek(0)
        try:
            for record in StreamReader(file).records:
                if isinstance(record, Schema):
                    schemas[record.id] = record
                elif isinstance(record, Channel):
                    channels[record.id] = record
                    decoders[record.id] = factory.decoder_for("cdr", schemas[record.schema_id])
                elif isinstance(record, Message):
                    decode = decoders[record.channel_id]
                    yield channels[record.channel_id].topic, record.log_time * 1e-9, decode(record.data)
        except (McapError, EOFError, ValueError):
            return  # cut in the middle of a record


def type_name(kind: type) -> str:
    """``sensor_msgs/msg/JointState``."""
    package, _, rest = kind.__module__.partition(".")
    return f"{package}/{rest.split('.')[0]}/{kind.__name__}"


def definition(kind: type) -> str:
    """The message's definition with those it is made of, as MCAP's ``ros2msg`` encoding wants them."""
    parts: dict[str, str] = {}

    def add(cls: Any) -> str:
        lines = []
        for field, declared in cls.get_fields_and_field_types().items():
            base, suffix = _split(declared)
            if "/" in base:
                package, name = base.split("/")
                inner = getattr(import_module(f"{package}.msg"), name)
                if base not in parts:
                    parts[base] = ""  # its place, before those it is made of
                    parts[base] = add(inner)
            lines.append(f"{PRIMITIVES.get(base, base)}{suffix} {field}")
        return "\n".join(lines)

    own = add(kind)
    return "\n".join([own, *(f"{SEPARATOR}\nMSG: {name}\n{text}" for name, text in parts.items())])


def _split(declared: str) -> tuple[str, str]:
    """``sequence<double, 3>`` -> (``double``, ``[<=3]``); ``double[9]`` -> (``double``, ``[9]``)."""
    match = re.fullmatch(r"sequence<(.+?)(?:, (\d+))?>", declared)
    if match:
        return match[1], f"[<={match[2]}]" if match[2] else "[]"
    match = re.fullmatch(r"(.+)\[(\d+)\]", declared)
    if match:
        return match[1], f"[{match[2]}]"
    match = re.fullmatch(r"(w?string)<(\d+)>", declared)
    return (match[1], f"<={match[2]}") if match else (declared, "")
