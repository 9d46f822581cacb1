"""ROS 2 as this project uses it: newest message of each stream with its age, publishers, triggers, exact periods.

One node and one single-threaded executor in a thread of its own (rclpy's multi-threaded one is late by tens of
milliseconds); timing loops stay outside it. Subscriptions are best effort and volatile, which matches every
publisher; publishers are reliable and volatile. What still does not match is reported by ``Link.problems``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vla_rl.errors import UserError

AHEAD = 0.01
"""Seconds a stamp may lie in the future (two machines' clocks): counted as age 0."""

STILL = 5.0
"""Seconds of wall time that simulated time may stand still before who waits for it gives up."""

ANONYMOUS = "another node"
"""A node that is on the network and has not yet said its name."""


def seconds(stamp: Any) -> float:
    """A ``builtin_interfaces/Time`` or ``Duration`` in seconds."""
    return stamp.sec + 1e-9 * stamp.nanosec


def stamp_of(time_: float, kind: Any) -> Any:
    """Seconds as a message of type ``kind`` (``builtin_interfaces`` Time or Duration)."""
    whole = int(time_ // 1)
    return kind(sec=whole, nanosec=min(int((time_ - whole) * 1e9), 999_999_999))


@dataclass
class Received:
    """A message, when it was made and when it came (seconds of the node's clock)."""

    message: Any
    stamp: float
    arrival: float


class Latest:
    """The newest message of a topic, by its header's stamp (by arrival when it has none or a zero one)."""

    def __init__(self, link: Link, topic: str, kind: type) -> None:
        self.link, self.topic, self.kind = link, topic, kind
        self.newest: Received | None = None
        self.count = 0
        self._news = threading.Condition()

    def put(self, message: Any) -> None:
        """Called by the executor."""
        now = self.link.now()
        header = getattr(message, "header", None)
        stamp = seconds(header.stamp) if header is not None else 0.0
        with self._news:
            self.newest = Received(message, stamp or now, now)
            self.count += 1
            self._news.notify_all()

    def age(self) -> float:
        """Seconds since the newest message was made; infinite before the first, negative if its clock is ahead."""
        newest = self.newest
        if newest is None:
            return float("inf")
        age = self.link.now() - newest.stamp
        return 0.0 if -AHEAD <= age < 0 else age

    def wait(self, after: int, timeout: float) -> bool:
        """Wait until more than ``after`` messages have come."""
        with self._news:
            return self._news.wait_for(lambda: self.count > after, timeout)


class Link:
    """A node with its executor thread.

    Args:
        name: of the node.
        arguments: as on a ROS command line (``["--ros-args", "-p", "use_sim_time:=true"]``).
        simulated_time: follow ``/clock``.

    Raises:
        UserError: rclpy is not installed.
    """

    def __init__(self, name: str, arguments: Sequence[str] = (), *, simulated_time: bool = False) -> None:
        try:
            import rclpy
            from rclpy.executors import SingleThreadedExecutor
            from rclpy.parameter import Parameter
        except ImportError as error:
            raise UserError(
                f"rclpy cannot be imported ({error}): uv pip install 'ros-rclpy[fastrtps]'"
            ) from error
        self.rclpy = rclpy
        self.context = rclpy.Context()
        rclpy.init(args=list(arguments), context=self.context)
        overrides = [Parameter("use_sim_time", value=True)] if simulated_time else []
        self.node = rclpy.create_node(name, context=self.context, parameter_overrides=overrides)
        self.streams: dict[str, Latest] = {}
        self._problems: dict[str, str] = {}
        self._parameters: dict[str, Any] = {}
        self._closing = threading.Event()
        self._spinning: list[tuple[Any, threading.Thread]] = []
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._spin(self.executor, f"{name}-executor")
        self.timekeeper = self._keep_time(f"{name}_clock") if self.simulated_time else self.node
        """Whose clock this is: under simulated time a node of its own, which no callback here holds up."""

    def _spin(self, executor: Any, name: str) -> None:
        from rclpy.executors import ExternalShutdownException

        def spin() -> None:
            try:
                while self.context.ok() and not self._closing.is_set():
                    executor.spin_once()
            except ExternalShutdownException:
                pass

        thread = threading.Thread(target=spin, name=name, daemon=True)
        self._spinning.append((executor, thread))
        thread.start()

    def _keep_time(self, name: str) -> Any:
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.parameter import Parameter

        node = self.rclpy.create_node(
            name,
            context=self.context,
            use_global_arguments=False,  # they may name the node
            parameter_overrides=[Parameter("use_sim_time", value=True)],
            start_parameter_services=False,
            enable_rosout=False,
        )
        executor = SingleThreadedExecutor(context=self.context)
        executor.add_node(node)
        self._spin(executor, name)
        return node

    @property
    def simulated_time(self) -> bool:
        """Whether this node's clock is ``/clock``."""
        return bool(self.node.get_parameter("use_sim_time").value)

    def now(self) -> float:
        """Seconds of the node's clock."""
        return self.timekeeper.get_clock().now().nanoseconds * 1e-9

    def stamp(self) -> Any:
        """Now, as a message."""
        return self.timekeeper.get_clock().now().to_msg()

    def listen(self, topic: str, kind: type, heard: Callable[[Any], None] | None = None) -> Latest:
        """Follow a topic; ``heard`` is called in the executor's thread with each message."""
        from rclpy.event_handler import SubscriptionEventCallbacks

        latest = Latest(self, topic, kind)

        def put(message: Any) -> None:
            latest.put(message)
            if heard is not None:
                heard(message)

        events = SubscriptionEventCallbacks(incompatible_qos=lambda e: self._mismatch(topic, "publisher", e))
        self.node.create_subscription(kind, topic, put, self._profile(reliable=False), event_callbacks=events)
        self.streams[topic] = latest
        return latest

    def publisher(self, topic: str, kind: type) -> Any:
        """A reliable publisher that keeps the last message."""
        from rclpy.event_handler import PublisherEventCallbacks

        events = PublisherEventCallbacks(incompatible_qos=lambda e: self._mismatch(topic, "subscriber", e))
        return self.node.create_publisher(kind, topic, self._profile(reliable=True), event_callbacks=events)

    def trigger(self, name: str, answer: Callable[[], tuple[bool, str]]) -> None:
        """Serve ``std_srvs/Trigger``: ``answer`` gives (success, message), in the executor's thread."""
        from std_srvs.srv import Trigger

        def serve(_: Any, response: Any) -> Any:
            response.success, response.message = answer()
            return response

        self.node.create_service(Trigger, name, serve)

    def pull(self, name: str, timeout: float = 5.0) -> str:
        """Call a ``std_srvs/Trigger`` service and return its message.

        Raises:
            UserError: nobody serves it, no answer in time, or it refuses.
        """
        from std_srvs.srv import Trigger

        client = self.node.create_client(Trigger, name)
        try:
            if not client.wait_for_service(timeout):
                raise UserError(f"nobody serves {name}: is its node running?")
            done = threading.Event()
            future = client.call_async(Trigger.Request())
            future.add_done_callback(lambda _: done.set())
            if not done.wait(timeout):
                raise UserError(f"{name} did not answer within {timeout:g} s")
            answer = future.result()
        finally:
            self.node.destroy_client(client)
        if not answer.success:
            raise UserError(f"{name} refuses: {answer.message}")
        return answer.message

    def set_parameter(self, node: str, name: str, value: Any, timeout: float = 5.0) -> None:
        """Set a parameter of another node.

        Raises:
            UserError: the node is not there, or refuses.
        """
        from rclpy.parameter import Parameter
        from rclpy.parameter_client import AsyncParameterClient

        client = self._parameters.setdefault(node, AsyncParameterClient(self.node, node))
        if not client.wait_for_services(timeout):
            raise UserError(f"there is no node {node} whose parameter {name} could be set")
        done = threading.Event()
        future = client.set_parameters([Parameter(name, value=value)])
        future.add_done_callback(lambda _: done.set())
        if not done.wait(timeout):
            raise UserError(f"{node} did not answer within {timeout:g} s")
        answer = future.result().results[0]
        if not answer.successful:
            raise UserError(f"{node} refuses {name}={value}: {answer.reason}")

    def require(self, streams: Sequence[Latest], timeout: float = 5.0) -> None:
        """Wait for a first message on each stream.

        Raises:
            UserError: naming the streams that gave none, and why as far as it can be seen; no ``/clock`` under
            simulated time.
        """
        until = time.monotonic() + timeout
        while self.simulated_time and self.now() == 0.0:
            if time.monotonic() > until:
                raise UserError(
                    "use_sim_time is set and /clock is silent: start the simulation that publishes it"
                )
            time.sleep(0.01)
        silent = [s for s in streams if not s.wait(0, max(0.0, until - time.monotonic()))]
        if silent:
            raise UserError(f"nothing came within {timeout:g} s: " + "; ".join(map(self._silence, silent)))

    def _silence(self, stream: Latest) -> str:
        if stream.topic in self._problems:
            return self._problems[stream.topic]
        wanted = _type_name(stream.kind)
        found = self.node.get_publishers_info_by_topic(stream.topic)
        other = sorted({p.topic_type for p in found} - {wanted})
        if other:
            return f"{stream.topic} carries {other[0]}, wanted {wanted}"
        if found:
            return f"{stream.topic} has a publisher ({found[0].node_name}) that sends nothing"
        return f"{stream.topic} has no publisher"

    def rival(self, topic: str, own: int = 0) -> str:
        """Another publisher of ``topic`` that is known by now, besides ``own`` of this node; "" if there is none."""
        names = [p.node_name for p in self.node.get_publishers_info_by_topic(topic)]
        if len(names) <= own:
            return ""
        mine = self.node.get_name()
        other = next((n for n in names if n != mine), f"another {mine}")
        return ANONYMOUS if "UNKNOWN" in other else other  # discovered, but not yet introduced

    def alone(self, topic: str, settle: float = 1.5, own: int = 0) -> None:
        """Check that nobody else publishes ``topic``; this node has ``own`` publishers of it already.

        Discovery takes its time: who must be sure looks for a ``rival`` again, later.

        Raises:
            UserError: naming the other one.
        """
        until = time.monotonic() + settle
        while True:
            other, over = self.rival(topic, own), time.monotonic() > until
            if other and (over or other != ANONYMOUS):
                raise UserError(f"{other} publishes {topic} too: two commanders, stop one of them")
            if over:
                return
            time.sleep(0.05)

    def problems(self) -> list[str]:
        """What does not match so far: one sentence for each topic."""
        return list(self._problems.values())

    def _mismatch(self, topic: str, peer: str, event: Any) -> None:
        from rclpy.qos import qos_policy_name_from_kind

        policy = qos_policy_name_from_kind(event.last_policy_kind)
        self._problems[topic] = (
            f"{topic}: a {peer}'s quality of service does not match ours ({policy.lower()}); nothing passes between them"
        )

    def _profile(self, *, reliable: bool) -> Any:
        from rclpy.qos import QoSProfile, ReliabilityPolicy

        kind = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        return QoSProfile(depth=1, reliability=kind)

    def close(self) -> None:
        """Stop the executor and leave the network."""
        from rclpy.action import ActionClient, ActionServer

        if self.context.ok():
            # An executor's own shutdown waits for nobody: what it destroys, a callback under way would still use.
            self._closing.set()
            for executor, thread in self._spinning:
                executor.create_task(lambda: None)  # wakes it
                if thread is not threading.current_thread():
                    thread.join(2.0)
                executor.shutdown(timeout_sec=1.0)
            if self.timekeeper is not self.node:
                self.timekeeper.destroy_node()
            for action in [w for w in self.node.waitables if isinstance(w, (ActionClient, ActionServer))]:
                action.destroy()  # the node does not, and its participant would stay
            self.node.destroy_node()
            self.context.try_shutdown()


class Ticker:
    """A fixed period on the node's clock: wall time by a plain sleep, simulated time by waiting for ``/clock``.

    Deadlines are absolute, so that lateness does not add up; one missed by more than a period is skipped.

    Args:
        link: whose clock.
        period: seconds of that clock.
    """

    def __init__(self, link: Link, period: float) -> None:
        self.link, self.period = link, period
        self.simulated = link.simulated_time
        self.deadline = self._now()
        self.missed = 0
        """Deadlines skipped so far."""

    def _now(self) -> float:
        return self.link.now() if self.simulated else time.monotonic()

    def wait(self, stop: threading.Event | None = None) -> float:
        """Sleep until the next deadline; returns how late it is, in seconds.

        Args:
            stop: ends the wait under simulated time, whose clock may stand still for as long as it likes.

        Raises:
            UserError: without ``stop``, ``/clock`` stands still for ``STILL`` seconds.
        """
        self.deadline += self.period
        if self.simulated:
            self._await_clock(stop)
        else:
            time.sleep(max(0.0, self.deadline - time.monotonic()))
        late = self._now() - self.deadline
        # After the sleep, which may last too long as well: whoever asks ``missed`` now knows of all of them.
        if late > self.period:
            skipped = int(late / self.period)
            self.missed += skipped
            self.deadline += skipped * self.period
        return late

    def _await_clock(self, stop: threading.Event | None) -> None:
        seen, since = self._now(), time.monotonic()
        while (now := self._now()) < self.deadline and not (stop is not None and stop.is_set()):
            if now != seen:
                seen, since = now, time.monotonic()
            elif stop is None and time.monotonic() - since > STILL:
                raise UserError(f"/clock has stood still for {STILL:g} s: is the simulation running?")
            time.sleep(0.0005)


def picture_type(camera: Any) -> type:
    """Message class of a contract's camera."""
    from sensor_msgs.msg import CompressedImage, Image

    return CompressedImage if camera.kind == "compressed" else Image


def _type_name(kind: type) -> str:
    package, _, rest = kind.__module__.partition(".")
    return f"{package}/{rest.split('.')[0]}/{kind.__name__}"
