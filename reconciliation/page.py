"""The report's pages, drawn from its JSON object alone: one file each, no network, no script."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from metrics.window import Window, format_duration
from reconciliation import plots, wording
from reconciliation.causes import CAUSES
from reconciliation.evidence import NOT_COUNTED

LARGEST_TABLE = 100
"""Records listed per disposition; the JSON file has the others."""

_TEMPLATES = Path(__file__).parent / "templates"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(wording.FILTERS)


def report_page(doc: Mapping[str, Any], name: str) -> str:
    """The page of one report.

    Args:
        doc: what `document.document` made.
        name: the file's name without an ending; the JSON file beside it has the same.
    """
    seen = [part for part in doc["partitions"] if part["status"] == "reconciled"]
    return _ENVIRONMENT.get_template("report.html").render(
        doc=doc,
        name=name,
        css=_css(),
        period=wording.period(doc["from"], doc["to"]),
        sentence=wording.sentence(doc["headline"]),
        subline=wording.subline(doc["headline"]),
        signoff=wording.signoff(doc),
        definitions=wording.DEFINITIONS,
        seen=seen,
        not_counted=NOT_COUNTED,
        left_out=_left_out(seen),
        groups=_groups(seen),
        complete=all(len(p["exceptions"]["records"]) == p["exceptions"]["total"] for p in seen),
        plots={metric["metric"]: _metric_plot(metric, doc) for metric in doc["metrics"]},
        told={metric["metric"]: [_told(metric, grain) for grain in metric["grains"]] for metric in doc["metrics"]},
    )


def index_page(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """The page over all reports of one source, latest first; each day as its latest report saw it.

    Args:
        documents: name of a report's file without an ending -> its JSON object; at least one.
    """
    order = sorted(documents, key=lambda name: str(documents[name]["generated_at"]), reverse=True)
    reports = [
        dict(documents[name]) | {"name": name, "period": wording.period(documents[name]["from"], documents[name]["to"])}
        for name in order
    ]
    latest: dict[str, dict[str, Any]] = {}
    for report in reversed(reports):
        for part in report["partitions"]:
            latest[part["partition"]] = dict(part) | {"report": report["name"]}
    days = [latest[key] for key in sorted(latest, reverse=True)]
    trend = [day for day in reversed(days) if day["status"] == "reconciled"][-30:]
    severity = ("not_published", "not_certified", "speed_defect", "not_yet_closed", "clean")
    certified = sum(day["certified"] for day in days)
    return _ENVIRONMENT.get_template("index.html").render(
        source=reports[0]["source"],
        css=_css(),
        reports=reports,
        days=days,
        standing=min((day["standing"] for day in days), key=severity.index),
        sentence=f"{certified} of {len(days)} day{'s' if len(days) != 1 else ''} certified",
        late_plot=Markup(
            plots.bars([(d["partition"], d["late_ratio"], wording.pct(d["late_ratio"])) for d in trend], "c-late")
        ),  # fmt: skip
        residual_plot=Markup(
            plots.bars([(d["partition"], d["residual"], wording.num(d["residual"])) for d in trend], "c-residual")
        ),  # fmt: skip
    )


def _css() -> Markup:
    return Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8"))


def _left_out(seen: Sequence[Mapping[str, Any]]) -> Markup:
    rows = []
    for part in seen:
        left = {name: part["dispositions"][name] for name in NOT_COUNTED}
        number, records = sum(left.values()), sum(part["dispositions"].values())
        share = wording.pct(number / records if records else 0.0)
        rows.append((part["partition"], left, f"{wording.num(number)}, {share} of the records"))
    return Markup(plots.stacked_rows(rows, NOT_COUNTED))


def _groups(seen: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records not counted, grouped by disposition; the dispositions that have some."""
    groups = []
    for disposition in NOT_COUNTED:
        counts = [c for part in seen for c in part["exceptions"]["counts"] if c["disposition"] == disposition]
        reasons: dict[str, int] = {}
        for count in counts:
            reasons[count["reason"]] = reasons.get(count["reason"], 0) + count["records"]
        records = [r for part in seen for r in part["exceptions"]["records"] if r["disposition"] == disposition]
        told = ", ".join(f"{wording.words(reason)} {wording.num(number)}" for reason, number in reasons.items())
        if counts:
            groups.append(
                {
                    "disposition": disposition,
                    "total": sum(reasons.values()),
                    "reasons": told if set(reasons) != {disposition} else "",
                    "records": records[:LARGEST_TABLE],
                }
            )
    return groups


