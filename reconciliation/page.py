"""The report's pages, drawn from its JSON object alone: one file each, no network, no script."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
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


def _metric_plot(metric: Mapping[str, Any], doc: Mapping[str, Any]) -> dict[str, Any]:
    """The drawing of a metric's finest grain, its caption, and the causes that appear in it."""
    grain = min(metric["grains"], key=lambda one: one["bin_seconds"])
    width = timedelta(seconds=grain["bin_seconds"])
    columns = list(_columns(grain["bins"], mean=not metric["additive"]))
    start = Window.of_day(date.fromisoformat(doc["from"])).start
    end = Window.of_day(date.fromisoformat(doc["to"])).end
    summed = "mean" if not metric["additive"] else "sum"
    per = format_duration(width)
    return {
        "svg": Markup(plots.series(columns, width, start, end)),
        "caption": f"{grain['grain']} windows" + (f", {summed} per {per}" if per != grain["grain"] else ""),
        "causes": [cause for cause in CAUSES if any(column.parts.get(cause) for column in columns)],
    }


def _columns(bins: Iterable[Mapping[str, Any]], *, mean: bool) -> Iterable[plots.Column]:
    """Open and closed windows of a bin together; estimates are averaged, because distinct counts do not add up."""
    merged: dict[str, list[Mapping[str, Any]]] = {}
    for one in bins:
        merged.setdefault(one["start"], []).append(one)
    for start, group in sorted(merged.items()):
        share = 1 / sum(one["windows"] for one in group) if mean else 1.0
        yield plots.Column(
            start=datetime.fromisoformat(start).astimezone(UTC),
            speed=share * sum(float(one["speed"]) for one in group),
            exact=share * sum(float(one["exact"]) for one in group),
            parts={cause: share * sum(float(one["split"][cause]) for one in group) for cause in CAUSES},
        )
