"""The report, as a browser shows it."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from chromium import Page, chromium, needs_chromium
from curves import SEARCH, SPACE, append_report, controller, report, run_all
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from rich.console import Console
from saying import hpo_says

from hpo.cli.commands import main
from hpo.policy import trial_attributes
from hpo.policy.leaderboard import reports_of
from hpo.policy.search_config import SearchConfig
from hpo.policy.suggestions import Suggestion, suggest
from hpo.policy.trial_attributes import CONFIG
from hpo.run.final_report import write_html_report
from hpo.store.record import Record
from hpo.store.study_replication import StorageReplicator
from hpo.views.html_report import REPORT, page, write_report
from hpo.views.report_analysis import importance, pareto, would_longer_help
from hpo.views.report_contents import contents
from model.checkpoint import save_checkpoint
from model.config import TrainConfig
from model.picture_strip import draw_strip, split_strip
from model.training_files import LAST, strip_name

ENDS = SearchConfig(trials=7, epochs=3, pruner="none", objectives=("balanced",))


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as tab:
        yield tab


def shown(browser: Page, record: Record, fragment: str = "", **window: Any) -> Page:
    """The record's report, opened from disk. Nothing but the file is asked for, and nothing is complained of."""
    browser.open(write_report(record).absolute().as_uri() + fragment, **window)
    assert browser.complaints == []
    assert [address for address in browser.requests if not address.startswith(("data:", "file:"))] == []
    return browser


def column(browser: Page, key: str) -> list[str]:
    """Cells of the leaderboard, from the top."""
    cells: list[str] = browser.run(
        f"[...document.querySelectorAll('#board td[data-key=\"{key}\"]')].map(c => c.innerText)"
    )
    return cells


def text(browser: Page, selector: str) -> str:
    found: str = browser.run(f"document.querySelector({json.dumps(selector)}).innerText")
    return found


def ended(runs: Path) -> Record:
    """Trials with an end of every kind, one of them with an infinite PSNR."""
    record = Record.create(runs, "first", ENDS)
    told: list[list[dict[str, Any]]] = [
        [{"ssim": 0.5}, {"ssim": 0.6}, {"ssim": 0.55}],
        [{"ssim": 0.7}],
        [{"ssim": 0.9}],
        [{"ssim": 0.95}, {"ssim": math.nan}],
        [{"ssim": 1.0, "psnr_db": math.inf}],
        [],
        [{"ssim": 0.8, "psnr_db": 23.0}],
    ]
    for number, reports in enumerate(told):
        record.add(suggest(record.trials(), SPACE, ENDS))
        for epoch, values in enumerate(reports, start=1):
            append_report(record, number, report(epoch, **values), "node-a" if number % 2 else "node-b")
    record.add_failure(2, "its node is gone")
    record.fail(2, "died 3 times, at last: its node is gone")
    record.fail(5, "out of memory")
    return record


# --- what it shows ---------------------------------------------------------------------------------------------------


@needs_chromium
def test_the_leaderboard_is_that_of_hpo_show_and_sorts_by_a_click_and_by_the_address(done, browser, capsys):
    main(["show", "first", "--runs", str(done.folder.parent), "--json"])
    told = json.loads(capsys.readouterr().out)
    shown(browser, done)
    assert text(browser, "h1") == f"Trial {told['winner']} wins so far"
    for key, form in {
        "number": "{}",
        "ssim": "{:.4f}",
        "psnr_db": "{:.2f}",
        "l1": "{:.4f}",
        "haarpsi": "{:.4f}",
        "epochs": "{}",
    }.items():
        assert column(browser, key) == [form.format(row[key]) for row in told["trials"]]
    for name in ("lr_g", "loss"):
        values = [row["params"][name] for row in told["trials"]]
        assert column(browser, f"param.{name}") == [
            v if name == "loss" else f"{v:.3g}".replace("e-0", "e\N{MINUS SIGN}") for v in values
        ]

    def order(key: str, reverse: bool) -> list[str]:
        return [str(row["number"]) for row in sorted(told["trials"], key=lambda row: row[key], reverse=reverse)]

    browser.point("#board th[data-key=psnr_db] button")
    assert column(browser, "number") == order("psnr_db", reverse=True)
    assert browser.run("document.querySelector('#board th[data-key=psnr_db]').ariaSort") == "descending"
    browser.point("#board th[data-key=psnr_db] button")
    assert column(browser, "number") == order("psnr_db", reverse=False)
    assert browser.run("location.hash") == "#sort=psnr_db"
    shown(browser, done, "#sort=-number&trial=3")
    assert column(browser, "number") == [str(number) for number in reversed(range(8))]
    assert browser.run("document.querySelector('#board tr.hot').dataset.trial") == "3"
    assert browser.run("document.querySelectorAll('#curves .hot, #tradeoff .hot, #timeline .hot').length") == 3
    for chart in ("curves", "tradeoff"):
        assert "trial 3" in browser.run(f"[...document.querySelectorAll('#{chart} text')].map(t => t.textContent)")


