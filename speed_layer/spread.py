"""Keys that spread work evenly over Flink's subtasks.

Flink sends a key to a subtask by a hash, so the few keys of a topic's partitions, or of a metric's buckets, may well
all meet in one. As the hash is known, each gets a key that leads to the subtask that it should have. Another runner
would only spread less evenly.

Source: Flink's `KeyGroupRangeAssignment` and `MathUtils.murmurHash`; Beam encodes a text key with its length before it.
"""

from functools import lru_cache
from itertools import count

_WORD = 0xFFFFFFFF
_LEAST_KEY_GROUPS = 128


def spread(partitions: int, parallelism: int) -> list[str]:
    """A key for each topic partition, all different; neighbours go to different subtasks."""
    return [leading(str(partition), partition, parallelism) for partition in range(partitions)]


@lru_cache(maxsize=4096)
def leading(key: str, number: int, parallelism: int) -> str:
    """The key with an ending by which it leads to subtask `number` modulo so many."""
    ended = (f"{key}.{salt}" for salt in count())
    return next(each for each in ended if subtask(each, parallelism) == number % parallelism)


def subtask(key: str, parallelism: int) -> int:
    """The subtask, of so many, that a text key leads to."""
    encoded = key.encode()
    groups = max(_LEAST_KEY_GROUPS, 1 << (parallelism + parallelism // 2 - 1).bit_length())
    return _murmur(_java_hash(_length(len(encoded)) + encoded)) % groups * parallelism // groups


def _java_hash(data: bytes) -> int:
    """`ByteBuffer.hashCode`, whose bytes are signed, as an unsigned word."""
    value = 1
    for byte in reversed(data):
        value = (31 * value + (byte ^ 0x80) - 0x80) & _WORD
    return value


def _length(number: int) -> bytes:
    """A length as Beam writes it: seven bits a byte, the lowest first."""
    written = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])


def _murmur(code: int) -> int:
    code = (code * 0xCC9E2D51) & _WORD
    code = (_rotated(code, 15) * 0x1B873593) & _WORD
    code = (_rotated(code, 13) * 5 + 0xE6546B64) & _WORD
    code ^= 4
    code = ((code ^ (code >> 16)) * 0x85EBCA6B) & _WORD
    code = ((code ^ (code >> 13)) * 0xC2B2AE35) & _WORD
    code ^= code >> 16
    signed = code - (1 << 32) if code >> 31 else code
    return 0 if signed == -(1 << 31) else abs(signed)


def _rotated(word: int, by: int) -> int:
    return ((word << by) | (word >> (32 - by))) & _WORD
