"""What is one too many among unknowns that are sought together."""

from experiments.running.determined import undetermined_names


def test_a_group_that_goes_with_those_before_it_is_kept() -> None:
    asked: list[tuple[str, ...]] = []

    def at_most_three_without_c(names: tuple[str, ...]) -> bool:
        asked.append(names)
        return len(names) <= 3 and "c" not in names

    groups = [("a", "b"), ("c",), ("d",), ("e",)]
    assert undetermined_names(groups, at_most_three_without_c) == ("c", "e")
    assert asked == [("a", "b"), ("a", "b", "c"), ("a", "b", "d"), ("a", "b", "d", "e")]