@needs_chromium
@pytest.mark.parametrize(
    ("objective", "name"), [("l1", "\N{MINUS SIGN}L1"), ("haarpsi", "HaarPSI"), ("psnr", "PSNR dB")]
)
def test_the_charts_show_the_objective_and_its_best_trials_come_first(runs, browser, objective, name):
    record = Record.create(runs, "first", replace(SEARCH, trials=4, objectives=(objective,)))
    run_all(controller(record))
    shown(browser, record)
    offered = browser.run("[...document.querySelectorAll('#metric label')].map(l => l.innerText)")
    assert offered == [name, *(other for other in ("SSIM", "PSNR dB", "HaarPSI") if other != name)]
    assert f"{name}, best epoch" in browser.run("document.querySelector('#progress').textContent")
    values = [float(value) for value in column(browser, {"psnr": "psnr_db"}.get(objective, objective))]
    assert values == sorted(values, reverse=objective != "l1")
    assert len(set(values)) > 1


@needs_chromium
def test_a_search_that_is_older_than_haarpsi_has_no_empty_columns(runs, browser):
    record = Record.create(runs, "first", ENDS)
    record.add(suggest(record.trials(), SPACE, ENDS))
    for epoch in (1, 2):
        append_report(record, 0, report(epoch, 0.5 + 0.1 * epoch, haarpsi=math.nan))
    shown(browser, record)
    assert "HaarPSI" not in text(browser, "body")
    assert len(column(browser, "l1")) == 1


@needs_chromium
def test_every_kind_of_end_is_told_in_words(runs, browser):
    record = ended(runs)
    shown(browser, record)
    assert "not finished: 5 of 7 trials had ended" in text(browser, "#status")
    why = browser.run("[...document.querySelectorAll('#why tbody tr')].map(row => row.cells[1].innerText)")
    assert why == [
        "Ran all 3 epochs",
        "Still running: 1 of 3 epochs are recorded",
        "Failed after epoch 1: died 3 times, at last: its node is gone",
        "Diverged in epoch 2: a loss or a metric was no longer a finite number",
        "Diverged in epoch 1: a loss or a metric was no longer a finite number",
        "Failed before the end of its first epoch: out of memory",
        "Still running: 1 of 3 epochs are recorded",
    ]
    failures = browser.run("[...document.querySelectorAll('#failures tbody tr')].map(row => row.innerText)")
    assert len(failures) == 3
    assert "worker failed" in failures[0]
    assert "out of memory" in failures[2]
    assert "Too few trials: importance needs 10 trials with a result, and there are 3" in text(
        browser, "#importance-words"
    )
    assert "on 2 nodes" in text(browser, "#timeline-words")
    by_number = dict(zip(column(browser, "number"), column(browser, "psnr_db"), strict=True))
    assert by_number["4"] == "∞"
    assert by_number["5"] == "\N{EN DASH}"


