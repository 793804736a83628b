"""Community detection (Leiden) on a nearest-neighbour graph: groups of points, however many there are.

Every point is joined to its nearest neighbours by cosine; Leiden (Traag, Waltman and van Eck, Scientific Reports 9,
5233, 2019) finds the groups that are joined more within than without, at some resolutions from coarse to fine. Where
something is known of the points, the resolution is taken whose groups agree best with it (adjusted Rand index; Hubert
and Arabie, 1985). Where nothing is, two groups stay apart if fewer than CROSSING of their links go from one to
the other: with k groups of a size, modularity joins at the resolution r what has more than r/k of its links in common,
so that the resolution is taken which is nearest to CROSSING times the number of groups that it finds. A silhouette
(Rousseeuw, 1987) far below the best one rules a resolution out. No number of groups has to be known.
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
NEIGHBOURS, FEW = 15, 4000
"""Nearest neighbours that a point is joined to, among up to FEW points; among more as many times more.

Else groups would be joined less and found finer, the more is said of each task.
"""
VOTERS = 10
"""Nearest neighbours that decide for a point which is not part of the graph."""
NODES = 6000
"""Points of the graph; its cost grows with the square."""
BLOCK = 1000
SAMPLE = 2000
"""Points that the silhouette is taken over."""
RESOLUTIONS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 16.0, 24.0, 32.0)
CROSSING = 1 / 9
"""Share of the links of one group that may go to another of its size before the two are one."""
FINEST = 1.5
"""Times the resolution of CROSSING beyond which none is tried."""
GOOD = 0.9
"""Share of the best silhouette that a split must have."""
FAMILY = 3
"""Groups that a group of groups has on average, at least."""
BOND = 3.0
RANDOMNESS = 0.001
ITERATIONS = 5
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

    def agreement(self, labels: Labels) -> float:
        from sklearn.metrics import adjusted_rand_score

        return float(adjusted_rand_score(self.names, labels[self.where]))


class _Split(NamedTuple):
    """Labels that were tried; `resolution` is 0 where groups of the coarsest one were joined further."""

    resolution: float
    labels: Labels


def communities(
    points: Vectors,
    known: Sequence[str],
    *,
    seed: int,
    least: int,
    counts: Sequence[int] | None = None,
    before: Sequence[str] | None = None,
) -> list[int]:
    """Return a label per point (row), from 0 up in the order of first appearance; no group is smaller than `least`.

    `known` says for each point what it is known to be, or nothing: "". It decides how fine the groups are, not who is
    in them, and is heeded where it tells two groups apart and is there for half of the points. `counts` says how often
    each point is there, by default once. `before` says in which group each point was, or "": groups start from there,
    and where `known` says nothing are as fine as they were. All points are one group where no split is better than
    none. The same arguments give the same labels.
    """
    from threadpoolctl import threadpool_limits

    times = np.ones(len(points), np.int64) if counts is None else np.array(counts, np.int64)
    if times.sum() < 2 * least or len(points) < 2 or not np.ptp(points, axis=0).any():
        return [0] * len(points)
    was = list(before or [""] * len(points))
    # Threads that wait for each other 10,000 times a second lose more on a busy machine than they gain on an idle one.
    with threadpool_limits(limits=1):
        chosen = _chosen(len(points), seed)
        reduced = _reduce(points, chosen, seed)
        nodes = reduced[chosen]
        names = [known[int(index)] for index in chosen]
        past = [was[int(index)] for index in chosen]
        hints = _Hints.of(names, least) or _Hints.of(past, least)
        labels = np.zeros(len(points), np.int64)
        # What is left out is of the same kinds: a group must have its share of `least` among the nodes.
        fewest = max(2, round(least * len(chosen) / len(points)))
        labels[chosen] = found = _best_split(nodes, hints, past, times[chosen], seed=seed, least=fewest)
        others = np.setdiff1d(np.arange(len(points)), chosen)
        if len(others):
            labels[others] = _vote(reduced[others], nodes, found)
    return _in_order(labels)


def parts(points: Vectors, *, seed: int, least: int, counts: Sequence[int]) -> list[int]:
    """Return a label per point, as `communities` does, for points that somebody says are of several groups.

    Where no split is better than none, the coarsest one that there is; one label where groups of `least` are none.
    """
    from threadpoolctl import threadpool_limits

    labels = communities(points, [""] * len(points), seed=seed, least=least, counts=counts)
    if len(set(labels)) > 1 or len(points) < 2 or not np.ptp(points, axis=0).any():
        return labels
    with threadpool_limits(limits=1):
        chosen = np.arange(min(len(points), NODES))
        reduced = _reduce(points, chosen, seed)
        times = np.array(counts, np.int64)
        fewest = max(2, round(least * len(chosen) / len(points)))
        for resolution, split in _splits(reduced[chosen], [""] * len(chosen), seed=seed):
            found = _without_small(reduced[chosen], split, times[chosen], fewest)
            if resolution and len(np.unique(found)) > 1:
                rest = reduced[len(chosen) :]
                return _in_order(np.concatenate([found, _vote(rest, reduced[chosen], found)]) if len(rest) else found)
    return labels


class Voter:
    """Which group a point belongs to that had no part in finding them: that of most of its nearest nodes."""

    def __init__(self, points: Vectors, labels: Labels, *, seed: int) -> None:
        """Draw nodes from `points`, whose groups are `labels`, as `communities` does with the same seed."""
        chosen = _chosen(len(points), seed)
        self._axes: Any = _axes(points, chosen, seed)
        self._nodes, self._labels = unit(self._axes.transform(points[chosen])), labels[chosen]

    def __call__(self, points: Vectors) -> Labels:
        """Return the label of each of `points`."""
        return _vote(unit(self._axes.transform(points)), self._nodes, self._labels)


def _chosen(count: int, seed: int) -> npt.NDArray[Any]:
    """Return the places of the nodes among so many points."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:NODES])


