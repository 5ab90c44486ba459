"""The search page as a person uses it, in Chromium: keys, playing, boxes, permalinks, and texts that try to run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, NO_CHROMIUM, Page, Pipe, chromium
from served import CLIPS, WICKED, make_store, serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)

SHOWN = "document.querySelector('#results:not([aria-busy])')?.querySelectorAll('article').length"
STATUS = "document.getElementById('status')?.textContent"
ORDER = "[...document.querySelectorAll('li:not([hidden]) > article')].map((article) => article.dataset.clip)"
ACTIVE = "document.activeElement.dataset.clip ?? document.activeElement.id"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = make_store(tmp_path_factory.mktemp("served"))
    with serving(store, store.parent / "videos") as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipe]:
    with chromium(tmp_path_factory.mktemp("profile")) as pipe:
        yield pipe


@pytest.fixture
def page(browser: Pipe, url: str) -> Iterator[Page]:
    """The first page, with all clips; no script may have failed in the end, and no text may have run."""
    page = Page(browser)
    page.open(url)
    page.wait(f"{SHOWN} === {len(CLIPS)}")
    yield page
    assert page.run("window.hurt") is None
    assert page.errors == []
    page.close()


def of(clip: str, rest: str = "") -> str:
    """The script for a part of a clip's card."""
    return f"[...document.querySelectorAll('article')].find((one) => one.dataset.clip === {clip!r}){rest}"


def place(page: Page, selector: str) -> list[float]:
    """x, y, width and height of an element, in the window."""
    box = f"document.querySelector({selector!r}).getBoundingClientRect()"
    return page.run(f"(({{ x, y, width, height }}) => [x, y, width, height])({box})")


def test_a_query_is_typed_and_its_best_clip_plays_from_its_start_to_its_end(page: Page) -> None:
    page.press("/")
    assert page.run(ACTIVE) == "query"
    page.type("dog ball")
    page.press("Enter")
    page.wait(f"{STATUS} === '6 clips, the best first'")
    assert page.run(ORDER)[0] == "dog"
    page.run("document.activeElement.blur()")
    page.press("j")
    assert page.run(ACTIVE) == "dog"
    page.press("Enter")
    page.wait(of("dog", ".querySelector('video')?.paused === false"))
    assert page.run(of("dog", ".querySelector('video').currentTime")) >= 0.5
    page.wait(of("dog", ".querySelector('video').paused"))
    assert 1.4 < page.run(of("dog", ".querySelector('video').currentTime")) < 1.5
    page.press(" ")  # once more
    page.wait(of("dog", ".querySelector('video').currentTime < 1.2"))
    page.wait("((video) => !video.paused && video.currentTime >= 0.5)(" + of("dog", ".querySelector('video')") + ")")
    page.press("j")
    assert page.run(ACTIVE) == "cat"
    page.press("Enter")  # only one plays
    page.wait(of("cat", ".querySelector('video')?.paused === false"))
    assert page.run(of("dog", ".querySelector('video').paused"))


def test_boxes_lie_on_the_frame_that_they_were_found_in(page: Page) -> None:
    page.run(of("dog", ".focus()"))
    page.press("b")
    page.wait("document.querySelectorAll('svg rect').length === 2")
    assert page.run(of("dog", ".querySelector('video').currentTime")) == pytest.approx(0.9, abs=0.02)
    rect, video = (place(page, name) for name in ("svg rect:last-of-type", "video"))  # the best is drawn last
    scale = video[3] / 240  # the picture is 4 : 3 in a frame of 16 : 9
    left = video[0] + (video[2] - 320 * scale) / 2
    assert rect == pytest.approx([left + 160 * scale, video[1] + 120 * scale, 160 * scale, 120 * scale], abs=2)
    assert page.run("[...document.querySelectorAll('svg text')].map((text) => text.textContent)") == [
        "ball 0.25",
        f"{WICKED} 0.75",
    ]
    page.press("b")
    page.wait("document.querySelectorAll('svg rect').length === 0")


