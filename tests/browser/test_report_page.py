"""report.html in headless Chromium: it opens from disk, says nothing on the console, sorts, filters and plots."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from golf.runs.report import gather, page
from golf.runs.store import find_runs

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="Chromium is not installed: apt-get install chromium chromium-driver"
    ),
]

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
EVIL = '<img src=x onerror=document.title="taken">'
LAYERS, RATES, SEEDS = (4, 6), (0.02, 0.04, 0.1), (1, 2)


def write_run(folder: Path, layers: int, rate: float, seed: int, bpb: float, **record: Any) -> None:
    """One run with thirty rows of metrics."""
    folder.mkdir(parents=True)
    model = {"num_layers": layers, "depth": 2 * layers}
    config = {"seed": seed, "model": model, "optimizer": {"matrix_lr": rate}, "note": EVIL}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    words = [f"model.num_layers={layers}", f"optimizer.matrix_lr={rate}", f"seed={seed}"]
    (folder / "overrides.yaml").write_text(yaml.safe_dump(words))
    rows = [{"step": i, "tokens": 64 * i, "train_time_s": i / 4, "train_loss": bpb + 9 / i} for i in range(1, 31)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {
        "status": "completed", "valid": True, "val_bpb": {"post_quant": bpb}, "steps": 30,
        "bytes": {"artifact": 2_000_000 * layers + int(1e7 * rate), "limit": 16_000_000},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps({**result, **record}))


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of twelve runs, one failed, one over the limit, with markup in names and errors."""
    root = tmp_path_factory.mktemp("sweep")
    points = [(layers, rate, seed) for layers in LAYERS for rate in RATES for seed in SEEDS]
    for number, (layers, rate, seed) in enumerate(points):
        write_run(root / str(number), layers, rate, seed, round(1.4 - layers / 50 + rate + seed / 1000, 4))
    write_run(root / "over", 6, 0.02, 3, 1.2, valid=False, violations=["the artifact is too large"])
    write_run(root / "<b>bad<b>", 6, 0.04, 3, 1.2, status="failed", valid=False, error=EVIL)
    (root / "report.html").write_text(page(gather(find_runs(root)), root, EVIL), encoding="utf-8")
    return root / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1400,1800"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, report_file: Path) -> Any:
    browser.get(report_file.as_uri())
    settle(browser)
    return browser


def settle(browser: Any) -> None:
    """Wait until the plots that an action set off are drawn: they follow the table by a timer and two frames."""
    browser.execute_async_script(
        "const done = arguments[0]; setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 80);"
    )


def texts(browser: Any, selector: str) -> list[str]:
    return browser.execute_script(  # type: ignore[no-any-return]
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )


def column(browser: Any, label: str) -> list[str]:
    """The cells of the column with this heading."""
    place = texts(browser, "#table thead tr:first-child th").index(label) + 1
    return texts(browser, f"#table tbody td:nth-child({place})")


