"""Which dead letters are chosen, and what a repair would do with them."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from metrics.catalog_build import parse_catalog
from metrics.event import DeadLetterError, Decoder
from speed_layer.dead_letters import Choice, Headers, Letter, Place, letter_of
from speed_layer.repair import Copy, Mended, Plan, Record, Seen, by_command, plan, unchanged

DAY_MS = 86_400_000
SENT = 1_780_000_000_000
NOW = SENT + 3 * DAY_MS
CATALOG = parse_catalog(
    {
        "source": "shop",
        "topic": "events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "key": "user",
        "fields": {"user": "string", "amount": {"type": "int", "required": True}},
        "metrics": {"events": {"agg": "count", "window": "tumbling 1m"}},
    },
    {},
    "test",
)
DECODER = Decoder(CATALOG)


def event(name: str, **changes: Any) -> bytes:
    return json.dumps({"id": name, "ts": SENT, "user": "ann", "amount": 1} | changes).encode()


BAD = event("bad", amount="1")


def letter(offset: int, value: bytes | None = BAD, reason: str = "wrong_type", time: int = SENT) -> Letter:
    return Letter(Place(0, offset), time, reason, value)


def headers(**changes: str) -> Headers:
    named = {"reason": "not_json", "detail": "d", "record_time": "5", "topic": "events", "partition": "1"}
    return [(name, value.encode()) for name, value in (named | {"offset": "7"} | changes).items()]


def origin(offset: int) -> Headers:
    named = {"topic": "events", "partition": "0", "offset": str(offset)}
    return tuple((f"lockstep-origin-{name}", value.encode()) for name, value in named.items())


def mend(values: Sequence[bytes | None]) -> Sequence[Mended]:
    """Makes numbers of texts; gives up on what is empty."""
    return [value.replace(b'"1"', b"1") if value else DeadLetterError("filter_failed", "gave up") for value in values]


def planned(letters: list[Letter], seen: Seen, **changes: Any) -> Plan:
    asked = {"mend": mend, "now_ms": NOW} | changes
    return plan(CATALOG, DECODER, letters, seen, **asked)


def test_a_letter_is_taken_that_every_option_takes() -> None:
    first, second = letter(1), letter(2, reason="not_json", time=SENT + 1)
    assert [Choice().takes(one) for one in (first, second)] == [True, True]
    assert [Choice(frozenset({"not_json", "no_value"})).takes(one) for one in (first, second)] == [False, True]
    assert [Choice(start=SENT + 1).takes(one) for one in (first, second)] == [False, True]
    assert [Choice(end=SENT + 1).takes(one) for one in (first, second)] == [True, False]
    assert [Choice(places=frozenset({Place(0, 1)})).takes(one) for one in (first, second)] == [True, False]
    assert not Choice(frozenset({"not_json"}), places=frozenset({Place(0, 1)})).takes(first)


def test_a_record_without_a_place_of_the_topic_is_no_letter() -> None:
    assert letter_of(headers(), b"{", "events") == Letter(Place(1, 7), 5, "not_json", b"{")
    assert letter_of(headers(topic="others"), b"{", "events") is None
    assert letter_of(headers(offset="seven"), b"{", "events") is None
    assert letter_of(headers()[1:], b"{", "events") is None
    assert letter_of((), b"{", "events") is None


def test_a_repair_has_the_key_of_its_origin_and_its_place_in_the_headers() -> None:
    record = Record(b"ann's", BAD, (("trace", b"x"),))
    found = planned([letter(3)], Seen({0: 10}, {Place(0, 3): record}))
    (repair,) = found.repairs
    assert (found.before, found.refused) == ((), ())
    assert repair.record == Record(b"ann's", event("bad"), (("trace", b"x"), *origin(3)))
    assert repair.event_time == SENT


def test_where_the_origin_has_expired_the_key_is_the_one_that_the_catalog_names() -> None:
    (repair,) = planned([letter(3)], Seen({0: 10})).repairs
    assert repair.record.key == b"ann"
    (without,) = planned([letter(3, event("bad", amount="1", user=None))], Seen({0: 10})).repairs
    assert without.record.key is None


def test_what_is_still_no_event_is_refused_one_by_one() -> None:
    letters = [letter(1), letter(2, b"{", "not_json"), letter(3, None, "no_value"), letter(4, event("x", ts=NOW * 2))]
    found = planned(letters, Seen({0: 10}))
    assert [str(one.origin) for one in found.repairs] == ["0:1"]
    told = [(str(one.place), one.was, one.reason) for one in found.refused]
    assert told == [
        ("0:2", "not_json", "not_json"),
        ("0:3", "no_value", "filter_failed"),
        ("0:4", "wrong_type", "event_time_in_future"),
    ]


def test_with_the_same_bytes_the_catalog_says_again_what_is_wrong() -> None:
    found = planned([letter(1), letter(2, event("good"))], Seen({0: 10}), mend=unchanged)
    assert [str(one.origin) for one in found.repairs] == ["0:2"]
    assert [one.reason for one in found.refused] == ["wrong_type"]
    assert "Expected `int`, got `str`" in found.refused[0].detail


def test_an_event_that_ran_ahead_of_its_record_can_be_sent_again_when_its_time_has_come() -> None:
    ahead = letter(1, event("ahead", ts=SENT + DAY_MS), "event_time_in_future")
    assert len(planned([ahead], Seen({0: 10}), mend=unchanged).repairs) == 1
    assert planned([ahead], Seen({0: 10}), mend=unchanged, now_ms=SENT).refused[0].reason == "event_time_in_future"


def test_what_was_repaired_before_is_left_alone_and_counted_once() -> None:
    copies = [Copy(Place(0, 3), offset, NOW, event("bad")) for offset in (8, 9)]
    found = planned([letter(3), letter(4)], Seen({0: 10}, copies=copies))
    assert found.before == ((letter(3), 8),)
    assert [str(one.origin) for one in found.repairs] == ["0:4"]


def test_a_copy_that_is_itself_no_event_repairs_nothing() -> None:
    copies = [Copy(Place(0, 3), 8, NOW, BAD)]
    found = planned([letter(3)], Seen({0: 10}, copies=copies))
    assert len(found.repairs) == 1
    assert not found.before


def test_a_copy_that_became_a_dead_letter_is_one_with_its_origin() -> None:
    copy = Copy(Place(0, 3), 8, NOW, BAD)
    seen = Seen({0: 10}, {Place(0, 3): Record(b"k", BAD), Place(0, 8): Record(b"k", BAD, origin(3))}, [copy])
    for letters in ([letter(3), letter(8)], [letter(8)]):
        (repair,) = planned(letters, seen).repairs
        assert repair.origin == Place(0, 3)
        assert repair.record.headers == origin(3)
    seen.copies.append(Copy(Place(0, 3), 9, NOW, event("bad")))
    assert [one.offset for one in seen.copies if one.offset == planned([letter(8)], seen).before[0][1]] == [9]


def test_letters_of_a_log_that_is_gone_are_refused() -> None:
    seen = Seen({0: 10}, {Place(0, 3): Record(b"k", b"another")})
    found = planned([letter(3), letter(10), Letter(Place(1, 0), SENT, "not_json", BAD)], seen)
    assert not found.repairs
    assert {one.reason for one in found.refused} == {"not_in_the_log"}
    details = [one.detail.partition(":")[0] for one in found.refused]
    assert details == ["another record stands there", *["the log does not reach that far"] * 2]


def test_the_days_to_compute_again_are_those_of_the_events_and_of_their_origins() -> None:
    found = planned([letter(1, event("bad", amount="1", ts=SENT - 2 * DAY_MS))], Seen({0: 10}))
    assert [str(day) for day in found.days] == ["2026-05-26", "2026-05-28"]
    assert planned([], Seen({})).days == []


def test_a_command_mends_each_value_alone() -> None:
    values = [b'"a"\n"b"', b"fail", b"", None]
    mended = by_command('v=$(cat); [ "$v" != fail ] || { echo no >&2; exit 3; }; printf %s "$v"', text=True)(values)
    assert mended[0] == b'"a"\n"b"'
    said = [(one.reason, one.detail) for one in mended[1:] if isinstance(one, DeadLetterError)]
    assert said == [
        ("filter_failed", "the command ended with 3: no"),
        *[("filter_failed", "the command gave nothing")] * 2,
    ]


@pytest.mark.parametrize(("text", "value"), [(True, b"\x00a"), (False, b"\x00a\n")])
def test_a_line_break_at_the_end_is_the_commands_where_values_are_text(text: bool, value: bytes) -> None:
    assert by_command("cat", text=text)([b"\x00a\n"]) == [value]
