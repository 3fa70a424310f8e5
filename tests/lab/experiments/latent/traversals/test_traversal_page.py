"""The page of traversals as a file: whole, closed, without the network, with every frame."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image, features
from sklearn.datasets import load_sample_images

from lab.experiments.latent.traversals.drawn import (
    HEIGHT,
    OWN,
    SAMPLES,
    VALUES,
    WIDTH,
    data_of,
    offsets,
    traversals,
)
from lab.report.pages import Page
from orthotrain.errors import ConfigError, NonFiniteError, ShapeError
from orthotrain.lab.experiments.latent.traversals import Traversals, save_traversals, traversal_page
from processes import run_python

BOTH = (traversals("none"), traversals("nog", tint=20))


def page(*drawn, **settings):
    return traversal_page(drawn or BOTH, **{"values": VALUES, "title": "Latents", **settings})


def cells(method, sample):
    """The frames of a sheet one after the other, as a browser decodes them."""
    head, _, content = method["sheets"][sample].partition(",")
    assert head == "data:image/webp;base64"
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))
    height, width, columns = method["height"], method["width"], method["columns"]
    assert sheet.shape[1] == columns * width
    rows = sheet.reshape(-1, height, columns, width, 3).swapaxes(1, 2)
    return rows.reshape(-1, height, width, 3)


def photographs(dims, steps, samples, side):
    """Blends of two patches of photographs: the detail of natural images in every frame."""
    photo = load_sample_images().images[0]
    rng = np.random.default_rng(0)
    corners = rng.integers(
        0, (photo.shape[0] - side, photo.shape[1] - side), (samples, dims + 1, 2)
    )
    patch = np.array([[photo[y : y + side, x : x + side] for y, x in row] for row in corners])
    base, ends = patch[:, 0], patch[:, 1:].swapaxes(0, 1)[:, None]
    way = np.linspace(0, 0.9, steps).reshape(1, -1, 1, 1, 1, 1)
    return np.rint(base * (1 - way) + ends * way).astype(np.uint8), base


def test_the_page_asks_the_network_for_nothing():
    text = page(BOTH[0], traversals("photo", dims=1))
    assert "://" not in text
    assert not re.search(r"@import|url\(|<iframe|<img|fetch\(|XMLHttp|WebSocket", text)
    parsed = Page(text)
    assert [link["href"] for link in parsed.all("link")] == ["data:,"]
    assert all("src" not in script for script in parsed.all("script"))
    (policy,) = [m["content"] for m in parsed.all("meta") if "content" in m and "http-equiv" in m]
    assert "default-src 'none'" in policy
    assert "img-src data:;" in policy


def test_every_frame_of_every_method_is_in_the_page():
    methods = data_of(page())["methods"]
    assert [method["name"] for method in methods] == ["none", "nog"]
    for method, drawn in zip(methods, BOTH, strict=True):
        assert (method["height"], method["width"]) == (HEIGHT, WIDTH)
        for sample in range(SAMPLES):
            found = cells(method, sample)
            frames = drawn.frames[:, :, sample].reshape(-1, HEIGHT, WIDTH, 3)
            np.testing.assert_array_equal(found[: len(frames)], frames)
            np.testing.assert_array_equal(found[len(frames)], drawn.base[sample])


def test_the_numbers_of_the_page_are_those_given():
    active = traversals("none", activeness=np.array([0.5, 2.0], np.float32), note="a note")
    data = data_of(page(active, traversals("nog", labels=["a", "b"])))
    assert data["values"] == list(VALUES)
    first, second = data["methods"]
    assert first["own"] == OWN.tolist()
    assert (first["activeness"], second["activeness"]) == ([0.5, 2.0], None)
    assert (first["order"], second["order"]) == ([1, 0], [0, 1])
    assert (first["labels"], second["labels"]) == (["z[0]", "z[1]"], ["a", "b"])
    assert (first["note"], second["note"]) == ("a note", "")


def test_offsets_rest_at_zero_on_the_frame_there():
    drawn = offsets()
    (method,) = data_of(page(drawn))["methods"]
    assert method["own"] == np.zeros((SAMPLES, 2)).tolist()
    for sample in range(SAMPLES):
        unmoved = cells(method, sample)[2 * len(VALUES)]
        np.testing.assert_array_equal(unmoved, drawn.frames[0, 1, sample])


def test_offsets_may_differ_by_rounding_but_not_by_more():
    drawn = offsets()
    drawn.frames[1, 1, 0, 5, 5, 0] += 1
    assert data_of(page(drawn))["methods"]
    drawn.frames[1, 1, 0, 5, 5, 0] += 1
    with pytest.raises(ConfigError, match="differ by up to 2 of 255 levels"):
        page(drawn)


def test_gray_images_and_methods_of_another_size_are_taken():
    gray = Traversals(
        "gray", traversals(dims=1).frames[..., ::2, ::2, 2:], base_values=OWN[:, :1],
        base=traversals().base[:, ::2, ::2, :1],
    )  # fmt: skip
    methods = data_of(page(BOTH[0], gray))["methods"]
    assert (methods[1]["height"], methods[1]["width"]) == (6, 4)
    found = cells(methods[1], 2)
    np.testing.assert_array_equal(found[:4, ..., :1], gray.frames[0, :, 2])
    np.testing.assert_array_equal(found[..., 0], found[..., 1])


def test_names_are_text_not_markup():
    nasty = '</script><script>alert(1)</script> & "x" <img src=x onerror=alert(2)>'
    text = page(
        traversals(nasty, labels=[nasty, "b"], note=nasty), traversals("nog"),
        title=nasty, note=nasty,
    )  # fmt: skip
    parsed = Page(text)
    assert len(parsed.all("script")) == 2
    assert parsed.all("img") == []
    # Title, heading, note, and the choice of the method; the rest is data of the script.
    assert parsed.text().count(nasty) == 4
    first = data_of(text)["methods"][0]
    assert (first["name"], first["labels"][0], first["note"]) == (nasty, nasty, nasty)


def test_the_same_traversals_give_the_same_page():
    assert page() == page()


def test_eight_methods_of_photographs_fit_in_ten_megabytes():
    frames, base = photographs(dims=6, steps=11, samples=1, side=64)
    drawn = Traversals("photo", frames, base=base, base_values=np.zeros((1, 6)))
    values = np.linspace(-3, 3, 11)
    (method,) = data_of(page(drawn, values=values))["methods"]
    sheets = 8 * 6
    assert sheets * len(method["sheets"][0]) < 10e6
    # Less than a photograph's own JPEG at quality 90 loses here.
    error = cells(method, 0)[:66].astype(float) - frames[:, :, 0].reshape(-1, 64, 64, 3)
    assert 0 < np.sqrt((error**2).mean()) < 6
    (exact,) = data_of(page(drawn, values=values, quality="lossless"))["methods"]
    np.testing.assert_array_equal(
        cells(exact, 0)[:66].reshape(frames[:, :, 0].shape), frames[:, :, 0]
    )
    (rough,) = data_of(page(drawn, values=values, quality=20))["methods"]
    assert len(rough["sheets"][0]) < len(method["sheets"][0]) / 2


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("drawn", "settings", "error", "message"),
    [
        ((), {}, ConfigError, "at least one method"),
        ((traversals("a"), traversals("a")), {}, ConfigError, r"\['a', 'a'\]"),
        (BOTH, {"values": VALUES[:3]}, ShapeError, "'none' has 4 steps, values are 3"),
        (BOTH, {"values": (-2, 0, 0, 3)}, ConfigError, "increasing"),
        (BOTH, {"values": (0,)}, ConfigError, "at least two values"),
        (BOTH, {"values": (-2, 0, float("nan"), 3)}, NonFiniteError, "finite values"),
        (BOTH, {"quality": 0}, ConfigError, "got 0"),
        (BOTH, {"quality": 101}, ConfigError, "got 101"),
        (BOTH, {"quality": True}, ConfigError, "got True"),
        (BOTH, {"quality": "best"}, ConfigError, "got 'best'"),
        ((offsets(),), {"values": (-2, 1, 2, 3)}, ConfigError, "no zero to take it from"),
    ],
)
def test_what_does_not_go_together_is_a_typed_error(drawn, settings, error, message):
    with pytest.raises(error, match=message):
        traversal_page(drawn, **{"values": VALUES, "title": "Latents", **settings})


@pytest.mark.bad_input
def test_methods_on_other_samples_are_refused():
    fewer = Traversals("few", offsets().frames[:, :, :2])
    with pytest.raises(ShapeError, match="'none' has 3, 'few' has 2"):
        page(offsets(), fewer)


@pytest.mark.bad_input
def test_a_sheet_that_no_picture_can_hold_is_refused():
    wide = Traversals("wide", np.zeros((1, 4, 1, 1, 6000, 1), np.uint8))
    with pytest.raises(ShapeError, match="5 frames of 1 x 6000 pixels"):
        page(wide)


@pytest.mark.bad_input
def test_a_pillow_without_webp_is_a_typed_error(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.raises(ConfigError, match="WebP"):
        page()


def test_saved_traversals_are_the_page(tmp_path):
    path = save_traversals(
        tmp_path / "new/folder/latents.html", BOTH, values=VALUES, title="T", note="N", quality=50
    )
    assert path == tmp_path / "new/folder/latents.html"
    assert path.read_text() == page(title="T", note="N", quality=50)
    assert [entry.name for entry in path.parent.iterdir()] == ["latents.html"]


@pytest.mark.bad_input
def test_a_file_that_cannot_be_written_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="could not write"):
        save_traversals(tmp_path / "file/page.html", BOTH, values=VALUES, title="T")


@pytest.mark.bad_input
def test_a_refused_page_leaves_the_last_good_one(tmp_path):
    path = save_traversals(str(tmp_path / "page.html"), BOTH, values=VALUES, title="T")
    before = path.read_text()
    with pytest.raises(ShapeError):
        save_traversals(path, BOTH, values=VALUES[:3], title="T")
    assert path.read_text() == before


def test_the_page_needs_no_torch_and_no_pyplot(tmp_path):
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from orthotrain.lab.experiments.latent.traversals import Traversals, save_traversals\n"
        "frames = np.zeros((1, 2, 1, 8, 8, 3), np.uint8)\n"
        f"path = {str(tmp_path / 'page.html')!r}\n"
        "save_traversals(path, [Traversals('none', frames)], values=[0, 1], title='T')\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    run_python(program)
    assert (tmp_path / "page.html").exists()
