"""A managed ROS 2 node (lifecycle) around work that runs in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from vla_rl.errors import UserError

PATIENCE = 30.0
"""Seconds that work may take to end."""


class Work:
    """What a ``Shell`` runs: built at configure, ``run`` while active, closed at cleanup."""

    say: Callable[[str], Any] = print
    """Takes a line for the log."""

    def run(self) -> None:
        """Until ``stop``; in a thread of its own, once for each activation."""
        raise NotImplementedError

    def stop(self) -> None:
        """End ``run`` soon; called from another thread."""
        raise NotImplementedError

    def close(self) -> None:
        """Release everything."""
        raise NotImplementedError


class Shell(LifecycleNode):
    """Lifecycle transitions of some work. One that goes wrong is refused with the reason in the log.

    Args:
        name: of the node.
        parameters: name -> (default, what it is).
        make: gives the work; it is handed a function that gives a parameter's value.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, tuple[Any, str]],
        make: Callable[[Callable[[str], Any]], Work],
        **options: Any,
    ) -> None:
        from rcl_interfaces.msg import ParameterDescriptor

        super().__init__(name, **options)
        for key, (default, words) in parameters.items():
            self.declare_parameter(key, default, ParameterDescriptor(description=words))
        self.make, self.work, self.thread = make, None, None

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Build the work."""
        try:
            self.work = self.make(lambda key: self.get_parameter(key).value)
        except UserError as error:
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        self.work.say = self.get_logger().info
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin."""
        self.thread = threading.Thread(target=self._run, name="work", daemon=True)
        self.thread.start()
        return super().on_activate(state)

    def _run(self) -> None:
        assert self.work is not None
        try:
            self.work.run()
            return
        except Exception as error:
            self.get_logger().error(f"{type(error).__name__}: {error}")
        # From the executor's thread, as any transition is.
        self.create_timer(0.0, self._give_up)

    def _give_up(self) -> None:
        for timer in list(self.timers):
            self.destroy_timer(timer)
        self.trigger_deactivate()

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End."""
        return super().on_deactivate(state) if self._end() else TransitionCallbackReturn.ERROR

    def _end(self) -> bool:
        if self.work is None or self.thread is None:
            return True
        self.work.stop()
        self.thread.join(PATIENCE)
        return not self.thread.is_alive()

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of the work."""
        self._end()
        if self.work is not None:
            self.work.close()
        self.work = self.thread = None
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """From any state."""
        return self.on_cleanup(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured."""
        return self.on_cleanup(state)


def spin(make: Callable[[], Shell]) -> None:
    """Run a shell until it is interrupted or terminated; its work ends first."""
    import signal

    import rclpy
    from rclpy.executors import ExternalShutdownException

    rclpy.init()
    node = make()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node._end()
        if node.work is not None:
            node.work.close()
        node.destroy_node()
        rclpy.try_shutdown()