def _axes(points: Vectors, chosen: npt.NDArray[Any], seed: int) -> Any:
    from sklearn.decomposition import PCA

    return PCA(min(AXES, len(chosen), points.shape[1]), random_state=seed).fit(points[chosen])


def _reduce(points: Vectors, chosen: npt.NDArray[Any], seed: int) -> Vectors:
    """Return the points on the principal axes of the `chosen` ones, as rows of length 1."""
    axes = _axes(points, chosen, seed)
    return unit(np.vstack([axes.transform(points[row : row + SAMPLE]) for row in range(0, len(points), SAMPLE)]))


def _best_split(
    nodes: Vectors, hints: _Hints | None, past: list[str], counts: Labels, *, seed: int, least: int
) -> Labels:
    """Return the labels that agree best with the hints, or without them those that cross least where tasks meet."""
    from sklearn.metrics import silhouette_score

    sample = np.random.default_rng(seed).permutation(len(nodes))[:SAMPLE]
    tried: list[tuple[float, _Split]] = []
    for resolution, split in _splits(nodes, past, seed=seed):
        labels = _without_small(nodes, split, counts, least)
        if not 1 < len(np.unique(labels[sample])) < len(sample):
            continue
        if hints is not None:
            score = hints.agreement(labels)
        else:
            score = float(silhouette_score(nodes[sample], labels[sample], metric="cosine"))
        if score > 0:
            tried.append((score, _Split(resolution, labels)))
        if hints is None and resolution > FINEST * CROSSING * len(np.unique(labels)):
            break  # the share of crossing links only falls from here
    if not tried:
        return np.zeros(len(nodes), np.int64)
    best, joined = max(tried, key=lambda one: one[0])
    fit = [split for score, split in tried if split.resolution and score >= GOOD * best]
    if hints is not None or not fit:
        return joined.labels
    return min(fit, key=_odds).labels


def _odds(split: _Split) -> float:
    """Return how far a split is from where its groups have just CROSSING of their links in common."""
    return abs(float(np.log(split.resolution / (CROSSING * len(np.unique(split.labels))))))


def _splits(nodes: Vectors, past: list[str], *, seed: int) -> Iterator[_Split]:
    """Yield labels from coarse to fine; what Leiden finds at its coarsest is joined further by the centres' likeness.

    Many examples in the same words are near nobody but each other, and a graph without a way between them is never
    joined by Leiden.
    """
    import graspologic_native
    from scipy.cluster.hierarchy import fcluster, linkage

    leiden: Any = vars(graspologic_native)["leiden"]  # a compiled module without types
    if not (edges := _edges(nodes, past)):
        return  # each is like no other one
    start = _start(edges, past)
    for resolution in RESOLUTIONS:
        _, of_node = leiden(
            edges, start, resolution=resolution, randomness=RANDOMNESS, iterations=ITERATIONS, seed=seed
        )
        # A node that is like no other one has no edge.
        labels = np.array([of_node.get(str(node), -1) for node in range(len(nodes))])
        if resolution == RESOLUTIONS[0]:
            groups, place = np.unique(labels, return_inverse=True)
            tree = linkage(_apart(nodes, labels), "average") if len(groups) > 2 else None
            counts = np.unique(np.geomspace(2, len(groups) - 1, MOST_JOINS).astype(int)) if tree is not None else ()
            for count in counts:
                yield _Split(0.0, fcluster(tree, count, "maxclust")[place].astype(np.int64))
        yield _Split(resolution, labels)


