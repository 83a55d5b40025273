"""The order of training windows: a seeded permutation of the window index in constant memory."""

import hashlib

_ROUNDS = 6


def permute(index: int, size: int, seed: int, epoch: int) -> int:
    """Return the place of `index` in the permutation of range(size) that (seed, epoch) stands for.

    A Feistel network over the smallest even number of bits that holds `size`, walked until it lands inside (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains"). Cost: constant memory, at most about 4 walks on average.

    Args:
        index: in [0, size).
        size: at least 1.
        seed: data.seed.
        epoch: each epoch has an order of its own.
    """
    assert 0 <= index < size, (index, size)
    half_bits = max((size - 1).bit_length() + 1, 2) // 2
    mask = (1 << half_bits) - 1
    keys = _round_keys(seed, epoch)
    while True:
        left, right = index >> half_bits, index & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        index = left << half_bits | right
        if index < size:
            return index


def locate(cursor: int, size: int, seed: int) -> tuple[int, int]:
    """Return (epoch, window) of the sample at a global position of the endless stream of windows."""
    epoch, index = divmod(cursor, size)
    return epoch, permute(index, size, seed, epoch)


def _round_keys(seed: int, epoch: int) -> list[int]:
    digest = hashlib.sha512(f"{seed}/{epoch}".encode()).digest()
    return [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS)]


def _mix(value: int) -> int:
    """Mix 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)
