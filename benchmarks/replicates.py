"""How surely `--replicates` finds a difference, and that it finds none where there is none: simulated searches.

    python benchmarks/replicates.py                    # the tables of docs/search.md
    python benchmarks/replicates.py --searches 200     # fewer

A training's value on an image is the mean of its settings, plus the luck of its seed (0.1 dB between trainings), plus
the image's difficulty (3 dB), plus what this network makes of this image (0.5 dB). Validation has 5,000 images. The
race is the product's: hpo.policy.race. Intervals are 95 % Clopper-Pearson.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from hpo.policy.comparison import compare_images
from hpo.policy.race import Race, Replicate, run_race

SEED_DB, IMAGE_DB, NETWORK_DB, IMAGES = 0.1, 3.0, 0.5, 5_000
BASE_DB = 28.0
SIZE = 1_000_000  # parameters


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Searches whose first finalist is better than the others, which are equal, by so many standard errors."""

    finalists: int
    seeds: int
    standard_errors: float  # of the mean difference of two settings over all seeds
    spreads: tuple[float, ...] = ()  # of each finalist's trainings, in SEED_DB; empty: all equal

    @property
    def advantage_db(self) -> float:
        """What the first finalist is better by."""
        spread = np.hypot(*(self.spreads or (1.0, 1.0))[:2])
        return float(self.standard_errors * SEED_DB * spread / np.sqrt(self.seeds))

    def trainings(self, rng: np.random.Generator) -> np.ndarray:
        """The values of all trainings on validation, (finalists, seeds)."""
        spreads = np.array(self.spreads or (1.0,) * self.finalists)[:, None]
        settings = np.zeros((self.finalists, 1))
        settings[0] = self.advantage_db
        means = BASE_DB + settings + SEED_DB * spreads * rng.standard_normal((self.finalists, self.seeds))
        # The difficulty of the images is the same for all; what is each network's own has this spread in the mean.
        difficulty = (IMAGE_DB * rng.standard_normal(IMAGES)).mean()
        values: np.ndarray = means + difficulty + NETWORK_DB / np.sqrt(IMAGES) * rng.standard_normal(means.shape)
        return values

    def race(self, rng: np.random.Generator, sizes: tuple[int, ...] = ()) -> Race:
        """One simulated search. sizes: of the finalists' networks; by default all are equal."""
        results = {n: [Replicate(value=float(v)) for v in row] for n, row in enumerate(self.trainings(rng))}
        return run_race(results, self.seeds, dict(enumerate(sizes or (SIZE,) * self.finalists)))


def is_called_better(race: Race, number: int = 0, than: int = 1) -> bool:
    """Whether a race ended with the statement that a finalist is better than another one."""
    pairs = [(race.against[n], n, c.verdict) for n, c in race.compared.items()]
    return (number, than, "worse") in pairs


def is_all_ties(race: Race) -> bool:
    """Whether no finalist was called better than another one."""
    return not race.dropped and all(comparison.verdict == "tie" for comparison in race.compared.values())


def networks(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The values of two networks on each image: the same settings, other seeds."""
    difficulty = BASE_DB + IMAGE_DB * rng.standard_normal(IMAGES)
    first, second = (
        difficulty + SEED_DB * rng.standard_normal() + NETWORK_DB * rng.standard_normal(IMAGES) for _ in range(2)
    )
    return first, second


def trainings_of(race: Race, finalists: int) -> int:
    """How many trainings a race has needed."""
    return sum(race.dropped[n].seeds if n in race.dropped else race.seeds for n in range(finalists))


def share(count: int, total: int) -> str:
    """A share with its 95 % interval, in percent."""
    interval = binomtest(count, total).proportion_ci()
    return f"{100 * count / total:.1f} ({100 * interval.low:.1f}-{100 * interval.high:.1f})"


def print_ties(searches: int, rng: np.random.Generator) -> None:
    """Print how often settings that are equal are called a tie."""
    print("| finalists, all equal | seeds | only ties, % | as noisy as five others, % | trainings (of) |")
    print("|---|---|---|---|---|")
    for finalists in (2, 3):
        for seeds in (2, 3, 5, 8):
            equal = Planted(finalists=finalists, seeds=seeds, standard_errors=0)
            unlike = Planted(finalists=finalists, seeds=seeds, standard_errors=0, spreads=(1.0, 1.0, 5.0)[-finalists:])
            races = [equal.race(rng) for _ in range(searches)]
            noisy = sum(is_all_ties(unlike.race(rng)) for _ in range(searches))
            needed = np.mean([trainings_of(race, finalists) for race in races])
            ties = share(sum(map(is_all_ties, races)), searches)
            print(f"| {finalists} | {seeds} | {ties} | {share(noisy, searches)} | {needed:.1f} ({finalists * seeds}) |")


def print_power(searches: int, rng: np.random.Generator) -> None:
    """Print how often a true difference is found, and the better one chosen."""
    print("\n| finalists | seeds | true difference, standard errors (dB) | called better, % | chosen, % | trainings |")
    print("|---|---|---|---|---|---|")
    for finalists in (2, 3):
        for seeds in (2, 3, 5, 8):
            for standard_errors in (1, 2, 3, 4, 6, 10):
                planted = Planted(finalists=finalists, seeds=seeds, standard_errors=standard_errors)
                races = [planted.race(rng) for _ in range(searches)]
                called = share(sum(map(is_called_better, races)), searches)
                chosen = share(sum(race.winner == 0 for race in races), searches)
                needed = np.mean([trainings_of(race, finalists) for race in races])
                size = f"{standard_errors} ({planted.advantage_db:.2f})"
                print(f"| {finalists} | {seeds} | {size} | {called} | {chosen} | {needed:.1f} |")


def print_optimism(searches: int, rng: np.random.Generator, trials: int = 16, seeds: int = 3) -> None:
    """Print by how much the figures of the winner exceed what its settings give on average."""
    of_search, of_replicates = [], []
    for _ in range(searches):
        settings = BASE_DB + 3 * SEED_DB * rng.standard_normal(trials)
        found = settings + SEED_DB * rng.standard_normal(trials)
        best = np.argsort(-found)[:3]
        of_search.append(found[best[0]] - settings[best[0]])
        values = settings[best, None] + SEED_DB * rng.standard_normal((3, seeds))
        results = {n: [Replicate(value=float(v)) for v in row] for n, row in enumerate(values)}
        race = run_race(results, seeds, dict.fromkeys(results, SIZE))
        of_replicates.append(values[race.winner, : race.seeds].mean() - settings[best[race.winner]])
    for name, values in (("search", of_search), ("replicates", of_replicates)):
        error = 2 * np.std(values) / np.sqrt(searches)
        print(f"The {name}' figure of the winner: {np.mean(values):+.3f} ± {error:.3f} dB above its settings' mean")


def print_networks(searches: int, rng: np.random.Generator) -> None:
    """Print how often two networks of the same settings differ."""
    verdicts = [compare_images(*networks(rng)).verdict for _ in range(searches)]
    print(
        f"\nTwo networks of the same settings, other seeds, compared over images: different in "
        f"{share(searches - verdicts.count('tie'), searches)} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=2_000, help="simulated searches for each cell")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    print_ties(options.searches, rng)
    print_power(options.searches, rng)
    print_networks(min(200, options.searches), rng)
    print_optimism(options.searches, rng)


if __name__ == "__main__":
    main()
