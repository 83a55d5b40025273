"""Who dominates whom, and what a front is worth: pure functions on points that are minimised in every coordinate."""

from collections.abc import Sequence

Point = tuple[float, ...]


def dominates(a: Point, b: Point) -> bool:
    """Say whether `a` is no worse than `b` in every coordinate and better in one."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def find_front(points: Sequence[Point]) -> list[int]:
    """Return the places of the points that no other dominates, ascending; of equal ones all."""
    return [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the area (for one coordinate, the length) that the points dominate below the reference.

    Args:
        points: one or two coordinates each; those that are not below the reference count for nothing.
        reference: where every coordinate is as bad as it may be.
    """
    inside = sorted({point for point in points if all(x < r for x, r in zip(point, reference, strict=True))})
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - inside[0][0]
    assert len(reference) == 2
    area, ceiling = 0.0, reference[1]
    for x, y in inside:  # by the first coordinate: each adds the strip between it and the lowest so far
        if y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return area