@needs_chromium
def test_a_stopped_trial_is_told_with_its_bar_and_where_it_is_worse_than_the_input(runs, browser):
    search = SearchConfig(trials=8, epochs=2, reduction_factor=2, objectives=("ssim",))
    record = Record.create(runs, "first", search)
    for number, ssim in enumerate([0.5, 0.51, 0.52, 0.4, 0.53, 0.54, 0.55, 0.49]):
        record.add(suggest(record.trials(), SPACE, search))
        for epoch in (1, 2):
            if record.trial(number).state == TrialState.RUNNING:
                append_report(record, number, report(epoch, ssim, psnr_db=20.0 if ssim == 0.49 else 21.0))
    shown(browser, record)
    why = browser.run("[...document.querySelectorAll('#why tbody tr')].map(row => row.cells[1].innerText)")
    assert why[3] == (
        "Pruned after epoch 1: its 0.4000 was below the cutoff of 0.5100, which trial 1 had reached by that epoch, "
        "the lowest of the best 2 of 4 trials"
    )
    assert why[7] == (
        "Pruned after epoch 1: its 0.4900 was below the cutoff of 0.5200, which trial 2 had reached by that epoch, "
        "the lowest of the best 4 of 8 trials; its best PSNR of 20.00 dB is worse than that of the noisy images "
        "(20.55 dB)"
    )
    ends = dict(zip(column(browser, "number"), column(browser, "outcome"), strict=True))
    assert [number for number, end in ends.items() if "worse than noisy" in end] == ["7"]


RISING, LEVEL = [0.5 + 0.01 * e for e in range(16)], [0.6] * 4 + [0.599, 0.6] * 6


@pytest.mark.parametrize(
    ("values", "epochs", "is_constant", "said"),
    [
        (RISING, 16, True, r"still rising: its last 4 .* 0\.0400, .* would probably help"),
        (LEVEL, 16, True, r"levelled off: its last 4 epochs gained 0\.0000, .* would hardly help"),
        ([*LEVEL[:12], 0.595, 0.601, 0.595, 0.602], 16, True, r"levelled off: .* 0\.0020, .*fell by up to 0\.0060"),
        (RISING, 16, False, "still rising.*only a new training with more epochs would tell"),
        ([*RISING[:8], *[0.1] * 8], 16, False, r"got worse: 0\.5700 at best, 0\.1000 .*would not help"),
        (RISING, 32, True, "not over"),
        (RISING[:7], 7, True, "7 epochs are too few"),
    ],
)
def test_whether_a_longer_training_would_help_is_said_no_surer_than_the_curve_is(values, epochs, is_constant, said):
    assert re.search(said, would_longer_help(values, epochs, "ssim", is_constant=is_constant))


def test_a_final_training_that_collapsed_is_over(runs):
    record = Record.create(runs, "first", SearchConfig(final_epochs=32))
    for ssim in (0.9, 0.8):
        append_report(record, record.add(suggest(record.trials(), SPACE, record.search)).number, report(1, ssim))
    config = {**record.trial(1).user_attrs[CONFIG], "epochs": 32}
    reports = [report(epoch, 0.1, psnr_db=8.7, images=20_000 * epoch) for epoch in (1, 2, 3)]
    save_checkpoint(
        record.folder / "final" / LAST, {}, {"config": config, "reports": [told.as_dict() for told in reports]}
    )
    final = contents(record)["final_training"]
    assert final["trial"] == 1  # not the winner: its own had collapsed before
    assert final["verdict"].startswith("It collapsed by epoch 3 and ended there")


def test_a_final_training_that_went_on_with_lower_rates_is_still_its_trials(runs):
    record = Record.create(runs, "first", SearchConfig(final_epochs=32))
    for ssim in (0.9, 0.8):
        append_report(record, record.add(suggest(record.trials(), SPACE, record.search)).number, report(1, ssim))
    config = {**record.trial(1).user_attrs[CONFIG], "epochs": 32, "lr_g": 1e-4, "lr_d": 1e-4}
    save_checkpoint(record.folder / "final" / LAST, {}, {"config": config, "reports": [report(1, 0.9).as_dict()]})
    event = {"trial": 1, "epochs": 32, "epoch": 3, "reason": "collapsed", "back_to": 1, "lr_g": 1e-4, "lr_d": 1e-4}
    record.set_metadata("final_collapses", [event])
    told = contents(record)
    assert told["final_training"]["trial"] == 1
    [line] = told["collapse_messages"]
    assert line.startswith("The final training of trial 1's configuration collapsed in epoch 3 of 32; it went back")


@needs_chromium
def test_units_and_images_are_those_of_the_search(runs, browser):
    shown(browser, Record.create(runs, "first", SearchConfig(time_budget_minutes=8)))
    assert "8 (minutes" in text(browser, "#config-table")
    assert set(browser.run("Object.keys({...UNITS, ...DEFAULTS})")) <= set(SearchConfig().as_dict())
    assert browser.run("COMPARED") == "the first 1,000 of 5,000 validation images"
    shown(browser, Record.create(runs, "folder", SearchConfig(data="./photos", noise="gaussian:30")))
    assert browser.run("COMPARED") == "the first 1,000 validation images (fewer if the data has fewer)"


