"""Tables over seeds, against means by hand: which rows belong together, and what is subtracted from what."""

from experiments.records.text import mean_interval
from experiments.toys.seeds import averaged, expert_tables, line_table, match_tables


def cells(text: str, first: str, nth: int = 0) -> list[str]:
    """The cells behind the first one of the nth row that begins so."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0] == first][nth][1:]


def test_methods_of_a_training_may_come_from_different_runs() -> None:
    def run(method: str, share: float) -> dict[str, float]:
        return {f"{method}_correct": share, f"{method}_correct_sum": share / 2, f"{method}_median_px": 10 * share}

    text = line_table(
        {"short": [run("dsac", 0.2) | run("direct", 0.1), run("dsac", 0.4)], "long": [run("direct", 0.5)]}
    )
    assert cells(text, "short") == ["DSAC", "30.0 ± 127.1", "15.0 ± 63.5", "3.0 ± 12.7", "2"]
    assert cells(text, "short", 1) == ["direct regression", "10.0", "5.0", "1.0", "1"]
    assert cells(text, "long") == ["direct regression", "50.0", "25.0", "5.0", "1"]


def test_differences_are_of_the_same_seed() -> None:
    """Seeds differ by twenty points, methods by one: the interval of the difference is that of the difference."""
    ways = (
        "begun",
        "separate",
        "separate_mixture",
        "separate_even",
        "separate_told",
        "esac",
        "esac_even",
        "esac_hard",
        "esac_told",
    )
    shares = {"begun": [0.3, 0.5, 0.7], "separate": [0.4, 0.6, 0.8], "esac": [0.41, 0.62, 0.83]}
    runs = [
        {f"{way}_{what}": shares[way.split("_")[0]][i] for way in ways for what in ("right_expert", "correct")}
        for i in range(3)
    ]
    text = expert_tables({"clear": runs})
    assert cells(text, "ESAC less hard choice, as many steps")[1] == mean_interval([1, 2, 3], "+.1f")
    assert cells(text, "ESAC less hard choice, where it began")[0] == mean_interval([11, 12, 13], "+.1f")


def test_success_is_found_by_odds_share_and_budget() -> None:
    names = ("sampling_sharp", "weights_sharp", "classify_sharp", "ratio_sharp", "uniform", "labels")

    def rows(offset: float) -> list[dict[str, float | str]]:
        return [
            {"odds": name, "budget": budget, "share": share, "success": offset + share / 10 + budget / 1000 - i / 100}
            for i, name in enumerate(names)
            for share in (0.3, 0.6, 0.9)
            for budget in (16, 64)
        ]

    made = [rows(0.2), rows(0.4)]
    text = match_tables(made, [[], []])
    assert "30% wrong" not in text
    assert cells(text, "ratio of descriptor distances")[0] == mean_interval([20 + 6 + 1.6 - 3, 40 + 6 + 1.6 - 3], ".1f")
    assert cells(text, "ratio of descriptor distances", 1) == ["+3.0 ± 0.0"] * 2  # of sampling, less it
    hardest = cells(text, "all alike", 1)
    assert hardest == [mean_interval([20 + 9 + b - 4, 40 + 9 + b - 4], ".1f") for b in (1.6, 6.4)]
    mean = {(row["odds"], row["budget"], row["share"]): row["success"] for row in averaged(made)}
    assert len(mean) == 36
    assert abs(mean["labels", 64, 0.6] - (0.3 + 0.06 + 0.064 - 0.05)) < 1e-12
    real = match_tables(made, [[row | {"budget": 1} for row in rows(0.1)[::6] if row["odds"] != "labels"]] * 2)
    assert real.count("right matches alone") == text.count("right matches alone")
    assert "box in a video" in real
