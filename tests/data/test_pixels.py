"""From an encoded image to RGB: every kind of pixel has one documented way."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from orthotrain.data._pixels import centre_square


def encoded(image, kind="PNG", **settings):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **settings)
    return buffer.getvalue()


def pixels(source, size=4):
    return centre_square(source, size=size, image=Image)[0]


def color(source):
    """The one color of an image."""
    (found,) = np.unique(pixels(source).reshape(-1, 3), axis=0)
    return tuple(found.tolist())


def sixteen_bit_png(values, *, channels):
    """A PNG of 16 bits a channel, which Pillow reads but does not write in color."""
    height, width = values.shape
    rows = np.repeat(values[..., None], channels, axis=2).astype(">u2")

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    kind = {1: 0, 3: 2}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        # A hidden color does not come out, and half of one is half white.
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 100, 200, 51), (204, 224, 244)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("I;16", 0x12FF, (0x12, 0x12, 0x12)),
        ("I;16", 0xFFFF, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(mode, value, expected):
    assert color(encoded(Image.new(mode, (4, 6), value))) == expected


def test_sixteen_bit_gray_is_read_like_sixteen_bit_color():
    values = np.array([[0, 255, 256, 257], [383, 30_000, 65_279, 65_535]] * 2)
    gray, rgb = (pixels(sixteen_bit_png(values, channels=c)) for c in (1, 3))
    assert gray.tolist() == rgb.tolist()
    assert gray[:2, :, 0].tolist() == [[0, 0, 1, 1], [1, 117, 254, 255]]


def test_a_palette_is_looked_up_and_may_be_transparent():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30, 255, 0, 0])
    assert color(encoded(image)) == (10, 20, 30)
    image.paste(2, (0, 0, 2, 4))
    found = pixels(encoded(image, transparency=2))
    assert found[:, :2].tolist() == np.full((4, 2, 3), 255).tolist()
    assert found[:, 2:].tolist() == [[[10, 20, 30]] * 2] * 4


@pytest.mark.parametrize(("mode", "value"), [("L", 7), ("RGB", (7, 8, 9))])
def test_a_transparent_value_is_white(mode, value):
    assert color(encoded(Image.new(mode, (4, 4), value), transparency=value)) == (255, 255, 255)


def test_transparency_is_laid_over_before_it_is_resized():
    # Red that is not to be seen, next to black: resizing first would mix the red in.
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 7, 16))
    found = pixels(encoded(image)).astype(int)
    assert (found.max(axis=2) - found.min(axis=2)).max() == 0
    assert found[0, 0, 0] == 0
    assert found[0, 3, 0] == 255


def test_cmyk_is_read_as_ink():
    for ink, expected in (((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))):
        found = np.array(color(encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)))
        assert np.abs(found - expected).max() <= 3


def test_the_note_on_orientation_is_not_followed():
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 4))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    assert pixels(encoded(image, exif=rotated), 8).tolist() == np.asarray(image).tolist()


def test_of_many_frames_the_first_counts():
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (40, 90)]
    moving = encoded(frames[0], save_all=True, append_images=frames[1:])
    assert color(moving) == (40, 0, 0)


@pytest.mark.bad_input
@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_no_known_range_are_refused(mode):
    with pytest.raises(ValueError, match=f"mode {mode} does not say the range of its values"):
        pixels(encoded(Image.new(mode, (4, 4), 70_000), "TIFF"))


@pytest.mark.bad_input
def test_a_transparent_value_of_sixteen_bits_is_refused():
    image = encoded(Image.new("I;16", (4, 4), 300), transparency=300)
    with pytest.raises(ValueError, match="16-bit gray with a transparent value"):
        pixels(image)


@pytest.mark.bad_input
@pytest.mark.parametrize("channels", [1, 3])
def test_half_of_a_sixteen_bit_image_does_not_decode(channels):
    values = np.random.default_rng(0).integers(0, 2**16, (40, 40))
    whole = sixteen_bit_png(values, channels=channels)
    with pytest.raises((OSError, SyntaxError, ValueError)):
        pixels(whole[: len(whole) // 2], 40)