def test_an_address_shows_the_same_again_and_back_goes_back(page: Page, url: str) -> None:
    page.open(f"{url}/?q=a+dog+dreams&split=test&stream=motion&score=0.5")
    page.wait(f"{STATUS} === '1 of 2 clips'")
    assert page.run(ORDER) == ["cat"]
    chosen = page.run("['query', 'split', 'stream'].map((id) => document.getElementById(id).value)")
    assert chosen == ["a dog dreams", "test", "motion"]
    assert page.run("document.title") == "a dog dreams - amex"
    page.run("((one) => { one.value = ''; one.dispatchEvent(new Event('change')) })(document.getElementById('split'))")
    page.wait(f"{SHOWN} === 6")
    assert page.run("location.search") == "?q=a+dog+dreams&stream=motion"
    page.back()
    page.wait(f"{STATUS} === '1 of 2 clips'")
    page.back(1)
    page.wait(f"{SHOWN} === 6")
    page.run("((one) => { one.value = 0.9; one.dispatchEvent(new Event('input')) })(document.getElementById('score'))")
    assert page.run(STATUS) == "1 of 6 clips"
    page.open(f"{url}/?k=2&score=x")
    page.wait(f"{SHOWN} === 2")
    page.run("document.getElementById('more').click()")
    page.wait(f"{SHOWN} === 6")
    assert page.run(ACTIVE) == "wok"  # the first of those that came


def test_captions_that_fit_a_clip_are_searches(page: Page) -> None:
    page.run(of("cat", ".focus()"))
    page.press("c")
    page.wait(of("cat", ".querySelector('.fitting a')"))
    page.run(of("cat", ".querySelectorAll('.fitting a')[1].click()"))
    page.wait("document.title === 'a cat dreams of a dog - amex'")
    page.wait(f"{STATUS} === '6 clips, the best first'")
    assert page.run("document.getElementById('query').value") == "a cat dreams of a dog"


def test_texts_and_names_run_nothing(page: Page, url: str) -> None:
    page.press("/")
    page.type(WICKED)
    page.press("Enter")
    page.wait(f"document.title.startsWith('<img') && {SHOWN} === 6")
    assert page.run(of(WICKED, ".querySelector('.caption').textContent")) == WICKED
    page.run(of(WICKED, ".querySelector('[data-action=captions]').click()"))
    page.wait(of(WICKED, ".querySelector('.fitting a')"))
    page.run(of(WICKED, ".querySelector('.play').click()"))
    page.wait(of(WICKED, ".querySelector('video')"))
    page.open(f"{url}/?q=fail")
    assert page.wait("document.querySelector('#error:not([hidden])')?.textContent") == f"no encoder for {WICKED}"
    assert page.run("document.querySelectorAll('main img[src=x], main script').length") == 0


def test_what_the_browser_cannot_play_is_played_from_a_copy_or_said(page: Page) -> None:
    page.run(of("wok", ".querySelector('.play').click()"))
    page.wait(of("wok", ".querySelector('video')?.currentTime > 0.1"))
    assert "converted copy" in page.run(of("wok", ".querySelector('.note').textContent"))
    page.wait(of("broken", ".querySelector('.play.bare')"))
    page.run(of("broken", ".querySelector('.play').click()"))
    assert "not a video file" in page.wait(of("broken", ".querySelector('.note.bad')?.textContent"))


def test_keys_are_shown_and_a_phone_shows_all_in_the_dark(page: Page, tmp_path: Path) -> None:
    page.press("?")
    assert page.run("document.getElementById('keys').open")
    page.press("Escape")
    page.wait("!document.getElementById('keys').open")
    page.size(360, 740)
    page.media(prefers_color_scheme="dark")
    assert page.run("document.documentElement.scrollWidth") == 360
    dark = page.run("getComputedStyle(document.body).backgroundColor")
    page.media(prefers_color_scheme="light")
    assert page.run("getComputedStyle(document.body).backgroundColor") != dark
    unnamed = "(one) => !(one.labels?.length || one.ariaLabel || one.textContent.trim())"
    assert page.run(f"[...document.querySelectorAll('button, input, select, video, a')].filter({unnamed}).length") == 0
