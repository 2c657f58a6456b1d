"""The page in a real browser, Chromium without a window: by keyboard, as people use it."""

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from al_lightning.labelling.answers import read_answers
from al_lightning.labelling.asked import AskedBatch, AskedPoint, read_asked, write_asked
from al_lightning.labelling.page.app import Desk, application
from al_lightning.labelling.page.command import addresses_of, guard_of, listening
from al_lightning.labelling.shown import forget
from al_lightning.records.images import png

AXE = os.environ.get("AL_LIGHTNING_AXE")  # axe.min.js of the package axe-core; where it is given nothing is skipped
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if AXE is None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
else:
    import playwright.sync_api as playwright
WAY = "`.ci/run --all` installs it"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(AXE is None and CHROMIUM is None, reason=f"there is no Chromium: {WAY}"),
    # asyncio of playwright, whose loop is closed with the browser
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SERVE = "import sys; from al_lightning.labelling.page.command import main; sys.exit(main(sys.argv[1:]))"
HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    assert CHROMIUM is not None, "AL_LIGHTNING_AXE promises Chromium, but there is none"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable]:
    """Open a page in a browser profile of its own; errors of its script fail the test."""
    contexts, errors = [], []

    def open_page(address: str, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@contextmanager
def server(folder: Path, **options) -> Iterator[str]:
    """Serve a page from a thread of this process."""
    with listening("127.0.0.1", 0) as listener:
        app = application(Desk(folder, **{"who": "ann", **options}), guard_of(listener, "127.0.0.1"))
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"{addresses_of(listener, '127.0.0.1')[0]}/"
        finally:
            running.should_exit = True
            thread.join()


@contextmanager
def server_process(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen, str]]:
    command = [sys.executable, "-c", SERVE, str(folder), "--who", "ann", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process, re.search(r"http://\S+", process.stdout.readline())[0]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def pictures(tmp_path, batch_of) -> Path:
    """A run folder that asks for a hundred pictures."""
    folder = tmp_path / "run"
    write_pictures(folder, batch_of([], classes=["cat", "dog"]), range(100))
    return folder


def write_pictures(folder: Path, batch: AskedBatch, ids, side: int = 28) -> None:
    (folder / "asked").mkdir(parents=True, exist_ok=True)
    for index in ids:
        (folder / "asked" / f"{index}.png").write_bytes(png(np.full((side, side), index % 256, np.uint8)))
    points = [AskedPoint(index, shown=f"asked/{index}.png") for index in ids]
    write_asked(folder, replace(batch, points=points))


def wait_for(page, selector: str) -> None:
    page.wait_for_selector(selector, state="attached")


def press(page, index: int, key: str) -> None:
    """Press a key once a point is in sight."""
    wait_for(page, f'body[data-shown="{index}"]')
    page.keyboard.press(key)


def saved(page, index: int) -> None:
    wait_for(page, f'#last li[data-id="{index}"][data-state="answered"]')


def on_disk(folder: Path) -> list[tuple]:
    answers, unread = read_answers(folder / "answers", read_asked(folder).allowed)
    assert unread == []
    return [(answer.who, answer.id, answer.label or answer.kind) for answer in answers]


def test_a_hundred_labels_by_keys_are_on_disk_with_the_seconds_that_each_took(pictures, open_page):
    with server(pictures) as address:
        page = open_page(address)
        wait_for(page, "body[data-shown]")
        began = time.monotonic()
        for index in range(100):
            press(page, index, str(1 + index % 2))
        page.get_by_text("Nothing is left to answer").wait_for()
        took = time.monotonic() - began
        assert page.locator("#count").inner_text() == "100 of 100"
        assert "al-lightning fit" in page.locator("#rest-text").inner_text()
    assert on_disk(pictures) == [("ann", index, ("cat", "dog")[index % 2]) for index in range(100)]
    seconds = [json.loads(line)["seconds"] for line in (pictures / "answers" / "ann.jsonl").read_text().splitlines()]
    assert 0 < sum(seconds) <= took + 1


def test_classes_that_are_digits_have_themselves_as_keys(tmp_path, batch_of, open_page):
    folder = tmp_path / "run"
    write_pictures(folder, batch_of([], classes=[str(digit) for digit in range(10)]), [3, 4, 5])
    with server(folder) as address:
        page = open_page(address)
        for index, key in ((3, "0"), (4, "7"), (5, "s")):
            press(page, index, key)
            saved(page, index)
    assert on_disk(folder) == [("ann", 3, "0"), ("ann", 4, "7"), ("ann", 5, "skip")]


def test_everything_is_done_by_keyboard(run, open_page):
    with server(run) as address:
        page = open_page(address)
        for index, key in ((10, "1"), (11, "s"), (12, "u"), (13, "r"), (14, "2")):
            press(page, index, key)
        saved(page, 14)
        page.keyboard.press("Backspace")  # takes the last one back and shows it
        press(page, 14, "1")
        saved(page, 14)
        wait_for(page, 'body[data-shown="15"]')
        page.keyboard.press(",")
        assert focus(page) == "#last 14"
        reach(page, '#last li[data-id="11"] button', at_most=3)
        page.keyboard.press("Enter")
        press(page, 11, "2")
        wait_for(page, 'body[data-shown="15"]')
        reach(page, '#last li[data-id="10"] button')
        page.keyboard.press("Enter")
        press(page, 10, "Escape")  # leaves it as it is
        wait_for(page, 'body[data-shown="15"]')
        reach(page, "#classes button:nth-child(3)")
        page.keyboard.press("Enter")
        wait_for(page, 'body[data-shown="16"]')
        for _ in range(3):
            page.keyboard.press("Enter")  # labels nothing: the focus has left the button
        saved(page, 15)
        reach(page, "#who")
        page.keyboard.press("Control+A")
        page.keyboard.type("1s")  # no shortcuts in a text field
        page.keyboard.press("Enter")
        press(page, 16, "1")
        saved(page, 16)
    assert on_disk(run) == [
        ("1s", 16, "cat"),
        *[("ann", 10, "cat"), ("ann", 11, "skip"), ("ann", 12, "unsure"), ("ann", 13, "reject"), ("ann", 14, "dog")],
        *[("ann", 14, "undo"), ("ann", 14, "cat"), ("ann", 11, "dog"), ("ann", 15, "<img src=x onerror=alert(1)>")],
    ]


def test_a_key_leads_to_the_last_answers_and_escape_back(run, open_page):
    with server(run) as address:
        page = open_page(address)
        wait_for(page, 'body[data-shown="10"]')
        page.keyboard.press(",")
        page.get_by_text("There is no answer to correct yet.").wait_for()
        press(page, 10, "1")
        saved(page, 10)
        page.keyboard.press(",")
        assert focus(page) == "#last 10"
        page.keyboard.press("Escape")
        assert focus(page) == "title"
        page.keyboard.press(",")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Correct point 10, answered: cat").wait_for()
        press(page, 10, "2")
        press(page, 11, "1")
        saved(page, 11)
        reach(page, "#undo")
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")  # takes no further answer back
        wait_for(page, 'body[data-shown="11"]')
        assert focus(page) == "title"
    assert on_disk(run) == [("ann", 10, "cat"), ("ann", 10, "dog"), ("ann", 11, "cat"), ("ann", 11, "undo")]


def focus(page) -> str:
    """Name what has the focus: its id, or its point in the list of the last answers."""
    return page.evaluate(
        """() => { const at = document.activeElement, item = at.closest("#last li");
            return item ? `#last ${item.dataset.id}` : at.id; }"""
    )


@pytest.mark.parametrize("end", ["txt", "png"])
def test_fast_presses_answer_one_point_and_none_that_has_only_just_come_into_sight(run, batch_of, open_page, end):
    if end == "png":
        write_pictures(run, batch_of([]), range(10, 20))
    with server(run) as address:
        page = open_page(address)
        wait_for(page, 'body[data-shown="10"]')
        page.wait_for_timeout(300)  # by now the next points are loaded
        page.evaluate(
            """() => { for (let number = 0; number < 6; number++) document.dispatchEvent(
                new KeyboardEvent("keydown", { key: "1", code: "Digit1", bubbles: true })); }"""
        )
        wait_for(page, 'body[data-shown="11"]')
        saved(page, 10)
    assert on_disk(run) == [("ann", 10, "cat")]


@pytest.mark.parametrize("end", ["txt", "png", None])
def test_a_point_that_nobody_can_see_takes_a_skip_only_until_it_is_there_again(run, batch_of, open_page, end):
    if end == "png":
        write_pictures(run, batch_of([]), range(10, 20))
    before = {path.name: path.read_bytes() for path in (run / "asked").iterdir()}
    forget(run)
    if end is None:
        write_asked(run, replace(read_asked(run), points=[AskedPoint(10), AskedPoint(11)]))
    with server(run) as address:
        page = open_page(address)
        for key in "1ur":
            press(page, 10, key)
            page.get_by_text("Not taken: point 10 cannot be seen.").wait_for()
        assert page.locator("#classes button:enabled, #unsure:enabled, #reject:enabled").count() == 0
        words = page.locator("#item").inner_text()
        assert "it can be skipped only" in words
        assert ("was deleted. Start the run's command again" in words) == (end is not None)
        page.keyboard.press("s")
        saved(page, 10)
        wait_for(page, 'body[data-shown="11"]')
        if end is not None:
            (run / "asked").mkdir()
            for name, content in before.items():  # as the run's command does
                (run / "asked" / name).write_bytes(content)
            page.locator("#item img, #item .text").wait_for()
            wait_for(page, "#classes button:enabled")
            press(page, 11, "1")
            saved(page, 11)
    assert on_disk(run) == [("ann", 10, "skip")] + [("ann", 11, "cat")] * (end is not None)


def test_an_answer_to_a_point_of_an_earlier_batch_that_nobody_sees_can_be_taken_back_only(run, write_run, open_page):
    with server(run) as address:
        page = open_page(address)
        press(page, 10, "1")
        saved(page, 10)
    forget(run)
    write_run(run, [30], asked_before=dict.fromkeys(range(10, 20), 3))
    with server(run) as address:
        page = open_page(address)
        wait_for(page, 'body[data-shown="30"]')
        page.keyboard.press(",")
        page.keyboard.press("Enter")
        press(page, 10, "2")
        page.get_by_text("Not taken: point 10 cannot be seen.").wait_for()
        assert "can be taken back" in page.locator("#item").inner_text()
        page.keyboard.press("Backspace")
        page.get_by_text("Taken back: the answer to point 10").wait_for()
    assert on_disk(run) == [("ann", 10, "cat"), ("ann", 10, "undo")]


def test_the_end_of_a_batch_says_what_became_of_its_points_with_commands_as_code(tmp_path, write_run, open_page):
    run = tmp_path / "run"
    write_run(run, [3, 4, 5])
    with server(run) as address:
        page = open_page(address)
        for index, key in ((3, "1"), (4, "u"), (5, "s")):
            press(page, index, key)
        page.get_by_text("Nothing is left to answer").wait_for()
        assert "Of 3 points: 1 with a label, 1 unsure, 1 skipped." in page.locator("#rest-text").inner_text()
        assert page.locator("#rest-text code").all_inner_texts() == ["al-lightning fit ..."]
        assert "`" not in page.locator("body").inner_text()


def test_one_point_that_waits_for_others_is_one_point(tmp_path, write_run, open_page):
    run = tmp_path / "run"
    write_run(run, [3], answers_per_point=2)
    with server(run) as address:
        page = open_page(address)
        press(page, 3, "1")
        page.get_by_text("No point is left for you").wait_for()
        words = page.locator("#rest-text").inner_text()
    assert words == (
        "Of 1 point: none with an answer. 1 point waits for other people. "
        "al-lightning fit ... --finish, or active_fit(..., finish=True) in a script, goes on without it."
    )


def test_backquotes_of_data_are_shown_as_they_are(tmp_path, write_run, open_page):
    run = tmp_path / "run"
    write_run(run, [3, 4], classes=["`cat`", "dog"])
    with server(run) as address:
        page = open_page(address)
        press(page, 3, "1")
        saved(page, 3)
        assert "Saved: `cat` for point 3." in page.locator("#news").inner_text()
        assert page.locator("#classes bdi").first.inner_text() == "`cat`"


def reach(page, selector: str, *, at_most: int = 60) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(at_most + 1):
        if page.evaluate("selector => document.activeElement === document.querySelector(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {selector}")


def test_one_of_many_classes_is_found_by_typing(tmp_path, write_run, open_page):
    names = [f"bird {number}" for number in range(150)] + ["owl"]
    write_run(tmp_path / "run", [3, 4, 5, 6], classes=names)
    with server(tmp_path / "run") as address:
        page = open_page(address)
        press(page, 3, "z")  # the last key: 9 digits and 23 letters
        wait_for(page, 'body[data-shown="4"]')
        page.keyboard.press("/")
        page.keyboard.type("ow")
        page.keyboard.press("Enter")
        wait_for(page, 'body[data-shown="5"]')
        page.keyboard.press("/")
        page.keyboard.type("bird 14")  # which ten others contain
        page.keyboard.press("Enter")
        wait_for(page, 'body[data-shown="6"]')
        saved(page, 5)
        page.keyboard.press("/")
        page.keyboard.type("bird")
        page.keyboard.press("Enter")
        page.get_by_text("classes match").wait_for()
    assert on_disk(tmp_path / "run") == [("ann", 3, "bird 31"), ("ann", 4, "owl"), ("ann", 5, "bird 14")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.skipif(AXE is None, reason=f"AL_LIGHTNING_AXE names no axe-core: {WAY}")
def test_axe_finds_nothing_serious(run, open_page, scheme):
    def serious() -> list[str]:
        page.evaluate(Path(AXE).read_text(encoding="utf-8"))
        found = page.evaluate("async () => (await axe.run()).violations")
        return [
            f"{each['id']}: {each['help']} {each['nodes'][0]['html']}"
            for each in found
            if each["impact"] in {"serious", "critical"}
        ]

    with server_process(run) as (process, address):
        page = open_page(address, color_scheme=scheme, viewport={"width": 320, "height": 640})
        press(page, 10, "1")
        saved(page, 10)
        assert serious() == []
        page.locator('#last li[data-id="10"] button').click()
        wait_for(page, 'body[data-shown="10"]')
        assert serious() == []
        process.kill()
        page.get_by_text("The server is away").wait_for()
        assert serious() == []


def test_what_is_shown_as_answered_is_on_disk_though_the_server_is_killed_at_once(run, open_page):
    with server_process(run) as (process, address):
        page = open_page(address)
        press(page, 10, "1")
        saved(page, 10)
        process.send_signal(signal.SIGKILL)
        assert on_disk(run) == [("ann", 10, "cat")]


def test_keys_pressed_while_the_server_is_away_are_pending_and_sent_when_it_is_back(run, open_page):
    with server_process(run) as (process, address):
        page = open_page(address)
        press(page, 10, "1")
        saved(page, 10)
        port = re.search(r":(\d+)/", address)[1]
        process.kill()
        process.wait()
        wait_for(page, 'body[data-shown="11"]')
        press(page, 11, "2")
        press(page, 12, "s")
        wait_for(page, '#last li[data-id="12"][data-state="pending"]')
        assert page.locator('#last li[data-state="answered"]').count() == 1
        assert page.locator("#count").inner_text() == "1 of 10"
        page.get_by_text("2 of your answers wait here").wait_for()
        page.once("dialog", lambda dialog: dialog.accept())
    with server_process(run, "--port", port):
        saved(page, 12)
        page.reload()
        wait_for(page, 'body[data-shown="13"]')
        assert page.locator("#problem").inner_text() == ""
    assert on_disk(run) == [("ann", 10, "cat"), ("ann", 11, "dog"), ("ann", 12, "skip")]


def test_an_answer_that_is_under_way_is_no_answer_yet(run, open_page):
    held = []
    with server(run) as address:
        page = open_page(address)
        page.route("**/answer", lambda route: route.continue_() if held else held.append(route))
        press(page, 10, "1")
        press(page, 11, "2")
        wait_for(page, '#last li[data-id="11"][data-state="pending"]')
        assert page.locator("#count").inner_text() == "0 of 10"
        assert len(held) == 1
        held[0].continue_()
        saved(page, 11)
    assert on_disk(run) == [("ann", 10, "cat"), ("ann", 11, "dog")]


def test_an_answer_whose_confirmation_was_lost_is_written_once(run, open_page):
    with server(run) as address:
        page = open_page(address)

        lost = []

        def lose(route) -> None:
            if lost:
                return route.continue_()
            lost.append(route.fetch().status)
            return route.abort()

        page.route("**/answer", lose)
        press(page, 10, "1")
        saved(page, 10)
    assert lost == [200]
    assert on_disk(run) == [("ann", 10, "cat")]


def test_a_page_of_another_origin_can_neither_answer_nor_read(run, open_page, tmp_path):
    (tmp_path / "site").mkdir()
    handler = lambda *arguments: http.server.SimpleHTTPRequestHandler(*arguments, directory=str(tmp_path / "site"))  # noqa: E731
    (tmp_path / "site" / "index.html").write_text("<title>evil</title>")
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    with server(run) as address:
        own = open_page(address)
        wait_for(own, "body[data-shown]")
        run_id = own.evaluate("state.run")
        page = open_page(f"http://localhost:{site.server_port}/")
        body = {"run": run_id, "id": 10, "kind": "label", "label": "cat", "who": "eve", "at": "2026-11-28T10:00:00Z"}
        for mode, content_type in (("cors", "application/json"), ("no-cors", "text/plain"), ("cors", "text/plain")):
            outcome = page.evaluate(
                """async ([address, body, mode, type]) => {
                    try {
                        const options = {method: "POST", mode, headers: {"Content-Type": type}, body};
                        const response = await fetch(address + "answer", options);
                        return response.type === "opaque" ? "opaque" : await response.text();
                    } catch { return "refused"; } }""",
                [address, json.dumps(body), mode, content_type],
            )
            assert outcome in {"refused", "opaque"}
        assert page.evaluate("a => fetch(a + 'state').then(r => r.text(), () => 'refused')", address) == "refused"
        framed = """a => new Promise(done => { const i = new Image(); i.onload = () => done("seen");
            i.onerror = () => done("refused"); i.src = a + "shown/10"; })"""
        assert page.evaluate(framed, address) == "refused"
    site.shutdown()
    site.server_close()
    assert on_disk(run) == []


def test_hostile_texts_and_names_are_shown_as_text(tmp_path, batch_of, open_page):
    folder = tmp_path / "<b>run<img src=x onerror=alert(1)>"
    (folder / "asked").mkdir(parents=True)
    (folder / "asked" / "3.txt").write_text(HOSTILE)
    points = [
        AskedPoint(3, shown="asked/3.txt", predicted=HOSTILE),
        AskedPoint(4, shown=f"asked/{HOSTILE}.png".replace("/s", "s")),
    ]
    write_asked(folder, batch_of([], points=points, classes=[HOSTILE, "\u202edog", "owl"]))
    (folder / "answers" / "<img src=x onerror=alert(1)>.jsonl").write_text('{"id"')
    with server(folder, show_predictions=True) as address:
        page = open_page(address)
        page.on("dialog", lambda dialog: pytest.fail("the page has run what is data"))
        wait_for(page, 'body[data-shown="3"]')
        assert page.locator("#item").inner_text() == HOSTILE
        assert page.locator("#classes bdi").first.inner_text() == HOSTILE
        assert f"Prediction: {HOSTILE}" in page.locator("#note").inner_text()
        assert page.locator("#run").inner_text() == folder.name
        assert "onerror=alert(1)>.jsonl:1" in page.locator("#unread").inner_text()
        page.keyboard.press("1")
        saved(page, 3)
        assert HOSTILE in page.locator("#last").inner_text()
        wait_for(page, 'body[data-shown="4"]')
        assert "onerror" in page.locator("#item").inner_text()
        assert page.locator("#item img, #classes img, #last img, #note img, script:not([src])").count() == 0
        assert "hacked" not in page.title()


def test_two_people_at_once_share_the_work_and_lose_nothing(run, open_page):
    with server(run) as address:
        ann, bob = open_page(address), open_page(address)
        wait_for(bob, "body[data-shown]")
        bob.locator("#who").fill("bob")
        bob.keyboard.press("Enter")
        both = {ann: "ann", bob: "bob"}
        given = []
        for page in (ann, ann, ann, bob, bob, ann):
            if len(given) == 3:
                bob.get_by_text("3 of 10").wait_for()
            wait_for(page, "body[data-shown]")
            shown = int(page.locator("body").get_attribute("data-shown"))
            page.keyboard.press("1")
            saved(page, shown)
            given.append((both[page], shown, "cat"))
        settled = {index for _, index, _ in given}
        for page in both:  # what the other has answered is done for both
            page.get_by_text(f"{len(settled)} of 10").wait_for()
    assert sorted(on_disk(run)) == sorted(given)
    assert len(settled) >= 4  # bob's second point is none of ann's first three


def test_the_next_batch_appears_by_itself_and_no_key_for_the_one_before_answers_it(run, write_run, open_page):
    with server(run) as address:
        page = open_page(address)
        press(page, 10, "1")
        saved(page, 10)
        (run / "asked.json").unlink()
        page.get_by_text("No points are asked for at the moment").wait_for()
        before = {"asked_before": dict.fromkeys(range(10, 20), 3)}
        write_run(run, [30, 31], **before)
        page.get_by_role("heading", name="Point 30").wait_for()
        page.keyboard.press("1")  # meant for a point that was there until now
        page.get_by_text("has only just come into sight").wait_for()
        press(page, 30, "2")
        saved(page, 30)
        page.locator('#last li[data-id="10"] button').click()  # of the batch before
        press(page, 10, "2")
        saved(page, 30)
        wait_for(page, 'body[data-shown="31"]')
        wait_for(page, '#last li[data-id="10"][data-state="answered"]')
    assert on_disk(run) == [("ann", 10, "cat"), ("ann", 30, "dog"), ("ann", 10, "dog")]


def test_a_large_picture_fits_a_narrow_screen_and_a_missing_one_is_told(tmp_path, batch_of, open_page):
    folder = tmp_path / "run"
    write_pictures(folder, batch_of([], classes=["a" * 200, "dog"]), [3, 4], side=4000)
    (folder / "asked" / "4.png").unlink()
    with server(folder) as address:
        page = open_page(address, viewport={"width": 320, "height": 640})
        wait_for(page, 'body[data-shown="3"]')
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        assert page.locator("#item img").bounding_box()["width"] <= 320
        page.keyboard.press("2")
        wait_for(page, 'body[data-shown="4"]')
        assert "asked/4.png) was deleted" in page.locator("#item").inner_text()
        page.keyboard.press("s")
        saved(page, 4)


def test_with_a_token_the_page_works_under_its_address_and_asks_for_a_name(run, open_page):
    command = [sys.executable, "-c", SERVE, str(run), "--port", "0", "--host", "0.0.0.0"]  # noqa: S104 - what is tested
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        path, port = re.search(r"http://[^:]+:(\d+)(/\S+)", process.stdout.readline()).groups()[::-1]
        page = open_page(f"http://127.0.0.1:{port}{path}")
        page.get_by_text("Who are you?").wait_for()
        page.locator("#who").fill("eve")
        page.keyboard.press("Enter")
        press(page, 10, "1")
        saved(page, 10)
    finally:
        process.kill()
        process.communicate()
    assert on_disk(run) == [("eve", 10, "cat")]
