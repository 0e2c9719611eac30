"""Draws part of a labeled set without separating what belongs together, such as copies of a picture."""

from collections import Counter
from collections.abc import Iterable, Sequence


def draw(units: Iterable[Sequence[int]], quotas: Sequence[int], totals: Sequence[int]) -> set[int]:
    """Return the positions of the units that are drawn.

    units: the labels of the members of each, in random order; quotas: how many members of each class to draw;
    totals: how many there are. A unit is drawn if that brings the numbers closer to the quotas, summed over the
    classes, and leaves each class a member. This is the greedy rule of scikit-learn's StratifiedGroupKFold for one
    fold of any size; single members are drawn in order until the quotas are reached.
    """
    missing, left = list(quotas), list(totals)
    drawn = set()
    for position, labels in enumerate(units):
        counts = Counter(labels)
        closer = sum(abs(missing[label]) - abs(missing[label] - count) for label, count in counts.items())
        if closer > 0 and (len(labels) == 1 or all(left[label] > count for label, count in counts.items())):
            drawn.add(position)
            for label, count in counts.items():
                missing[label] -= count
                left[label] -= count
    return drawn
