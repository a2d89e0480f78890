"""Hashes of definitions: the same for the same meaning, whatever the order of keys."""

import hashlib
import json


def digest(definition: object) -> str:
    """Sixteen hexadecimal digits of a definition made of plain values."""
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
