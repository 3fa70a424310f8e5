"""Damage to files."""


def flipped(content: bytes, bit: int) -> bytes:
    """The same bytes with one bit changed, counted from the first byte's lowest."""
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
