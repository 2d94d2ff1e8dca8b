"""Which configurations are asked of, and how what became of them is counted."""

from argparse import Namespace

from stability import WITH, WITHOUT, configurations, rows


def test_configurations_are_of_the_default_space_with_both_rates_in_their_upper_halves_and_always_the_same():
    found = configurations(20)
    assert found == configurations(30)[:20]
    assert {params["loss"] for params in found} == {"l1", "ssim", "both"}
    assert all(params["lr_g"] >= (5e-5 * 1e-2) ** 0.5 for params in found)
    assert all(params["lr_d"] >= (1e-5 * 1e-2) ** 0.5 for params in found)


def test_only_what_lived_in_both_is_compared():
    def training(psnr_db: float, died: str | None = None) -> dict[str, object]:
        return {"died": died, "psnr_db": [20.0, psnr_db]}

    done = {
        f"0 0 {WITHOUT} 9": training(27.0),
        f"0 0 {WITH} 9": training(27.2),
        f"1 0 {WITHOUT} 9": training(26.0),
        f"1 0 {WITH} 9": training(26.4),
        f"2 0 {WITHOUT} 9": training(8.7, "collapsed"),
        f"2 0 {WITH} 9": training(27.0),
    }
    options = Namespace(configurations=3, seeds=1, epochs=9, arms=[WITHOUT, WITH])
    *_, without, with_clipping = rows(done, options)
    assert without.startswith(f"| {WITHOUT} | 1 of 3: 33.3%")
    assert with_clipping.startswith(f"| {WITH} | 0 of 3: 0.0%")
    assert "| +0.300 (" in with_clipping
    assert with_clipping.endswith("| 2 |")
