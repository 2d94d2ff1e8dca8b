"""Fronts of points whose every coordinate is to be maximized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Point: TypeAlias = tuple[float, ...]


def dominates(a: Point, b: Point) -> bool:
    """Whether a is nowhere worse than b, and somewhere better."""
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def layers(points: Mapping[int, Point]) -> list[list[int]]:
    """Non-dominated sorting (Deb et al. 2002): the keys of the front, of the front without those, and so on; within a
    layer by falling first coordinate."""
    left, sorted_layers = dict(points), []
    while left:
        layer = [key for key, point in left.items() if not any(dominates(other, point) for other in left.values())]
        sorted_layers.append(sorted(layer, key=lambda key: (tuple(-x for x in points[key]), key)))
        left = {key: point for key, point in left.items() if key not in layer}
    return sorted_layers
