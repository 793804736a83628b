"""The node: ros2 run fieldlm_ros fieldlm --ros-args -p socket:=/run/fieldlm/fieldlm.sock; then configure, activate.

Action `~/ask` (fieldlm_interfaces/action/Ask): feedback is the answer as it comes, cancelling the goal stops the model.
Service `~/decide` (parameter `service_type`): an object of the form `schema`, by its deadline, or `ok` false.
The model runs beside, in a server that `fieldlm serve --socket` started: a callback only waits, on a thread of its own.
"""

import json
import math
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import rclpy
from ament_index_python.packages import get_package_share_directory
from fieldlm_interfaces.action import Ask
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from fieldlm_ros.client import Answer, ServerError, decide, is_ready

DONE = TransitionCallbackReturn.SUCCESS
CANCEL_S = 0.5


class FieldlmNode(LifecycleNode):
    """Unconfigured until its server answers; inactive it has no action and no service."""

    def __init__(self, **options: Any) -> None:
        super().__init__("fieldlm", **options)
        self.declare_parameter("socket", "/run/fieldlm/fieldlm.sock")
        self.declare_parameter("schema", "")
        self.declare_parameter("service_type", "fieldlm_interfaces/srv/Decide")
        self.declare_parameter("deadline_s", 2.0)
        self._running: dict[bytes, Answer] = {}
        self._served: list[Any] = []

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._socket = str(self.get_parameter("socket").value)
        self._deadline_s = float(self.get_parameter("deadline_s").value)
        schema = self.get_parameter("schema").value or f"{get_package_share_directory('fieldlm_ros')}/move.json"
        try:
            self._schema = json.loads(Path(schema).read_text())
            package, kind, name = str(self.get_parameter("service_type").value).split("/")
            self._service = getattr(import_module(f"{package}.{kind}"), name)
        except (OSError, ValueError, ImportError, AttributeError) as error:
            self.get_logger().error(f"the form of decisions cannot be read: {error}")
            return TransitionCallbackReturn.FAILURE
        if not is_ready(self._socket):
            self.get_logger().error(f"no model answers at {self._socket}; is `fieldlm serve --socket` running?")
            return TransitionCallbackReturn.FAILURE
        return DONE

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        # A goal waits for its answer while others come, are cancelled, and decisions are made.
        group = ReentrantCallbackGroup()
        ask = ActionServer(
            self,
            Ask,
            "~/ask",
            self._answer,
            callback_group=group,
            goal_callback=lambda goal: GoalResponse.ACCEPT if goal.prompt else GoalResponse.REJECT,
            cancel_callback=self._cancel,
        )
        decide_service = self.create_service(self._service, "~/decide", self._decide, callback_group=group)
        self._served = [ask.destroy, lambda: self.destroy_service(decide_service)]
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._end()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return DONE

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._end()
        return DONE

    def _end(self) -> None:
        for answer in list(self._running.values()):
            answer.cancel()
        while self._served:
            self._served.pop()()

    def _cancel(self, handle: Any) -> CancelResponse:
        if answer := self._running.get(bytes(handle.goal_id.uuid)):
            answer.cancel()
        return CancelResponse.ACCEPT

    def _answer(self, handle: Any) -> Ask.Result:
        goal = handle.request
        system = [{"role": "system", "content": goal.system}] if goal.system else []
        body: dict[str, Any] = {
            "messages": [*system, {"role": "user", "content": goal.prompt}],
            "max_tokens": goal.max_tokens or 256,
        }
        if goal.deadline_s > 0:
            body["deadline_ms"] = max(1, round(1000 * goal.deadline_s))
        key = bytes(handle.goal_id.uuid)
        answer = self._running[key] = Answer(self._socket, body)
        try:
            if handle.is_cancel_requested:
                answer.cancel()
            for piece in answer:
                handle.publish_feedback(Ask.Feedback(text=piece))
            handle.succeed()
        except ServerError as error:
            answer.outcome = error.outcome
            # rclpy notes the wish when `_cancel` has returned, which was after this thread was woken.
            patience_s = time.monotonic() + CANCEL_S
            while answer.is_cancelled and not handle.is_cancel_requested and time.monotonic() < patience_s:
                time.sleep(0.002)
            if handle.is_cancel_requested:
                handle.canceled()
            else:
                self.get_logger().warning(f"no whole answer: {error}")
                handle.abort()
        finally:
            del self._running[key]
        confidence = math.nan if answer.confidence is None else answer.confidence
        return Ask.Result(text=answer.text, outcome=answer.outcome, confidence=confidence)

    def _decide(self, request: Any, response: Any) -> Any:
        try:
            found = decide(self._socket, request.question, self._schema, request.deadline_s or self._deadline_s)
            for name, value in found.items():
                setattr(response, name, value)
            response.ok = True
        except (ServerError, AttributeError, AssertionError, TypeError) as error:
            response.ok, response.error = False, str(error)
        return response


def main() -> None:
    """Spin the node until Ctrl-C or SIGTERM."""
    rclpy.init()
    node = FieldlmNode()
    executor = MultiThreadedExecutor()
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
