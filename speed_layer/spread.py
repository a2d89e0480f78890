"""Keys that spread topic partitions evenly over Flink's subtasks.

Flink sends a key to a subtask by a hash, so the few keys of a topic's partitions may well all meet in one. As the hash
is known, each partition gets a key that leads to the subtask that it should have. Another runner would only spread
less evenly.

Source: Flink's `KeyGroupRangeAssignment` and `MathUtils.murmurHash`; Beam encodes a text key with its length before it.
"""

_WORD = 0xFFFFFFFF
_LEAST_KEY_GROUPS = 128


def spread(partitions: int, parallelism: int) -> list[str]:
    """A key for each topic partition, all different; neighbours go to different subtasks."""
    keys = []
    for partition in range(partitions):
        salt = 0
        while subtask(f"{partition}.{salt}", parallelism) != partition % parallelism:
            salt += 1
        keys.append(f"{partition}.{salt}")
    return keys


def subtask(key: str, parallelism: int) -> int:
    """The subtask, of so many, that a short text key leads to."""
    encoded = key.encode()
    groups = max(_LEAST_KEY_GROUPS, 1 << (parallelism + parallelism // 2 - 1).bit_length())
    return _murmur(_java_hash(bytes([len(encoded)]) + encoded)) % groups * parallelism // groups


def _java_hash(data: bytes) -> int:
    """`ByteBuffer.hashCode` of bytes below 128, as an unsigned word."""
    value = 1
    for byte in reversed(data):
        value = (31 * value + byte) & _WORD
    return value


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
