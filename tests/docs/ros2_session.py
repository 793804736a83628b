"""A robot's other nodes, for test_ros2.py: python ros2_session.py SOCKET SCHEMA, where rclpy and the packages are."""

import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import rclpy
from action_msgs.msg import GoalStatus
from fieldlm_interfaces.action import Ask
from fieldlm_interfaces.srv import Decide
from fieldlm_ros.node import FieldlmNode
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.action import ActionClient
from rclpy.executors import MultiThreadedExecutor
from rclpy.parameter import Parameter

PATIENCE_S = 240.0


def done(future: Any) -> Any:
    ended = threading.Event()
    future.add_done_callback(lambda _: ended.set())
    assert ended.wait(PATIENCE_S), "nothing came"
    return future.result()


def until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def decides(other: Any) -> None:
    decide = other.create_client(Decide, "/fieldlm/decide")
    assert decide.wait_for_service(PATIENCE_S)
    move = done(decide.call_async(Decide.Request(question="A wall stands on the left. Where do you go?")))
    assert move.ok, move.error
    assert move.direction in ("forward", "left", "right", "stop")
    assert 0 <= move.metres <= 3
    never = done(decide.call_async(Decide.Request(question="Where do you go?", deadline_s=0.001)))
    assert not never.ok
    assert never.error


def is_cancelled(goal: Any) -> None:
    done(goal.cancel_goal_async())
    cut = done(goal.get_result_async())
    assert (cut.status, cut.result.outcome) == (GoalStatus.STATUS_CANCELED, "cancelled")


def main(socket: str, schema: str) -> None:
    rclpy.init()
    settings = {"socket": socket + ".nobody", "schema": schema, "deadline_s": 120.0}
    node = FieldlmNode(parameter_overrides=[Parameter(name, value=value) for name, value in settings.items()])
    other = rclpy.create_node("other")
    executor = MultiThreadedExecutor(6)
    executor.add_node(node)
    executor.add_node(other)
    spinning = threading.Thread(target=executor.spin)
    spinning.start()
    change = other.create_client(ChangeState, "/fieldlm/change_state")
    assert change.wait_for_service(PATIENCE_S)

    def go(transition: int) -> bool:
        return done(change.call_async(ChangeState.Request(transition=Transition(id=transition)))).success

    assert not go(Transition.TRANSITION_CONFIGURE), "nobody answers at that socket"
    node.set_parameters([Parameter("socket", value=socket)])
    assert go(Transition.TRANSITION_CONFIGURE)
    assert go(Transition.TRANSITION_ACTIVATE)

    ask = ActionClient(other, Ask, "/fieldlm/ask")
    assert ask.wait_for_server(PATIENCE_S)
    said: list[str] = []

    def start(**goal: Any) -> Any:
        said.clear()
        return done(ask.send_goal_async(Ask.Goal(**goal), lambda message: said.append(message.feedback.text)))

    assert not start(prompt="").accepted
    ended = done(start(prompt="What is a robot?", max_tokens=12).get_result_async())
    assert ended.status == GoalStatus.STATUS_SUCCEEDED
    assert ended.result.outcome in ("stop", "length")
    assert math.isnan(ended.result.confidence)
    until(lambda: "".join(said) == ended.result.text != "")

    late = done(start(prompt="Count to a thousand.", max_tokens=1500, deadline_s=0.001).get_result_async())
    assert (late.status, late.result.outcome) == (GoalStatus.STATUS_ABORTED, "deadline_exceeded")

    long = start(prompt="Count from one to a thousand, in words.", max_tokens=1500)
    until(lambda: bool(said))
    is_cancelled(long)

    decides(other)

    long = start(prompt="Count from one to a thousand, in words.", max_tokens=1500)
    until(lambda: bool(said))
    assert go(Transition.TRANSITION_DEACTIVATE)
    until(lambda: not ask.server_is_ready())
    assert go(Transition.TRANSITION_ACTIVATE)
    assert ask.wait_for_server(PATIENCE_S)
    assert done(start(prompt="Hello", max_tokens=4).get_result_async()).status == GoalStatus.STATUS_SUCCEEDED
    assert go(Transition.TRANSITION_DEACTIVATE)
    assert go(Transition.TRANSITION_CLEANUP)
    executor.shutdown()
    spinning.join(PATIENCE_S)
    node.destroy_node()
    other.destroy_node()
    rclpy.try_shutdown()
    print("configured, answered, late, cancelled, decided, deactivated")


if __name__ == "__main__":
    main(*sys.argv[1:3])