def _apart(nodes: Vectors, labels: Labels) -> Vectors:
    """Return the distances of the groups' centres, condensed as SciPy has them."""
    centres = unit(np.stack([nodes[labels == group].mean(axis=0) for group in np.unique(labels)]))
    # SciPy's own cosine is undefined where a centre is nothing: that of empty utterances.
    return (1.0 - centres @ centres.T).clip(0.0)[np.triu_indices(len(centres), 1)]


def _start(edges: list[Edge], past: list[str]) -> dict[str, int] | None:
    """Return the group that each node starts in: that of the past, or for a new one that of its nearest neighbours."""
    if not any(past):
        return None
    votes: dict[str, Counter[str]] = {}
    for one, other, weight in edges:
        for node, neighbour in ((one, other), (other, one)):
            group = past[int(neighbour)]
            votes.setdefault(node, Counter())[group] += weight if group else 0  # pyright: ignore[reportArgumentType]
    groups = {name: number for number, name in enumerate(sorted({name for name in past if name}))}
    start: dict[str, int] = {}
    for node, counted in votes.items():
        name = past[int(node)] or max(counted, key=lambda group: (counted[group], group))
        start[node] = groups.setdefault(name, len(groups))
    return start


def _edges(nodes: Vectors, past: list[str]) -> list[Edge]:
    """Join each node to its nearest ones; squared cosines as weights, so that what is far counts little.

    Links within a group of the past count BOND times: a group may well fall apart, but none changes hands for little.
    """
    count = round(NEIGHBOURS * max(1.0, len(nodes) / FEW))
    distances, neighbours = _nearest(nodes, nodes, count + 1)
    weights: dict[tuple[int, int], float] = {}
    for node in range(len(nodes)):
        for distance, other in zip(distances[node], neighbours[node], strict=True):
            likeness = 1.0 - float(distance)
            if other != node and likeness > 0:
                bond = BOND if past[node] and past[node] == past[int(other)] else 1.0
                weights[min(node, int(other)), max(node, int(other))] = bond * likeness**2
    return [(str(one), str(other), weight) for (one, other), weight in weights.items()]


def _without_small(nodes: Vectors, labels: Labels, counts: Labels, least: int) -> Labels:
    """Give the points of groups below `least`, and of none, to the group of large ones whose centre is nearest."""
    sizes: Counter[int] = Counter()
    for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
        sizes[label] += count
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
    """Return the cosine distances and the places of the nearest nodes, nearest first; a block of rows at a time."""
    count = min(count, len(nodes))
    distances, places = np.empty((len(points), count), np.float32), np.empty((len(points), count), np.int64)
    for start in range(0, len(points), BLOCK):
        apart = 1.0 - points[start : start + BLOCK] @ nodes.T
        near = np.argpartition(apart, count - 1, axis=1)[:, :count]
        order = np.argsort(np.take_along_axis(apart, near, axis=1), axis=1, kind="stable")
        places[start : start + BLOCK] = near = np.take_along_axis(near, order, axis=1)
        distances[start : start + BLOCK] = np.take_along_axis(apart, near, axis=1)
    return distances, places


def _in_order(labels: Labels) -> list[int]:
    """Number the labels by their first appearance."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels.tolist()]


def joined(centres: Vectors) -> Labels:
    """Return a label per group for a level above: the tree of their centres, cut where the silhouette is best.

    At most a third as many as there are groups; fewer than twice FAMILY groups are all of one label.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from sklearn.metrics import silhouette_score

    found = np.zeros(len(centres), np.int64)
    if len(centres) < 2 * FAMILY or not np.ptp(centres, axis=0).any():
        return found
    apart = unit(centres - centres.mean(axis=0))
    tree = linkage(_apart(apart, np.arange(len(apart))), "average")
    best = 0.0
    for count in range(2, len(centres) // FAMILY + 1):
        labels = fcluster(tree, count, "maxclust").astype(np.int64)
        score = float(silhouette_score(apart, labels, metric="cosine")) if len(np.unique(labels)) > 1 else 0.0
        if score > best:
            best, found = score, labels
    return np.array(_in_order(found), np.int64)
