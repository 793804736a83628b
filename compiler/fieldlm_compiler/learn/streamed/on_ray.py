"""Blocks of examples on a Ray cluster: as many at a time as it has processors, whose labels come home in order.

Nodes share no file system: what places a block goes through the object store once, and each block with its task. A node
that is lost costs its blocks another try, which Ray sees to.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from fieldlm.core.errors import EngineError, UnavailableError
from fieldlm_compiler.learn.communities import Labels
from fieldlm_compiler.learn.streamed.placing import Placer, in_turn
from fieldlm_compiler.pipeline.llama_toolchain import installed
from fieldlm_compiler.pipeline.ray_cluster import check_packages, keep_interrupt, last_line

NEEDED = ("fieldlm-compiler", "numpy", "scikit-learn", "scipy", "threadpoolctl", "tokenizers")
"""What a node has in the same version, or labels might be others."""
AHEAD = 2
"""Blocks for each processor that are on their way."""


def check_cluster() -> None:
    """Raise UnavailableError where the cluster that this process belongs to has no processor.

    EngineError where a node that is asked has other packages.
    """
    ray: Any = import_module("ray")
    if not _processors(ray):
        raise UnavailableError("the cluster has no processor for a block of examples; add a node with one")
    with _told(ray):
        ray.get(ray.remote(check_packages).options(num_cpus=1).remote(installed(NEEDED)))


def on_cluster(placer: Placer, lines: Iterator[bytes]) -> Generator[Labels]:
    """Place the blocks on the cluster that this process belongs to (`ray_cluster.connected`).

    Raises EngineError where a node has other packages, or Ray gives up.
    """
    ray: Any = import_module("ray")
    task = ray.remote(place_one).options(num_cpus=1)
    with _told(ray), keep_interrupt() as check:
        sent, needs = ray.put(placer), installed(NEEDED)

        def labels(block: Any) -> Labels:
            check()
            return ray.get(block)

        ahead = AHEAD * max(1, _processors(ray))
        yield from in_turn(lines, ahead, lambda block: task.remote(sent, block, needs), labels)


def place_one(placer: Placer, block: bytes, needs: dict[str, str]) -> Labels:
    """Place a block on this node."""
    from threadpoolctl import threadpool_limits

    check_packages(needs)
    with threadpool_limits(limits=1):
        return placer(block)


def _processors(ray: Any) -> int:
    return int(ray.cluster_resources().get("CPU", 0))


@contextmanager
def _told(ray: Any) -> Generator[None]:
    """Turn what Ray raises into EngineError; a client's side of it raises ConnectionError, too."""
    try:
        yield
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise EngineError(f"the cluster could not place the requests: {last_line(error)}") from error