@needs_chromium
@pytest.mark.parametrize("num_reports", [None, 0, 1])
def test_a_search_that_has_hardly_begun_is_drawn_too(record, browser, num_reports):
    if num_reports is not None:
        record.add(suggest([], SPACE, record.search))
        for epoch in range(num_reports):
            append_report(record, 0, report(epoch + 1, 0.5))
    shown(browser, record)
    assert text(browser, "h1") == ("Trial 0 wins so far" if num_reports else "No winner so far")


def test_what_was_run_and_saved_is_counted(done):
    told = contents(done)
    trials = {trial.number: trial for trial in done.trials()}
    for spent in told["spent"]:
        own = [trials[row["number"]] for row in told["trials"] if row["kind"] == spent["kind"]]
        assert spent["epochs"] == sum(len(reports_of(trial)) for trial in own)
        assert spent["seconds"] == pytest.approx(2.5 * spent["epochs"])  # of each epoch of these curves
        left = 0 if spent["kind"] == "finished" else 4 * len(own) - spent["epochs"]
        assert (spent["saved_epochs"], spent["saved_seconds"]) == (left, pytest.approx(2.5 * left))
    assert {spent["kind"] for spent in told["spent"]} >= {"finished", "pruned"}


def test_the_front_is_that_of_optuna_with_two_objectives():
    rng = np.random.default_rng(0)
    points = [(s / 10, p / 10) for s, p in rng.integers(0, 7, (60, 2)).tolist() if s + p <= 7]  # many are equal
    rows = [{"number": n, "ssim": s, "psnr_db": p, "candidate": True} for n, (s, p) in enumerate(points)]
    study = optuna.create_study(directions=["maximize", "maximize"])
    study.add_trials([optuna.trial.create_trial(values=point) for point in points])
    assert {points[number] for number in pareto(rows)} == {tuple(trial.values) for trial in study.best_trials}
    ill = [{"number": 60, "ssim": 2.0, "psnr_db": 2.0, "candidate": False}, {**rows[0], "ssim": "nan", "number": 61}]
    assert pareto([*rows, *ill]) == pareto(rows)


def test_importance_is_optunas_own_and_names_what_decides(record):
    rng = random.Random(0)
    trials = []
    for number in range(40):
        params = {"decides": rng.uniform(0, 1), "idle": rng.uniform(0, 1)}
        trial = optuna.trial.create_trial(
            params=params,
            distributions={name: FloatDistribution(0, 1) for name in params},
            value=params["decides"],
            user_attrs={trial_attributes.REPORTS: []},
            intermediate_values={1: params["decides"]},
        )
        trial.number = trial._trial_id = number
        trials.append(trial)
    told = importance(trials)
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=5 / 40)
    theirs = optuna.importance.get_param_importances(study, evaluator=evaluator)
    assert {share["name"]: share["share"] for share in told["shares"]} == pytest.approx(theirs)
    assert told["shares"][0]["name"] == "decides"
    assert told["shares"][0]["low"] > told["shares"][1]["high"]
    assert importance(trials[:9])["shares"] == []


# --- pictures --------------------------------------------------------------------------------------------------------


def with_strips(record: Record, side: int, channels: int) -> dict[int, np.ndarray]:
    """Noise, in the place of every trial's best pictures; gives what each denoised."""
    rng = np.random.default_rng(0)
    noisy, clean = rng.uniform(-1, 1, (2, 6, channels, side, side))
    made = {}
    for row in contents(record)["trials"]:
        made[row["number"]] = rng.uniform(-1, 1, clean.shape)
        path = record.trial_folder(row["number"]) / strip_name(row["best_epoch"])
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_strip([noisy, made[row["number"]], clean], scale=1).save(path)
    return made


