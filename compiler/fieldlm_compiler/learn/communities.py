"""Community detection (Leiden) on a nearest-neighbour graph: groups of points, however many there are.

Every point is joined to its nearest neighbours by cosine; Leiden (Traag, Waltman and van Eck, Scientific Reports 9,
5233, 2019) finds the groups that are joined more within than without, at some resolutions from coarse to fine. The
resolution is taken whose groups agree best with what is known of some points (adjusted Rand index; Hubert and Arabie,
1985), or, where nothing is, those with the best silhouette (Rousseeuw, 1987). No number of groups has to be known.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fieldlm_compiler.learn.embed import Vectors, unit

Labels = npt.NDArray[np.int64]
Edge = tuple[str, str, float]

AXES = 100
"""Principal axes to compare by; the rest is the noise of single words."""
NEIGHBOURS = 15
VOTERS = 10
"""Nearest neighbours that decide for a point which is not part of the graph."""
NODES = 10_000
"""Points of the graph; its cost grows with the square."""
SAMPLE = 3000
"""Points that the silhouette is taken over."""
RESOLUTIONS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0)
RANDOMNESS = 0.001
MOST_JOINS = 60
"""Numbers of groups that are tried below what Leiden finds: all small ones, then ever fewer."""


class _Hints(NamedTuple):
    """What some nodes are known to be: their places, and a name for each."""

    where: list[int]
    names: list[str]

    @classmethod
    def of(cls, known: list[str], least: int) -> Self | None:
        where = [node for node, name in enumerate(known) if name]
        sizes = Counter(known[node] for node in where)
        tells_apart = sum(size >= least for size in sizes.values()) > 1
        return cls(where, [known[node] for node in where]) if tells_apart and 2 * len(where) >= len(known) else None


def communities(points: Vectors, known: Sequence[str], *, seed: int, least: int) -> list[int]:
    """Return a label per point (row), from 0 up in the order of first appearance; no group is smaller than `least`.

    `known` says for each point what it is known to be, or nothing: "". It decides how fine the groups are, not who is
    in them, and is heeded where it tells two groups apart and is there for half of the points. All points are one group
    where no split is better than none. The same arguments give the same labels.
    """
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    if len(points) < 2 * least or not np.ptp(points, axis=0).any():
        return [0] * len(points)
    # Threads that wait for each other 10,000 times a second lose more on a busy machine than they gain on an idle one.
    with threadpool_limits(limits=1):
        axes = min(AXES, *points.shape)
        reduced = unit(PCA(axes, random_state=seed).fit_transform(points).astype(np.float32))
        chosen = np.sort(np.random.default_rng(seed).permutation(len(points))[:NODES])
        nodes = reduced[chosen]
        labels = np.zeros(len(points), np.int64)
        hints = _Hints.of([known[int(index)] for index in chosen], least)
        labels[chosen] = found = _best_split(nodes, hints, seed=seed, least=least)
        others = np.setdiff1d(np.arange(len(points)), chosen)
        if len(others):
            labels[others] = _vote(reduced[others], nodes, found)
    return _in_order(labels)


def _best_split(nodes: Vectors, hints: _Hints | None, *, seed: int, least: int) -> Labels:
    """Return the labels that agree best with the hints, or without them those of the best silhouette."""
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    sample = np.random.default_rng(seed).permutation(len(nodes))[:SAMPLE]
    best, found = 0.0, np.zeros(len(nodes), np.int64)
    for split in _splits(nodes, seed=seed):
        labels = _without_small(nodes, split, least)
        if len(np.unique(labels[sample])) < 2:
            continue
        if hints is not None:
            score = float(adjusted_rand_score(hints.names, labels[hints.where]))
        else:
            score = float(silhouette_score(nodes[sample], labels[sample], metric="cosine"))
        if score > best:
            best, found = score, labels
    return found


def _splits(nodes: Vectors, *, seed: int) -> Iterator[Labels]:
    """Yield labels from coarse to fine; what Leiden finds at its coarsest is joined further by the centres' likeness.

    Many examples in the same words are near nobody but each other, and a graph without a way between them is never
    joined by Leiden.
    """
    import graspologic_native
    from scipy.cluster.hierarchy import fcluster, linkage

    leiden: Any = vars(graspologic_native)["leiden"]  # a compiled module without types
    if not (edges := _edges(nodes)):
        return  # each is like no other one
    for resolution in RESOLUTIONS:
        _, of_node = leiden(edges, resolution=resolution, randomness=RANDOMNESS, seed=seed)
        # A node that is like no other one has no edge.
        labels = np.array([of_node.get(str(node), -1) for node in range(len(nodes))])
        if resolution == RESOLUTIONS[0]:
            groups, place = np.unique(labels, return_inverse=True)
            centres = unit(np.stack([nodes[labels == group].mean(axis=0) for group in groups]))
            # SciPy's own cosine is undefined where a centre is nothing: that of empty utterances.
            apart = (1.0 - centres @ centres.T).clip(0.0)[np.triu_indices(len(groups), 1)]
            tree = linkage(apart, "average") if len(groups) > 2 else None
            counts = np.unique(np.geomspace(2, len(groups) - 1, MOST_JOINS).astype(int)) if tree is not None else ()
            for count in counts:
                yield fcluster(tree, count, "maxclust")[place].astype(np.int64)
        yield labels


def _edges(nodes: Vectors) -> list[Edge]:
    """Join each node to its nearest ones; squared cosines as weights, so that what is far counts little."""
    distances, neighbours = _nearest(nodes, nodes, NEIGHBOURS + 1)
    weights: dict[tuple[int, int], float] = {}
    for node in range(len(nodes)):
        for distance, other in zip(distances[node], neighbours[node], strict=True):
            likeness = 1.0 - float(distance)
            if other != node and likeness > 0:
                weights[min(node, int(other)), max(node, int(other))] = likeness**2
    return [(str(one), str(other), weight) for (one, other), weight in weights.items()]


def _without_small(nodes: Vectors, labels: Labels, least: int) -> Labels:
    """Give the points of groups below `least`, and of none, to the group of large ones whose centre is nearest."""
    sizes = Counter(labels.tolist())
    large = sorted(label for label, size in sizes.items() if size >= least and label >= 0)
    if not large:
        return np.zeros_like(labels)
    centres = unit(np.stack([nodes[labels == label].mean(axis=0) for label in large]))
    strays = ~np.isin(labels, large)
    joined = labels.copy()
    joined[strays] = np.array(large)[(nodes[strays] @ centres.T).argmax(axis=1)]
    return joined


def _vote(points: Vectors, nodes: Vectors, labels: Labels) -> Labels:
    """Return for each of `points` the label that most of its nearest nodes have."""
    _, neighbours = _nearest(points, nodes, VOTERS)
    return np.array([Counter(labels[row].tolist()).most_common(1)[0][0] for row in neighbours], np.int64)


def _nearest(points: Vectors, nodes: Vectors, count: int) -> tuple[Vectors, Labels]:
    from sklearn.neighbors import NearestNeighbors

    index: Any = NearestNeighbors(n_neighbors=min(count, len(nodes)), metric="cosine").fit(nodes)
    return index.kneighbors(points)


def _in_order(labels: Labels) -> list[int]:
    """Number the labels by their first appearance."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels.tolist()]
