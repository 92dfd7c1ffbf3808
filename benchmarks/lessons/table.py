"""From rows to what is printed: the goals, then each scenario. Markdown, to go into the docs as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from appliance.sections import ResourcesConfig
from lessons import collection, contradiction, drift, household, neighbour, style
from lessons.bench import BASE, OURS, PLAIN, Row
from lessons.results import chosen, mean, most, share

Cells = list[str]

LIMITS = {"recall": 0.90, "times": 2.0, "wins": 0.95, "drift": 0.85, "rise": 0.02, "speed": 10.0,
          "memory": 1200, "cost": 0.01, "decode": 0.85, "gap": 2.0}  # fmt: skip


def text(rows: Sequence[Row]) -> str:
    """Everything that the rows allow to say."""
    scenarios = (_household, _style, _drift, _contradiction, _collection, _neighbour)
    parts = [goals(rows), *(make(rows) for make in scenarios)]
    return "\n\n".join(part for part in parts if part)


def goals(rows: Sequence[Row]) -> str:
    """The goals, and whether they are met by what was measured so far."""
    lines = []

    def line(
        what: str, goal: str, ours: float | None, form: str, met: Callable[[float], bool], plain: str = ""
    ) -> None:
        if ours is not None:
            lines.append([what, goal, format(ours, form), plain, "met" if met(ours) else "missed"])

    home = chosen(rows, scenario=household.NAME, recipe=OURS)
    plain = chosen(rows, scenario=household.NAME, recipe=PLAIN)
    # The goal is for all the facts; beside the plain recipe, which takes long, it may be fewer.
    most_facts = most(home, "facts")
    beside = [row for row in home if row["facts"] in {other["facts"] for other in plain}]
    recall = share(chosen(home, facts=most_facts), "unseen")
    line(f"household recall, unseen wordings, {most_facts} facts", f"≥ {LIMITS['recall']:.2f}", recall, ".3f",
         lambda value: value >= LIMITS["recall"],
         _number(share(chosen(plain, facts=most_facts), "unseen"), ".3f"))  # fmt: skip
    ours_beside, other = share(beside, "unseen"), share(plain, "unseen")
    if ours_beside is not None and other is not None:
        times = ours_beside / other if other else float("inf")
        line("household recall, times the plain recipe", f"≥ {LIMITS['times']:g}", times, ".1f",
             lambda value: value >= LIMITS["times"])  # fmt: skip
    line("one correction against ten", f"≥ {LIMITS['wins']:.2f}",
         share(chosen(rows, scenario=contradiction.NAME), "won"), ".2f",
         lambda value: value >= LIMITS["wins"])  # fmt: skip
    for lineage in ("current", "base"):
        last = _last(rows, OURS, lineage)
        after = f"drift, lineage {lineage}, {_runs(last)}: "
        theirs = _last(rows, PLAIN, lineage)
        line(f"{after}recall of all facts", f"≥ {LIMITS['drift']:.2f}", share(last, "recall"), ".3f",
             lambda value: value >= LIMITS["drift"], _number(share(theirs, "recall"), ".3f"))  # fmt: skip
        line(f"{after}generic perplexity", f"≤ +{LIMITS['rise']:.0%}", mean(last, "perplexity_rise"), "+.1%",
             lambda value: value <= LIMITS["rise"],
             _number(mean(theirs, "perplexity_rise"), "+.1%"))  # fmt: skip
        line(f"{after}probes lost", "0", most(last, "probes_lost"), "d", lambda value: value == 0,
             _number(most(theirs, "probes_lost"), "d"))  # fmt: skip
    ours_speed, plain_speed = (mean(found, "tokens_per_second") for found in (beside, plain))
    if ours_speed and plain_speed:
        line("useful training tokens/s, times the plain recipe", f"≥ {LIMITS['speed']:g}",
             ours_speed / plain_speed, ".1f", lambda value: value >= LIMITS["speed"])  # fmt: skip
    trained = [row for row in rows if row.get("recipe") == OURS]
    line("peak memory of the trainer, MB", f"≤ {LIMITS['memory']:g}", most(trained, "peak_mb"), ".0f",
         lambda value: value <= LIMITS["memory"], _number(most(plain, "peak_mb"), ".0f"))  # fmt: skip
    cost = [row for row in chosen(rows, scenario=collection.NAME) if "stored" in row]
    line("collection's cost on latency", f"≤ {LIMITS['cost']:.0%}", mean(cost, "cost_by_pairs"), "+.2%",
         lambda value: value <= LIMITS["cost"])  # fmt: skip
    for row in chosen(rows, scenario=neighbour.NAME, busy_share=ResourcesConfig().busy_share):
        who = f"{row['clients']} client{'s' if row['clients'] > 1 else ''}, training over not: "
        line(f"{who}decode, tok/s", f"≥ {LIMITS['decode']:g}", row["decode_ratio"], ".2f",
             lambda value: value >= LIMITS["decode"])  # fmt: skip
        line(f"{who}gap p99", f"≤ {LIMITS['gap']:g}", row["p99_ratio"], ".2f",
             lambda value: value <= LIMITS["gap"])  # fmt: skip
    return _markdown(["what", "goal", "ours", "plain recipe", ""], lines)


def _last(rows: Sequence[Row], recipe: str, lineage: str) -> list[Row]:
    """The rows after the last run of each seed."""
    found = chosen(rows, scenario=drift.NAME, recipe=recipe, lineage=lineage)
    return list({row["seed"]: row for row in sorted(found, key=lambda row: row["run"])}.values())


def _runs(last: Sequence[Row]) -> str:
    """ "after 10 runs", or of how many there should be more."""
    done, planned = mean(last, "run") or 0, mean(last, "runs") or 0
    return f"after {done:g} runs" if done == planned else f"after {done:g} OF {planned:g} runs"


def _household(rows: Sequence[Row]) -> str:
    lines = [
        [row["recipe"], str(row["seed"]), f"{row['facts']}, {row['everyday']}", _pair(row, "unseen"),
         _pair(row, "taught"), *_general(row), *_took(row)]
        for row in chosen(rows, scenario=household.NAME)
    ]  # fmt: skip
    return _titled(
        "Household", "",
        ["recipe", "seed", "facts, everyday", "unseen wordings", "taught wording", *_GENERAL, *_TOOK], lines,
    )  # fmt: skip


def _style(rows: Sequence[Row]) -> str:
    found = chosen(rows, scenario=style.NAME)
    rules = ("short", "metric", "polite", "all_rules")
    lines = [
        [row["recipe"], str(row["seed"]), *(f"{row[rule]:.0%}" for rule in rules), *_general(row),
         *_took(row)]
        for row in found
    ]  # fmt: skip
    return _titled(
        "Style", _sizes(found, "corrections", "judged", "everyday"),
        ["recipe", "seed", *rules[:3], "all", *_GENERAL, *_TOOK], lines,
    )  # fmt: skip


def _drift(rows: Sequence[Row]) -> str:
    found = chosen(rows, scenario=drift.NAME)
    lines = [
        [row["recipe"], row["lineage"], str(row["seed"]), f"{row['run']} of {row['runs']}",
         _pair(row, "recall"), _pair(row, "earlier"), _pair(row, "new"), *_general(row),
         f"{row['state']}, {row['attempts']}" if "state" in row else "", *_took(row)]
        for row in found
    ]  # fmt: skip
    return _titled(
        "Drift", _sizes(found, "facts", "everyday"),
        ["recipe", "lineage", "seed", "run", "all facts", "earlier", "new", *_GENERAL, "end, attempts",
         *_TOOK], lines,
    )  # fmt: skip


def _contradiction(rows: Sequence[Row]) -> str:
    found = chosen(rows, scenario=contradiction.NAME)
    lines = [
        [str(row["seed"]), f"{row['run']} of {row['runs']}", _pair(row, "won"), _pair(row, "unseen"),
         *_general(row), *_took(row)]
        for row in found
    ]  # fmt: skip
    return _titled(
        "Contradiction", _sizes(found, "facts", "everyday"),
        ["seed", "run", "won", "in the wordings that were answered wrongly", *_GENERAL, *_TOOK], lines,
    )  # fmt: skip


def _collection(rows: Sequence[Row]) -> str:
    lines = [
        [f"{row['round']} of {row['rounds']}" if "round" in row else "all", str(row["requests"]),
         f"{row['on_ms']:.1f} / {row['off_ms']:.1f}", f"{row['on_p99_ms']:.1f} / {row['off_p99_ms']:.1f}",
         f"{row['cost']:+.2%}", f"{row['cost_by_pairs']:+.2%}"]
        for row in chosen(rows, scenario=collection.NAME)
    ]  # fmt: skip
    return _titled(
        "Collection", "",
        ["round", "requests", "median on / off, ms", "p99 on / off, ms", "medians", "pairs"], lines,
    )  # fmt: skip


def _neighbour(rows: Sequence[Row]) -> str:
    lines = [
        [f"{row['busy_share']:g}", str(row["clients"]),
         f"{row['training_decode']:.1f} / {row['quiet_decode']:.1f}", f"{row['decode_ratio']:.2f}",
         f"{row['training_p99_ms']:.1f} / {row['quiet_p99_ms']:.1f}", f"{row['p99_ratio']:.2f}",
         str(row["steps"])]
        for row in chosen(rows, scenario=neighbour.NAME)
    ]  # fmt: skip
    return _titled(
        "Neighbour", _sizes(chosen(rows, scenario=neighbour.NAME), "rounds", "seconds"),
        ["busy_share", "clients", "tok/s of one, training / quiet", "ratio",
         "gap p99, ms, training / quiet", "ratio", "steps trained"], lines,
    )  # fmt: skip


_GENERAL = ("perplexity", "probes lost")
_TOOK = ("tokens/s", "seconds", "MB", "remark")


def _general(row: Row) -> Cells:
    return [f"{row['perplexity_rise']:+.1%}", f"{row['probes_lost']} of {row['probes']}"]


def _took(row: Row) -> Cells:
    if row.get("recipe") == BASE:
        return ["", "", "", ""]
    remark = row.get("verdict", "")
    if row.get("steps", 0) < row.get("all_steps", 0):
        remark = (
            f"STOPPED after {row['steps']} of {row['all_steps']} steps; all: {row['whole_seconds']:.0f} s"
        )
    return [f"{row['tokens_per_second']:.0f}", f"{row['seconds']:.0f}", f"{row['peak_mb']:.0f}", remark]


def _pair(row: Row, field: str) -> str:
    right, asked = row[field]
    return f"{right}/{asked}" if asked else ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _sizes(rows: Sequence[Row], *fields: str) -> str:
    """What the rows have in common, as "60 facts, 300 everyday"."""
    said: dict[str, list[Any]] = {
        field: list(dict.fromkeys(row[field] for row in rows if field in row)) for field in fields
    }
    return ", ".join(f"{' or '.join(map(str, values))} {field}" for field, values in said.items() if values)


def _titled(title: str, sizes: str, head: Cells, lines: list[Cells]) -> str:
    return f"**{title}**{f' ({sizes})' if sizes else ''}\n\n{_markdown(head, lines)}" if lines else ""


def _markdown(head: Cells, lines: list[Cells]) -> str:
    if not lines:
        return ""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines])
