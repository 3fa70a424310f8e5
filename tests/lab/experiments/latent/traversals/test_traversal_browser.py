"""The page in a real browser: it is dragged, chosen from and looked at, and nothing leaves it."""

from dataclasses import replace

import numpy as np
import pytest

from lab.experiments.latent.traversals import chromium
from lab.experiments.latent.traversals.drawn import HEIGHT, OWN, VALUES, WIDTH, traversals
from orthotrain.lab.experiments.latent.traversals.page import traversal_page

NONE = traversals("none", activeness=np.array([2.0, 1.0]))
NOG = traversals("nog", tint=20, activeness=np.array([1.0, 2.0]))
LAST = len(VALUES) - 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = chromium.find()
    if program is None:
        pytest.skip(chromium.MISSING)
    running = chromium.Browser(program, tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()


@pytest.fixture
def show(browser, tmp_path):
    """``show(*traversals, width=...) -> tab`` with their page open; a complaint fails the test."""
    tabs = []

    def open_page(*drawn, title="Latents", note="", **look):
        path = tmp_path / f"page-{len(tabs)}.html"
        path.write_text(traversal_page(drawn or (NONE, NOG), title=title, note=note))
        tab = browser.open(path, **look)
        tabs.append((tab, path))
        return tab

    yield open_page
    for tab, path in tabs:
        assert tab.complaints() == []
        assert tab.requests() == [path.as_uri()]
        tab.close()


def picture(tab, index=0, canvas=".tile canvas"):
    """What a canvas holds, the first tile's unless told."""
    # Through a copy made for reading: the browser complains of repeated reading from a canvas.
    width, height, *channels = tab.run(
        f"""(canvas => {{
            const [width, height] = [canvas.width, canvas.height];
            const blank = new OffscreenCanvas(width, height);
            const copy = blank.getContext("2d", {{ willReadFrequently: true }});
            copy.drawImage(canvas, 0, 0);
            return [width, height, ...copy.getImageData(0, 0, width, height).data];
        }})(document.querySelectorAll("{canvas}")[{index}])"""
    )
    return np.array(channels, np.uint8).reshape(height, width, 4)[..., :3]


def shows(tab, frame, index=0, canvas=".tile canvas"):
    """Whether a canvas comes to show this very frame."""
    for _ in range(100):
        if np.array_equal(picture(tab, index, canvas), frame):
            return True
        tab.run("new Promise((done) => setTimeout(done, 10))")
    return False


def drag(tab, dim, start, end):
    """Take the thumb of a slider at one share of its way and let go of it at another."""
    left, top, width, height = tab.box(f"#dim-{dim}")
    at = [(left + 9 + share * (width - 18), top + height / 2) for share in (start, end)]
    tab.drag(*at)


def slider_value(tab, dim):
    return tab.run(f"document.getElementById('dim-{dim}').valueAsNumber")


def pick(tab, field, value):
    """Choose an option as the list of a browser without a window does: set, then say so."""
    tab.run(
        f"(e => {{ e.value = '{value}'; e.dispatchEvent(new Event('change')); }})"
        f"(document.getElementById('{field}'))"
    )


def test_it_opens_with_the_unmoved_samples(show):
    tab = show()
    assert tab.run("document.title") == "Latents"
    assert shows(tab, NONE.base[0], 0)
    assert shows(tab, NOG.base[0], 1)
    assert [slider_value(tab, dim) for dim in (0, 1)] == OWN[0].tolist()
    assert tab.run("document.querySelector('.tile small').textContent") == "unmoved"


def test_dragging_a_slider_changes_the_picture_on_the_screen(show):
    tab = show()
    assert shows(tab, NONE.base[0])
    before = tab.pixels(".tile canvas")
    drag(tab, 0, 0.0, 1.0)
    assert shows(tab, NONE.frames[0, LAST, 0], 0)
    assert shows(tab, NOG.frames[0, LAST, 0], 1)
    after = tab.pixels(".tile canvas")
    middle = (before.shape[0] // 2, before.shape[1] // 2)
    assert before[middle].tolist() == NONE.base[0, HEIGHT // 2, WIDTH // 2].tolist()
    assert after[middle].tolist() == NONE.frames[0, LAST, 0, HEIGHT // 2, WIDTH // 2].tolist()
    assert tab.run("document.querySelector('.tile small').textContent") == "z[0] = +3.0"


def test_a_slider_stops_at_the_nearest_frame(show):
    tab = show()
    # From -2.5, the sample's own, to 3: these are 1.625 and 1.075, on both sides of 1.5.
    for share in (0.75, 0.65):
        drag(tab, 0, 0.0, share)
        assert slider_value(tab, 0) == 1.5
        assert shows(tab, NONE.frames[0, 2, 0])
        tab.click("#reset")


def test_moving_one_slider_returns_the_others(show):
    tab = show()
    drag(tab, 0, 0.0, 1.0)
    drag(tab, 1, (0.4 + 2) / 5, 0.0)
    assert [slider_value(tab, dim) for dim in (0, 1)] == [OWN[0, 0], VALUES[0]]
    assert shows(tab, NONE.frames[1, 0, 0])
    assert tab.run("document.querySelectorAll('.slider.moved').length") == 1


def test_reset_returns_all(show):
    tab = show()
    drag(tab, 1, 0.48, 1.0)
    assert shows(tab, NONE.frames[1, LAST, 0])
    tab.click("#reset")
    assert shows(tab, NONE.base[0])
    assert [slider_value(tab, dim) for dim in (0, 1)] == OWN[0].tolist()


def test_arrow_keys_walk_over_every_frame_and_the_sample_itself(show):
    tab = show()
    tab.run("document.getElementById('dim-1').focus()")
    tab.press("Home")
    seen = []
    for _ in range(len(VALUES) + 1):
        seen.append(slider_value(tab, 1))
        step = None if seen[-1] == OWN[0, 1] else VALUES.index(seen[-1])
        assert shows(tab, NONE.base[0] if step is None else NONE.frames[1, step, 0])
        tab.press("ArrowRight")
    assert seen == sorted([*VALUES, OWN[0, 1]])
    assert slider_value(tab, 1) == VALUES[-1]
    tab.press("ArrowLeft")
    assert slider_value(tab, 1) == VALUES[-2]
    tab.press("End")
    assert slider_value(tab, 1) == VALUES[-1]
    spoken = tab.run("document.getElementById('dim-1').getAttribute('aria-valuetext')")
    assert spoken == "+3.0"


def test_another_sample_keeps_what_is_moved(show):
    tab = show()
    drag(tab, 1, 0.48, 1.0)
    tab.click("#samples label:nth-of-type(3)")
    assert shows(tab, NONE.frames[1, LAST, 2], 0)
    assert shows(tab, NOG.frames[1, LAST, 2], 1)
    assert [slider_value(tab, dim) for dim in (0, 1)] == [OWN[2, 0], VALUES[-1]]
    # The sample's own value lies beyond the values, and the slider reaches it.
    assert tab.run("document.getElementById('dim-1').max") == "3.5"
    tab.press("ArrowLeft")
    assert shows(tab, NONE.frames[1, LAST, 1], 0)


def test_a_picture_that_is_decoded_late_does_not_replace_a_newer_one(show):
    # Pictures never say that they are complete; the test says when each has loaded.
    late = """
        const late = [];
        Object.defineProperty(HTMLImageElement.prototype, "complete", { get: () => false });
        HTMLImageElement.prototype.addEventListener = function (_, paint) {
            late.push({ image: this, paint });
        };
    """
    tab = show(NONE, before=late)
    tab.wait("late.length")
    tab.click("#samples label:nth-of-type(2)")
    tab.wait("document.querySelector('#samples label:nth-of-type(2) input').checked")
    tab.run("Promise.all(late.map(({ image }) => image.decode())).then(() => {})")
    tab.run("late.reverse().forEach(({ paint }) => paint())")
    assert shows(tab, NONE.base[1])


def test_another_method_takes_its_place(show):
    tab = show()
    tab.click("#beside")
    drag(tab, 0, 0.0, 1.0)
    assert tab.run("document.querySelectorAll('.tile')[1].checkVisibility()") is False
    assert shows(tab, NONE.base[2], 2, "#samples canvas")
    pick(tab, "method", 1)
    assert shows(tab, NOG.base[2], 2, "#samples canvas")
    assert tab.run("[...document.querySelectorAll('.tile')].map(t => t.checkVisibility())") == [
        False,
        True,
    ]
    assert shows(tab, NOG.frames[0, LAST, 0], 1)
    labels = "[...document.querySelectorAll('.slider label')].map(e => e.textContent)"
    assert tab.run(labels) == ["z[1]", "z[0]"]
    assert "nog" in tab.run("document.getElementById('sliders-title').textContent")


def test_a_click_on_a_picture_chooses_its_method(show):
    tab = show()
    drag(tab, 0, 0.0, 1.0)
    tab.click(".tile:nth-child(2)")
    assert tab.run("document.getElementById('method').value") == "1"
    pressed = "[...document.querySelectorAll('.tile')].map(t => t.getAttribute('aria-pressed'))"
    assert tab.run(pressed) == ["false", "true"]
    assert slider_value(tab, 0) == VALUES[-1]


def test_the_others_can_move_their_dimension_of_the_same_rank(show):
    tab = show()
    pick(tab, "match", "rank")
    drag(tab, 0, 0.0, 1.0)
    assert shows(tab, NONE.frames[0, LAST, 0], 0)
    assert shows(tab, NOG.frames[1, LAST, 0], 1)
    captions = "[...document.querySelectorAll('.tile small')].map(e => e.textContent)"
    assert tab.run(captions) == ["z[0] = +3.0", "z[1] = +3.0"]
    # What a picture shows stays when its method becomes the one with the sliders.
    tab.click(".tile:nth-child(2)")
    assert shows(tab, NOG.frames[1, LAST, 0], 1)
    assert shows(tab, NONE.frames[0, LAST, 0], 0)


def test_a_method_without_the_dimension_says_so(show):
    fewer = traversals("few", tint=30, dims=1)
    tab = show(NONE, fewer)
    drag(tab, 1, 0.48, 1.0)
    assert shows(tab, NONE.frames[1, LAST, 0], 0)
    assert shows(tab, fewer.base[0], 1)
    captions = "[...document.querySelectorAll('.tile small')].map(e => e.textContent)"
    assert tab.run(captions) == ["z[1] = +3.0", "no such dimension"]
    tab.click(".tile:nth-child(2)")
    assert tab.run(captions) == ["unmoved", "unmoved"]


def test_one_method_is_a_page_without_a_choice(show):
    tab = show(NONE)
    assert not tab.run("document.getElementById('method').checkVisibility()")
    assert not tab.run("document.getElementById('match').checkVisibility()")


def test_lossy_frames_stay_in_their_cells(show):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 64, (2, 4, 1, 16, 16, 3))
    level = np.arange(8).reshape(2, 4, 1, 1, 1, 1) * 24
    frames = (noise + level).astype(np.uint8)
    own = np.full((1, 2), -3.0)
    tab = show(replace(NONE, frames=frames, base=frames[0, 0], base_values=own))
    drag(tab, 1, 0.0, 1.0)
    tab.wait("document.querySelector('.slider.moved')")
    found = picture(tab).astype(float)
    errors = np.abs(found - frames[..., :].reshape(8, 16, 16, 3)).mean(axis=(1, 2, 3))
    assert errors.argmin() == 7


def test_names_are_shown_as_they_are(show):
    nasty = '</script><script>alert(1)</script> <img src=x onerror=alert(2)> "&amp;'
    tab = show(traversals(nasty), NOG, title=nasty, note=nasty)
    drag(tab, 0, 0.0, 1.0)
    for place in ("h1", ".note", ".tile span", "option"):
        assert tab.run(f"document.querySelector('{place}').textContent") == nasty
    assert tab.events("Page.javascriptDialogOpening") == []


@pytest.mark.parametrize("drawn", [(NONE, NOG), (NONE,)], ids=["two", "one"])
def test_at_phone_width_nothing_is_cut_and_the_picture_stays_in_sight(show, drawn):
    many = [traversals(d.method, dims=12) for d in drawn]
    tab = show(*many, width=360, height=640, touch=True)
    assert tab.run("document.documentElement.scrollWidth") == 360
    drag(tab, 11, 0.48, 1.0)
    assert shows(tab, many[0].frames[11, LAST, 0])
    _, top, _, height = tab.run(
        "(r => [r.x, r.y, r.width, r.height])"
        "(document.querySelector('.tile canvas').getBoundingClientRect())"
    )
    assert top >= 0
    assert top + height < 641
    assert tab.run("document.getElementById('dim-11').getBoundingClientRect().bottom") < 641


def test_it_follows_the_users_appearance(show):
    tab = show()
    paper = "getComputedStyle(document.body).backgroundColor"
    light = tab.run(paper)
    tab.look(dark=True)
    dark = tab.run(paper)
    assert light != dark
    tab.click("#theme")
    assert tab.run(paper) == light
    scroll = "getComputedStyle(document.documentElement).scrollBehavior"
    assert tab.run(scroll) == "smooth"
    tab.call(
        "Emulation.setEmulatedMedia",
        features=[{"name": "prefers-reduced-motion", "value": "reduce"}],
    )
    assert tab.run(scroll) == "auto"


def test_every_control_can_be_reached_by_the_keyboard(show):
    tab = show()
    reached = []
    for _ in range(9):
        tab.press("Tab")
        reached.append(tab.run("document.activeElement.id || document.activeElement.className"
                               " || document.activeElement.name"))  # fmt: skip
    wanted = ["theme", "method", "beside", "match", "sample", "tile", "tile", "reset", "dim-0"]
    assert reached == wanted


def test_the_policy_of_the_page_refuses_the_network(browser, tmp_path):
    # Also shows that the checks of the other tests can fail.
    path = tmp_path / "page.html"
    path.write_text(traversal_page([NONE], title="Latents", note=""))
    tab = browser.open(path)
    assert tab.complaints() == []
    refused = tab.run(
        "new Promise((done) => {"
        "addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective));"
        "document.body.append(Object.assign(new Image(), {src: 'http:' + '//127.0.0.1:9/x.png'}));"
        "})"
    )
    assert refused == "img-src"
    assert tab.complaints() != []
    tab.close()