@pytest.mark.parametrize("channels", [1, 3])
def test_cells_are_what_a_strip_was_made_of(channels):
    columns = np.random.default_rng(0).uniform(-1, 1, (3, 4, channels, 16, 16))
    for found, made in zip(split_strip(np.asarray(draw_strip(columns, scale=1))), columns, strict=True):
        expected = np.rint((made + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
        assert np.array_equal(found.reshape(expected.shape), expected)
    with pytest.raises(ValueError, match="not 3 columns"):
        split_strip(np.asarray(draw_strip(columns[:2, :3], scale=1)))


@needs_chromium
def test_pictures_are_pixel_for_pixel_those_of_the_trials_and_open_by_keyboard(done, browser):
    made = with_strips(done, side=16, channels=1)
    shown(browser, done, width=390, height=844)
    winner = contents(done)["winner"]
    script = (
        f"(() => {{ const c = document.querySelector(\"#wall button[aria-label$='denoised, Trial {winner}'] canvas\");"
        "return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]; })()"
    )
    width, height, data = browser.run(script)
    pixels = np.array(data, np.uint8).reshape(height, width, 4)
    expected = np.rint((made[winner] + 1) * 127.5).astype(np.uint8)
    for index in range(6):
        assert np.array_equal(pixels[:, 18 * index : 18 * index + 16, 0], expected[index, 0])
    assert browser.run("document.documentElement.scrollWidth") == 390  # nothing is wider than the phone
    browser.run("document.querySelector('#wall button[aria-label*=\"Trial\"]').focus()")
    browser.press("Enter")
    assert text(browser, "#zoom-title") == f"Trial {winner}, image 1 of 6"
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    assert text(browser, "#zoom-title").endswith("image 2 of 6")
    assert not text(browser, "#zoom-title").startswith(f"Trial {winner},")
    assert browser.run("[...document.querySelectorAll('#zoom canvas')].map(c => c.width)") == [16] * 4
    browser.press("Escape")
    assert not browser.run("document.querySelector('#zoom').open")


# --- what must not get through ---------------------------------------------------------------------------------------

HOSTILE = (
    "</script><script>document.title='pwned'</script>\"'><img src=x onerror=\"document.title='pwned'\">{{data}}\u2028"
)


@needs_chromium
def test_hostile_texts_stay_texts(runs, browser):
    (folder := runs.parent / HOSTILE.replace("/", ":")).mkdir()
    asked = SearchConfig(trials=3, pruner="none", data=str(folder), on_finish=HOSTILE)
    record = Record.create(runs, "first", asked)
    record.search = replace(asked, space=HOSTILE)
    record.about |= {"versions": {HOSTILE: HOSTILE}, "git_commit": HOSTILE, "created": HOSTILE}
    record.user_folder = runs / HOSTILE.replace("/", ":")  # of which the command to denoise with is made
    params = {HOSTILE: HOSTILE, "__proto__": "constructor"}
    distributions = {name: CategoricalDistribution([value, "x"]) for name, value in params.items()}
    for number in range(3):
        record.add(Suggestion(params=params, distributions=distributions, config=TrainConfig(), by="random"))
        append_report(record, number, report(1, 0.5), HOSTILE)
    record.add_failure(0, HOSTILE)
    record.fail(0, HOSTILE)
    shown(browser, record)
    assert browser.run("document.title") == "first: a search"
    assert browser.run("document.querySelectorAll('img, iframe, object, [onerror]').length") == 0
    assert browser.run("document.querySelectorAll('script').length") == 2
    seen = browser.run("document.body.textContent")
    for place in ("#board th", "#board td", "#failures", "#made-with", "#timeline", "#parallel", "#config-table"):
        assert browser.run(f"[...document.querySelectorAll('{place}')].some(e => e.textContent.includes('pwned'))"), (
            place
        )
    assert HOSTILE in seen
    assert "on_finish" not in text(browser, "#config-table")  # a command is nobody's affair


@needs_chromium
def test_the_policy_lets_no_other_script_and_no_network_through(done, browser):
    shown(browser, done)
    browser.run(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.pwned = 1';"
        "document.body.append(s);"
        "const b = document.createElement('div'); b.innerHTML = '<b onclick=\"window.pwned = 2\"></b>';"
        "document.body.append(b); b.firstChild.click();"
        "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i); })()"
    )
    browser.wait_for("1")
    assert browser.run("window.pwned === undefined")
    assert browser.run("(() => { try { return eval('1') } catch { return 'refused' } })()") is not None
    refused = " ".join(browser.complaints)
    assert "script-src" in refused
    assert "img-src" in refused
    assert browser.run("fetch('http://127.0.0.1:9/').then(() => 'through', () => 'refused')") == "refused"
    assert "connect-src" in " ".join(browser.complaints)


def test_the_data_of_any_search_is_json_without_a_mark_of_html(runs):
    record = ended(runs)
    record.fail(6, HOSTILE)
    data = page(contents(record)).partition('id="data">')[2].partition("</script>")[0]
    told = json.loads(data, parse_constant=pytest.fail)
    assert {row["psnr_db"] for row in told["trials"]} >= {"inf", None}
    assert not set("<>&") & set(data)


# --- size, and the command -------------------------------------------------------------------------------------------


@needs_chromium
def test_a_thousand_trials_with_the_largest_pictures_stay_below_10_mb(done, browser, capsys):
    """The time to draw is printed, not judged: `pytest -s`."""
    rng = random.Random(0)
    some = done.trials()
    many = []
    for number in range(1000):
        trial = copy.deepcopy(some[number if number < 2 else 2 + number % (len(some) - 2)])
        trial.number = trial._trial_id = number
        reports = [
            {**told, "ssim": rng.uniform(0.5, 0.9), "epoch": e, trial_attributes.REPORT_INDEX: 12 * number + e}
            for e in range(1, 13)
            for told in [report(e, 0.5).as_dict()]
        ]
        trial.user_attrs[trial_attributes.REPORTS] = reports
        trial.intermediate_values = {told["epoch"]: told["ssim"] for told in reports}
        trial.params = {**trial.params, "lr_g": 10 ** rng.uniform(-4, -2), "lr_d": 10 ** rng.uniform(-4, -2)}
        many.append(trial)
    done._trials = many
    with capsys.disabled():
        for row in contents(done)["trials"][:6]:
            rows = np.random.default_rng(row["number"]).uniform(-1, 1, (3, 6, 3, 256, 256))
            path = done.trial_folder(row["number"]) / strip_name(row["best_epoch"])
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_strip(rows, scale=1).save(path, compress_level=0)
        shown(browser, done)
        size = (done.folder / REPORT).stat().st_size
        milliseconds = browser.run("document.documentElement.dataset.drawn")
        print(f"\n1,000 trials of 12 epochs: {size / 1e6:.1f} MB, drawn in {milliseconds} ms")
    assert size < 10_000_000
    assert browser.run("document.querySelectorAll('#tradeoff .dot').length") == 1000
    assert len(column(browser, "number")) == 200
    browser.point("button.all")
    assert sorted(map(int, column(browser, "number"))) == list(range(1000))
    assert browser.run("document.querySelectorAll('#why tbody tr').length") == 1000


def test_the_command_writes_the_file_and_says_where(done, tmp_path, capsys):
    runs = str(done.folder.parent)
    assert main(["report", "first", "--runs", runs]) == 0
    assert capsys.readouterr().out == f"{done.folder / REPORT}\n"
    other = tmp_path / "new" / "mine.html"
    assert main(["report", "first", "--runs", runs, "--to", str(other)]) == 0
    assert other.read_text().startswith("<!doctype html>")
    assert [path.name for path in other.parent.iterdir()] == ["mine.html"]
    capsys.readouterr()
    code, _, told = hpo_says("report", "first", "--runs", runs, "--to", str(tmp_path), capsys=capsys)
    assert code == 2
    assert "is a folder; --to must name a file" in told


def test_a_report_that_cannot_be_written_fails_no_search(done, monkeypatch, capsys):
    def full(record: Record) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hpo.run.final_report.write_report", full)
    write_html_report(StorageReplicator(done, None, lambda _: None), Console(stderr=True))
    assert "No report: disk full" in capsys.readouterr().err


def test_the_node_is_kept_of_the_epoch_that_it_trained_alone(record):
    driver = controller(record)
    driver.next_trial()
    driver.on_report(0, [report(1, 0.5), report(2, 0.6)], "node-b")  # the first was trained by an attempt that died
    assert [told.get(trial_attributes.NODE) for told in record.trial(0).user_attrs[trial_attributes.REPORTS]] == [
        None,
        "node-b",
    ]
    assert record.trial(0).state == TrialState.RUNNING