def click(browser: Any, text: str, within: str) -> None:
    """Click the button whose text this is, as soon as there is one."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def found(driver: Any) -> Any:
        buttons = driver.find_elements(By.CSS_SELECTOR, f"{within} button")
        return next((one for one in buttons if one.get_attribute("textContent").strip(" ▲▼") == text), None)

    WebDriverWait(browser, 10).until(found).click()
    settle(browser)


def type_into(browser: Any, selector: str, text: str) -> None:
    from selenium.webdriver.common.by import By

    browser.find_element(By.CSS_SELECTOR, selector).send_keys(text)
    settle(browser)


def traces(browser: Any, plot: str, what: str) -> list[Any]:
    return browser.execute_script(  # type: ignore[no-any-return]
        f"return document.getElementById('plot-{plot}').data.map(t => t.{what})"
    )


def test_nothing_is_said_on_the_console(opened: Any) -> None:
    for axis in ("tokens", "time", "step"):
        click(opened, axis, "#curve-axis")
    assert opened.get_log("browser") == []


def test_the_page_asks_for_nothing_but_itself(opened: Any) -> None:
    asked = opened.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in asked if not name.startswith(("data:", "blob:"))] == []


def test_every_run_is_a_row_and_only_differing_columns_are_shown(opened: Any) -> None:
    assert len(texts(opened, "#table tbody tr")) == 14
    headings = texts(opened, "#table thead tr:first-child th")
    assert headings[:6] == ["run", "state", "num_layers", "matrix_lr", "seed", "bpb post_quant"]
    assert "note" not in headings


def test_columns_that_follow_from_others_can_be_shown(opened: Any) -> None:
    assert "depth" not in texts(opened, "#table thead tr:first-child th")
    click(opened, "1 more that follow from these", "#runs .bar")
    assert "depth" in texts(opened, "#table thead tr:first-child th")


def test_a_heading_sorts_both_ways_and_numbers_as_numbers(opened: Any) -> None:
    click(opened, "matrix_lr", "#table thead")
    rates = [float(text) for text in column(opened, "matrix_lr")]
    assert rates == sorted(rates)
    click(opened, "matrix_lr", "#table thead")
    assert [float(text) for text in column(opened, "matrix_lr")] == sorted(rates, reverse=True)


def test_runs_without_a_figure_sort_last(opened: Any, report_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "sweep"
    for name, bpb in (("a", 1.2), ("b", 1.1)):
        write_run(root / name, 4, 0.02, len(name), bpb, steps=int(10 * bpb))
    write_run(root / "c", 6, 0.02, 1, 1.3, status="failed", valid=False, val_bpb={})
    (root / "report.html").write_text(page(gather(find_runs(root)), root, "t"), encoding="utf-8")
    opened.get((root / "report.html").as_uri())
    settle(opened)
    for _ in range(2):
        click(opened, "bpb post_quant", "#table thead")
        assert column(opened, "bpb post_quant")[-1] == "–"


def test_a_value_a_bound_and_a_state_filter_rows_and_plots(opened: Any) -> None:
    type_into(opened, "select[aria-label='filter model.num_layers']", "4")
    assert set(column(opened, "num_layers")) == {"4"}
    assert len(traces(opened, "curves", "type")) == 6
    type_into(opened, "input[aria-label='filter val_bpb.post_quant']", "< 1.37")
    assert all(float(text) < 1.37 for text in column(opened, "bpb post_quant"))
    click(opened, "Clear", "#runs .bar")
    assert len(texts(opened, "#table tbody tr")) == 14
    click(opened, "failed 1", "#states")
    assert len(texts(opened, "#table tbody tr")) == 13


def test_search_finds_words_in_any_column(opened: Any) -> None:
    type_into(opened, "#search", "too large")
    assert column(opened, "run") == ["over"]
    type_into(opened, "#search", " nothing")
    assert texts(opened, "#table tbody tr") == ["No run passes these filters."]


def test_curves_hold_every_run_over_the_axis_chosen(opened: Any) -> None:
    assert [len(points) for points in traces(opened, "curves", "y")] == [30] * 14
    assert traces(opened, "curves", "x")[0][-1] == 30
    click(opened, "tokens", "#curve-axis")
    assert traces(opened, "curves", "x")[0][-1] == 64 * 30
    click(opened, "time", "#curve-axis")
    assert traces(opened, "curves", "x")[0][-1] == 7.5
    assert opened.execute_script("return document.querySelectorAll('#plot-curves .scatterlayer .trace').length") == 14


def test_scores_stand_against_bytes_with_the_front_and_the_limit(opened: Any) -> None:
    front, runs = traces(opened, "bytes", "x")
    assert len(runs) == 13  # the failed one has no score
    assert 0 < len(front) < len(runs)
    assert opened.execute_script("return document.getElementById('plot-bytes').layout.shapes[0].x0") == 16_000_000
    assert opened.execute_script("return document.querySelectorAll('#plot-bytes .points path').length") == 13


def open_report(browser: Any, root: Path, width: int = 1400) -> None:
    """Report on the runs below `root` and look at the page in a window of this width."""
    (root / "report.html").write_text(page(gather(find_runs(root)), root, "t"), encoding="utf-8")
    browser.set_window_size(width, 1800)
    browser.get((root / "report.html").as_uri())
    settle(browser)


def layout(browser: Any, plot: str, what: str) -> Any:
    return browser.execute_script(f"return document.getElementById('plot-{plot}').layout.{what}")


def test_a_limit_far_beyond_the_points_is_an_arrow_and_the_axis_shows_the_points(opened: Any, tmp_path: Path) -> None:
    for number, size in enumerate((600_000, 700_000)):
        ledger = {"artifact": size, "limit": 16_000_000}
        write_run(tmp_path / str(number), 4 + number, 0.02, 1, 1.3, bytes=ledger)
    open_report(opened, tmp_path)
    low, high = layout(opened, "bytes", "xaxis.range")
    assert (500_000 < low < 600_000, 700_000 < high < 800_000) == (True, True)
    assert layout(opened, "bytes", "shapes") == []
    (note,) = layout(opened, "bytes", "annotations")
    assert note["text"].startswith("limit 16,000,000, 23 times")
    assert note["text"].endswith("→")


def test_cells_without_a_valid_run_are_crossed_and_no_colour_is_theirs(opened: Any, tmp_path: Path) -> None:
    for number, (layers, rate, bpb) in enumerate(((4, 0.02, 1.3), (4, 0.04, 1.4), (6, 0.02, 1.35), (6, 0.04, 1.0))):
        write_run(tmp_path / str(number), layers, rate, 1, bpb, valid=bpb > 1, violations=["too large"] * (bpb == 1))
    open_report(opened, tmp_path)
    coloured, crossed = traces(opened, "heat", "z")
    assert coloured == [[1.3, 1.4], [1.35, None]]
    assert crossed == [[None, None], [None, 1.0]]
    assert (traces(opened, "heat", "zmin")[0], traces(opened, "heat", "zmax")[0]) == (1.3, 1.4)
    assert "✗ 1.0000" in texts(opened, "#plot-heat .heatmap-label text")
    assert len(layout(opened, "heat", "shapes")) == 2
    assert "✗" in texts(opened, "#heat-note")[0]
    assert column(opened, "run")[0] == "0 ◆"
    assert texts(opened, "#table tbody tr.best td")[0] == "0 ◆"
    assert "invalid" in texts(opened, "#table tbody tr:last-child .state")


def test_the_legend_says_what_differs(opened: Any, tmp_path: Path) -> None:
    for number, (rate, seed) in enumerate(((0.02, 1), (0.04, 1), (0.04, 2))):
        write_run(tmp_path / "a_long_name" / str(number), 4, rate, seed, 1.3 + rate, valid=seed == 1)
    write_run(tmp_path / "b", 4, 0.02, 2, 1.5, status="failed", valid=False)
    open_report(opened, tmp_path)
    assert texts(opened, "#plot-curves .legendtext") == [
        "matrix_lr=0.02 seed=1", "matrix_lr=0.04 seed=1", "matrix_lr=0.04 seed=2, invalid",
        "matrix_lr=0.02 seed=2, failed",
    ]  # fmt: skip


def test_columns_beyond_the_edge_are_told_and_the_run_stays_in_sight(opened: Any, report_file: Path) -> None:
    from selenium.webdriver.common.by import By

    opened.set_window_size(700, 1200)
    opened.get(report_file.as_uri())
    settle(opened)
    edge = opened.find_element(By.CSS_SELECTOR, "#runs .wide")
    assert "more-right" in edge.get_attribute("class")
    hint = opened.find_element(By.ID, "aside")
    assert hint.text.endswith("more columns →")
    hint.click()
    settle(opened)
    assert edge.get_attribute("class") == "wide more-left"
    assert not hint.is_displayed()
    box, cell = opened.find_element(By.CSS_SELECTOR, "#runs .scroll"), opened.find_element(By.CSS_SELECTOR, "#table td")
    assert abs(cell.rect["x"] - box.rect["x"]) < 1
    opened.set_window_size(1400, 1800)
    settle(opened)
    assert edge.get_attribute("class") == "wide"


def test_an_ablation_is_a_table_with_its_baseline(opened: Any, tmp_path: Path) -> None:
    for number, (option, seed) in enumerate((("last4", 1), ("last4", 2), ("none", 1), ("none", 2))):
        folder = tmp_path / str(number)
        write_run(folder, 4, 0.02, seed, 1.3 + 0.1 * (option == "none") + seed / 1000)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "choices": {"technique/xsa": option}}))
    open_report(opened, tmp_path)
    assert texts(opened, "#ablation-table tbody td:first-child") == ["baseline (all on)", "xsa off"]
    assert texts(opened, "#ablation-table tbody tr.best td:first-child") == ["baseline (all on)"]
    assert texts(opened, "#ablation-table tbody tr:last-child td:nth-child(5)")[0].startswith("+0.1000 ± ")


def test_two_swept_keys_make_a_heat_map_of_means(opened: Any) -> None:
    (cells,) = traces(opened, "heat", "z")
    assert [len(row) for row in cells] == [3, 3]
    assert cells[0][0] == pytest.approx(1.4 - 4 / 50 + 0.02 + 0.0015)


def test_parallel_coordinates_have_a_line_for_every_score(opened: Any) -> None:
    assert [len(points) for points in traces(opened, "parallel", "y")] == [3] * 13


def test_a_row_that_is_clicked_stands_out_in_the_curves(opened: Any) -> None:
    from selenium.webdriver.common.by import By

    opened.find_element(By.CSS_SELECTOR, "#table tbody tr:nth-child(2) td:nth-child(3)").click()
    settle(opened)
    assert traces(opened, "curves", "line.width").count(3) == 1


def test_seeds_are_grouped_with_a_p_value(opened: Any) -> None:
    rows = texts(opened, "#seed-table tbody tr")
    assert len(rows) == 6
    assert sum("best" in row for row in rows) == 1


def test_what_runs_say_stays_text(opened: Any) -> None:
    assert opened.title == EVIL
    assert EVIL in "".join(texts(opened, "#table .note"))
    assert opened.execute_script("return document.querySelectorAll('img, td b').length") == 0


def test_what_swept_values_say_stays_text_in_the_plots(opened: Any, tmp_path: Path) -> None:
    for number, note in enumerate(("<b>bad<b>", EVIL)):
        folder = tmp_path / str(number)
        write_run(folder, 4, 0.02, 1, 1.3)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "note": note}))
    open_report(opened, tmp_path)
    assert texts(opened, "#plot-curves .legendtext") == ["note=<b>bad<b>", f"note={EVIL}"]
    assert opened.execute_script("return document.querySelectorAll('img, .legendtext b').length") == 0


def test_links_open_the_run_folders(opened: Any, report_file: Path) -> None:
    from urllib.parse import unquote, urlsplit

    links = opened.execute_script("return [...document.querySelectorAll('#table tbody a')].map(a => a.href)")
    assert all(Path(unquote(urlsplit(link).path)).parent == report_file.parent for link in links)
    assert all(Path(unquote(urlsplit(link).path)).is_dir() for link in links)


PAYLOADS = (
    "<img src=x onerror=window.taken=1>", "</script><script>window.taken=1</script>", "<svg/onload=window.taken=1>",
    '"><iframe srcdoc="<script>parent.taken=1</script>">', "<a href='javascript:window.taken=1'>click</a>",
    "javascript:window.taken=1", "' autofocus onfocus=window.taken=1 x='", "<!--<script>window.taken=1//-->",
    "</style></title><script>window.taken=1</script>", "${window.taken=1}{{DATA}}`+(window.taken=1)+`",
    "<details open ontoggle=window.taken=1>", "\u2028window.taken=1\u2029",
    "%{meta.taken}<extra></extra>$\\href{javascript:window.taken=1}{x}$",
)  # fmt: skip
"""Texts that run where they are taken for markup, an attribute, a script, an address, or one of plotly's templates."""
FOREIGN = "img, iframe, object, embed, base, form, details:not(#shared), math, foreignObject, image, a[*|href^='java']"
LISTENS = "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes]).filter(a => /^on/i.test(a.name)).length"


