"""stages/common/drawing.py: parts of a set of about the wanted size, and nothing separated."""

import random

from stages.common.drawing import draw


def test_single_members_are_drawn_in_order_until_the_quotas_are_reached() -> None:
    assert draw([[0], [1], [0], [1], [0]], [2, 1], [3, 2]) == {0, 1, 2}


def test_a_unit_that_leads_further_from_the_quotas_is_not_drawn() -> None:
    assert draw([[0] * 10, [0] * 3, [0]], [4], [14]) == {1, 2}


def test_no_class_is_drawn_as_a_whole() -> None:
    assert draw([[0, 1], [0]], [1, 1], [2, 1]) == {1}


def test_the_parts_of_large_sets_are_close_to_the_quotas() -> None:
    generator = random.Random(0)
    units = [[generator.randrange(3) for _ in range(generator.randrange(1, 9))] for _ in range(500)]
    totals = [sum(unit.count(label) for unit in units) for label in range(3)]
    quotas = [total // 5 for total in totals]
    drawn = [label for position in draw(units, quotas, totals) for label in units[position]]
    assert all(abs(drawn.count(label) - quotas[label]) <= 5 for label in range(3))
