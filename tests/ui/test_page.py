"""The page in headless Chromium: it asks, shows the answer as it comes and draws the tree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.serve import BackgroundServer
from tests.api.harness import diffusion_settings, noisy_settings
from tests.diffusion_models import write_tiny
from tests.ui.browser import CHROMIUM, Page

pytestmark = [
    pytest.mark.ui,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the PATH"),
]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    asked = "strategy=best_of_n&width=5&seed=7&q=2%2B2%3D4"
    with BackgroundServer(noisy_settings()) as url, Page(f"{url}/?{asked}", tmp_path) as opened:
        opened.until("document.querySelector('#question')?.value === '2+2=4'")
        yield opened


def texts(page: Page, selector: str) -> list[str]:
    found: list[str] = page.run(
        f"[...document.querySelectorAll({selector!r})].map((one) => one.textContent)"
    )
    return found


def test_asking_draws_the_tree(page: Page) -> None:
    page.run("byId('send').click()")
    page.until("document.querySelector('footer') && byId('stop').hidden")
    assert texts(page, "#messages .user") == ["2+2=4"]
    assert texts(page, "#messages .error") == []
    [footer] = texts(page, "#messages footer")
    assert footer.startswith("best_of_n · seed 7 · score 0.500 · ")
    kinds = page.run("[...document.querySelectorAll('circle')].map((c) => c.classList[0])")
    assert sorted(kinds) == ["chosen"] + ["finished"] * 4 + ["root"]
    assert page.run("document.querySelectorAll('path.on-way').length") == 1
    assert "5 branches, depth 1" in texts(page, "#figures")[0]


def test_an_answer_stands_without_its_tree(page: Page) -> None:
    page.run("getJson = async () => { throw new Error('the run is gone'); }")
    page.run("byId('send').click()")
    page.until("document.querySelector('footer') && byId('stop').hidden")
    assert texts(page, "#messages .error") == []
    assert page.run("conversation.length") == 2
    assert texts(page, "#figures") == ["No tree: the run is gone"]


def test_a_branch_shows_its_score_and_its_text(page: Page) -> None:
    page.run("byId('send').click()")
    page.until("document.querySelector('footer') && byId('stop').hidden")
    assert any("score 0.5000" in title for title in texts(page, "circle title"))
    chosen = "document.querySelector('circle.chosen')"
    page.run(f"{chosen}.dispatchEvent(new MouseEvent('click'))")
    assert page.run("byId('detail').hidden") is False
    answer = page.run("document.querySelector('#messages .assistant').firstChild.data")
    assert answer
    assert texts(page, "#detail-text") == [answer]
    page.run("byId('close').click()")
    assert page.run("byId('detail').hidden") is True


def test_a_refusal_is_shown(page: Page) -> None:
    page.run("byId('width').value = 100000, byId('send').click()")
    page.until("document.querySelector('#messages .error')")
    assert texts(page, "#messages .error")[0].startswith("bough.params.width is 100000")
    assert page.run("document.querySelectorAll('circle').length") == 0
    assert page.run("byId('send').disabled") is False


def test_nothing_comes_from_elsewhere(page: Page) -> None:
    origins = page.run(
        "performance.getEntriesByType('resource').map((one) => new URL(one.name).origin)"
    )
    assert set(origins) == {page.run("location.origin")}


def test_a_denoising_tree_shows_its_masks(tmp_path: Path) -> None:
    directory = write_tiny(tmp_path / "model", "llada")
    asked = "model=tiny&strategy=dts_star&width=2&q=2%2B2"
    profile = tmp_path / "profile"
    with (
        BackgroundServer(diffusion_settings(directory)) as url,
        Page(f"{url}/?{asked}", profile) as page,
    ):
        page.until("document.querySelector('#question')?.value === '2+2'")
        for times in (1, 2):
            page.run("conversation.length = 0, byId('question').value = '2+2'")
            page.run("byId('send').click()")
            page.until(f"document.querySelectorAll('footer').length === {times} && !running")
        assert "evaluations" in texts(page, "#messages footer")[0]
        assert "from earlier requests" in texts(page, "#figures")[0]
        begun = "document.querySelector('circle.kept')"
        page.run(f"{begun}.dispatchEvent(new MouseEvent('click'))")
        assert "\u2591" in texts(page, "#detail-text")[0]
        facts = texts(page, "#detail-facts div")
        assert any("steps" in one for one in facts)
        assert any("an earlier request" in one for one in facts)