def hostile_run(folder: Path, number: int, seed: int) -> None:
    """A run that says payloads wherever a run says anything: in names, settings and their keys, words, tags, errors,
    figures' names, the text of documents."""
    one, two = PAYLOADS[number % len(PAYLOADS)], PAYLOADS[(number + 1) % len(PAYLOADS)]
    evals = [{"stage": "quantized", "method": two, "seq_len": 8, "val_loss": 1.0, "val_bpb": 1.3 + seed / 100,
              "targets": 1, "bytes": 1, "seconds": 0.1, "coverage": one}]  # fmt: skip
    told: dict[str, Any] = {"name": one, "recipe": two, "violations": [one], "error": None, "evals": evals}
    if number % 5 == 4:
        told |= {"status": "failed", "valid": False, "error": f"{one}\n{two}"}
    told |= {"data": {"source": one, "notes": [two]}, "kernels": {one: two}, "versions": {one: two}}
    write_run(folder, 4, 0.02, seed, 1.3 + number / 100 + seed / 1000, **told)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"name": one, "tags": [one, two], PAYLOADS[0]: {PAYLOADS[1]: one}}
    config |= {"choices": {f"technique/{PAYLOADS[0]}": "none" if number % 2 else one, "recipe": two}}
    config["model"] = {PAYLOADS[2]: two, "num_layers": 4 + number % 2}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    words = [f"{PAYLOADS[0]}.{PAYLOADS[1]}={one}", f"model.{PAYLOADS[2]}={two}"]
    (folder / "overrides.yaml").write_text(yaml.safe_dump(words))
    rows = [json.dumps({"step": step, "train_loss": 9 / step, one: 1.0, "sample": two}) for step in range(1, 4)]
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "evals").mkdir()
    (folder / "evals" / "a.json").write_text(json.dumps({"documents": [{"text": one}], "method": two, "val_bpb": 1.2}))


