"""Fronts of points whose every coordinate is to be maximized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

Point: TypeAlias = tuple[float, ...]


def dominates(a: Point, b: Point) -> bool:
    """Whether a is nowhere worse than b, and somewhere better."""
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def front(points: Mapping[int, Point]) -> list[int]:
    """The keys of the points that no other one dominates, by falling first coordinate."""
    found: list[int] = []
    for key in sorted(points, key=lambda key: (tuple(-x for x in points[key]), key)):
        if not any(dominates(points[other], points[key]) for other in found):  # what dominates it came before it
            found.append(key)
    return found


def layers(points: Mapping[int, Point]) -> list[list[int]]:
    """Non-dominated sorting (Deb et al. 2002): the keys of the front, of the front without those, and so on; within a
    layer by falling first coordinate."""
    left, sorted_layers = dict(points), []
    while left:
        layer = [key for key, point in left.items() if not any(dominates(other, point) for other in left.values())]
        sorted_layers.append(sorted(layer, key=lambda key: (tuple(-x for x in points[key]), key)))
        left = {key: point for key, point in left.items() if key not in layer}
    return sorted_layers


def hypervolume(points: Iterable[Point]) -> float:
    """The volume that points dominate above the origin, slice by slice of the last coordinate.

    For a handful of points; Optuna's faster function is private.
    """
    inside = [point for point in points if min(point) > 0]
    if not inside:
        return 0.0
    if len(inside[0]) == 1:
        return max(point[0] for point in inside)
    total = below = 0.0
    for level in sorted({point[-1] for point in inside}):
        total += (level - below) * hypervolume(point[:-1] for point in inside if point[-1] >= level)
        below = level
    return total