def _told(metric: Mapping[str, Any], grain: Mapping[str, Any]) -> dict[str, Any]:
    """One line on all windows of a grain: what stands at its ends and the parts between.

    Sums, where they may be added up; otherwise means over the windows, and the parts are windows that a cause changes.
    """
    if metric["kind"] == "sum":
        parts = [(cause, wording.signed(part)) for cause, part in grain["split"].items() if Decimal(part)]
        ends = (wording.num(grain["readings"]["speed"]), wording.num(grain["readings"]["exact"]))
        return {"grain": grain, "parts": parts, "sign": "=", "speed": ends[0], "exact": ends[1]}
    parts = [(cause, wording.many(number, _noun(metric))) for cause, number in grain["changed"].items() if number]
    told = {"grain": grain, "parts": parts, "sign": "", "speed": None, "exact": None}
    if metric["kind"] == "items" or not grain["windows"]:
        return told
    means = {name: Decimal(text) / grain["windows"] for name, text in grain["readings"].items()}
    return told | {"sign": "→", "speed": wording.figure(means["speed"]), "exact": wording.figure(means["exact"])}


def _noun(metric: Mapping[str, Any]) -> str:
    return "session" if metric["is_session"] else "window"


def _metric_plot(metric: Mapping[str, Any], doc: Mapping[str, Any]) -> dict[str, Any]:
    """The drawing of a metric's finest grain, its caption, and the causes that appear in it."""
    grain = min(metric["grains"], key=lambda one: one["bin_seconds"])
    width = timedelta(seconds=grain["bin_seconds"])
    start = Window.of_day(date.fromisoformat(doc["from"])).start
    end = Window.of_day(date.fromisoformat(doc["to"])).end
    columns = [column for column in _columns(grain["bins"], metric["kind"]) if column.start >= start]
    per = format_duration(width)
    windows = "sessions" if metric["is_session"] else f"{grain['grain']} windows"
    caption = {
        "sum": windows + (f", sum per {per}" if per != grain["grain"] else ""),
        "value": windows + (f", mean per {per}" if per != grain["grain"] else ""),
        "items": f"number of {windows} per {per}; below, those that a cause changes",
    }
    return {
        "svg": Markup(plots.series(columns, width, start, end, levels=metric["kind"] != "items")),
        "caption": caption[metric["kind"]],
        "causes": [cause for cause in CAUSES if any(column.parts.get(cause) for column in columns)],
    }


def _columns(bins: Iterable[Mapping[str, Any]], kind: str) -> Iterable[plots.Column]:
    """Open and closed windows of a bin together: their sums, their means, or how many of them a cause changes."""
    merged: dict[str, list[Mapping[str, Any]]] = {}
    for one in bins:
        merged.setdefault(one["start"], []).append(one)
    for start, group in sorted(merged.items()):
        at = datetime.fromisoformat(start).astimezone(UTC)
        windows = sum(one["windows"] for one in group)
        if kind == "items":
            changed = {cause: float(sum(one["changed"][cause] for one in group)) for cause in CAUSES}
            yield plots.Column(at, windows, windows, changed)
            continue
        share = 1 / max(windows, 1) if kind == "value" else 1.0
        yield plots.Column(
            start=at,
            speed=share * sum(float(one["speed"]) for one in group),
            exact=share * sum(float(one["exact"]) for one in group),
            parts={cause: share * sum(float(one["split"][cause]) for one in group) for cause in CAUSES},
        )