def test_nothing_fires_wherever_a_run_says_it(opened: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    root = tmp_path / "<img src=x onerror=window.taken=1>"
    for number in range(len(PAYLOADS)):
        place = PAYLOADS[number].replace("/", "∕")
        for seed in SEEDS:
            hostile_run(root / f"{place} {seed}", number, seed)
    (root / "report.html").write_text(page(gather(find_runs(root)), root, PAYLOADS[1]), encoding="utf-8")
    opened.get((root / "report.html").as_uri())
    settle(opened)
    shown = opened.find_element(By.TAG_NAME, "body").get_attribute("textContent")
    assert all(payload[:24] in shown for payload in PAYLOADS if not payload.startswith("\u2028"))
    opened.execute_script("document.querySelectorAll('button, tbody tr').forEach(e => e.click())")
    opened.execute_script("document.querySelectorAll('select').forEach(e => { e.selectedIndex = e.length - 1; "
                          "e.dispatchEvent(new Event('change')) })")  # fmt: skip
    settle(opened)
    opened.execute_script("document.querySelectorAll('[tabindex], input, select').forEach(e => e.focus())")
    for plot, point in (("curves", "0"), ("heat", "[0, 0]"), ("parallel", "0")):
        hover = f"Plotly.Fx.hover(p, [{{curveNumber: 0, pointNumber: {point}}}])"
        opened.execute_script(f"const p = document.getElementById('plot-{plot}'); if (p.data && p.data.length) {hover}")
    settle(opened)
    assert opened.execute_script("return window.taken") is None
    foreign = f'return [...document.querySelectorAll("{FOREIGN}")].map(e => e.outerHTML)'
    assert opened.execute_script(foreign) == []
    assert opened.execute_script(f"return {LISTENS}") == 0
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert opened.get_log("browser") == []
    opened.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", PAYLOADS[0])
    settle(opened)
    assert opened.execute_script("return window.taken") == 1  # where it is markup, it does
