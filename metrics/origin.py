"""How a record that repairs a dead letter says so: by the place of that dead letter, its origin, in its headers.

An origin is **repaired** once a later record of its topic partition names it and is an event.
"""

ORIGIN_PREFIX = "lockstep-origin-"
"""Before `topic`, `partition` and `offset` in the names of the headers; their values are text."""
