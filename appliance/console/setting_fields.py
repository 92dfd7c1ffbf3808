"""Settings as fields of a form: what each is called, how it is typed in, and what came back."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sanic import Request

from appliance.learning.guard import quiet_until
from appliance.settings.form import Group, Key, as_text, groups, keys
from appliance.store.changes import Difference

QUIET = "resources.quiet_hours"
_TIME = r"([01]\d|2[0-3]):[0-5]\d"

TITLES = {
    "console": "This console",
    "lora": "Learning",
    "collect": "What is kept",
    "resources": "When to hold back",
    "model": "Model and answers",
    "gate": "Checks before serving",
    "train": "How it trains",
    "server": "Network and log",
    "tls": "HTTPS",
    "mdns": "Name on the network",
    "backup": "Automatic backups",
    "storage": "What stays on the disk",
}
"""What the sections are called to a person, those first that people look for."""

LEADS = {
    "console": "What the box is called, and how long a login lasts.",
    "lora": "When a run begins, and how much each kind of example counts.",
    "collect": "Which exchanges the box remembers to learn from, and what it masks in them.",
    "resources": "When a run waits: quiet hours, heat, battery, memory, disk.",
    "model": "Which model answers, how it answers by default, and how much it may take on at once.",
    "gate": "What an adapter must not make worse, before it serves and while it is new.",
    "train": "The trainer and its numbers. The defaults were measured; change them one at a time.",
    "server": "Where the box listens, which proxies it believes, and how much it logs.",
    "tls": "Encrypted connections: where, with which certificate, and whether plain ones go on.",
    "mdns": "How devices find the box without being told its address.",
    "backup": "How often the box backs itself up, how many it keeps, and where else to.",
    "storage": "How long old runs, adapters and records stay, and how much disk all of it may take.",
}
"""What the sections are about."""

_LABELS = {
    "server.bind": "Address",
    "server.max_body_mb": "Largest request",
    "server.device_requests_per_minute": "Requests of a device in a minute",
    "server.log_level": "Log level",
    "tls.bind": "HTTPS address",
    "tls.certificate": "Your certificate",
    "tls.key": "Its key",
    "tls.names": "More names",
    "tls.plain": "Serve plain HTTP too",
    "mdns.enabled": "Announce the box",
    "mdns.name": "Name under .local",
    "server.log_format": "Log format",
    "server.metrics": "Who may read metrics",
    "server.stalled_seconds": "Hung after",
    "server.max_connections": "Connections at once",
    "backup.keep": "Backups kept",
    "backup.keep_weeks": "Weeks before of one each",
    "backup.copy_to": "A copy of each to",
    "storage.budget_mb": "Disk budget",
    "storage.min_free_mb": "Disk kept free",
    "storage.keep_runs": "Runs kept whole",
    "storage.keep_adapters": "Adapters kept",
    "storage.rejected_days": "Rejected adapters stay",
    "storage.restored_days": "What a restore replaced stays",
    "storage.answers_days": "Answers given stay",
    "storage.audit_days": "Audit trail stays",
    "model.name": "Model",
    "model.queue": "Waiting requests",
    "model.prefix_cache_mb": "Memory for prompts",
    "model.prefill_chunk": "Prompt tokens at a time",
    "model.prefill_beside": "Prompt tokens beside answers",
    "model.top_p": "Top-p",
    "model.default_max_tokens": "Answer length",
    "lora.auto_train_threshold": "Examples for a run",
    "lora.batch_timeout_minutes": "Longest wait for a run",
    "train.nice": "Niceness",
    "train.ort_python": "Python for ort",
    "train.rank": "LoRA rank",
    "train.alpha": "LoRA alpha",
    "train.checkpoint_seconds": "Time between checkpoints",
    "train.max_attempts": "Attempts",
    "train.max_tokens": "Longest example",
    "train.batch_tokens": "Tokens in a step",
    "train.relearn": "Learn anew up to",
    "resources.max_load_per_core": "Highest load per core",
    "resources.min_free_memory_mb": "Free memory needed",
    "resources.min_free_disk_mb": "Free disk needed",
    "resources.max_temperature_c": "Highest temperature",
    "resources.min_battery_percent": "Lowest battery charge",
    "resources.quiet_hours": "Quiet hours",
    "resources.retry_minutes": "Next try after",
    "train.max_text_rise": "Text perplexity may rise by",
    "train.max_resumes": "Resumptions",
    "gate.max_perplexity_rise": "Text perplexity may rise by",
    "gate.max_probe_drop": "Probes that may fail",
    "gate.max_heldout_rise": "Held-out loss may rise by",
    "gate.min_taught": "Corrections preferred",
    "gate.min_recall": "Corrections answered",
    "gate.max_forgotten": "Corrections that may be lost",
    "gate.max_empty": "Empty answers allowed",
    "gate.max_looping": "Repetitive answers allowed",
    "gate.max_refusals": "Refusals allowed",
    "gate.max_same": "Same answers allowed",
    "gate.min_length": "Shortest answers",
    "gate.max_length": "Longest answers",
    "gate.canary_share": "Share tried out first",
    "gate.canary_answers": "Try-out: answers",
    "gate.canary_minutes": "Try-out: longest time",
    "gate.probation_minutes": "Probation",
    "gate.probation_chance": "Chance of a false alarm",
    "collect.enabled": "Keep exchanges",
    "collect.max_chars": "Longest exchange",
    "collect.feedback_daily": "Feedback of a device in a day",
    "collect.feedback_daily_mb": "Its size",
    "collect.feedback_waiting_mb": "Feedback of a device that waits",
    "collect.mask_private": "Mask private details",
    "console.name": "Name of the box",
    "console.session_hours": "A login lasts",
    "lora.enabled": "Learning",
}
"""Where the key itself would not do."""

_UNITS = {
    "mb": "MB",
    "minutes": "minutes",
    "seconds": "seconds",
    "hours": "hours",
    "days": "days",
    "c": "°C",
    "percent": "%",
    "tokens": "tokens",
    "chars": "characters",
}


@dataclass(frozen=True)
class Field:
    """One setting on the page.

    Attributes:
        text: what the field shows.
        was: what the file says, to be sent back: what differs from it was typed.
        now: what the file says, where that changed while the owner was typing something else.
        problem: what is wrong with `text`.
        said: what it means, where the text alone does not say.
    """

    key: Key
    text: str
    was: str
    now: str | None = None
    problem: str | None = None
    said: str | None = None

    @property
    def name(self) -> str:
        return self.key.name

    @property
    def id(self) -> str:
        """For links to it: no dot, which a style sheet would take for a class."""
        return self.key.name.replace(".", "-")

    @property
    def label(self) -> str:
        return label(self.name)

    @property
    def unit(self) -> str:
        return "" if self.name == QUIET else unit(self.key)

    @property
    def limits(self) -> str:
        return limits(self.key)

    @property
    def default(self) -> str:
        return shown(self.name, self.key.default)

    @property
    def changed(self) -> bool:
        """Whether the file says something else than the default."""
        return self.was != as_text(self.key.default)

    @property
    def control(self) -> Literal["check", "number", "choice", "hours", "text"]:
        """How it is typed in. What is no number must not vanish in a field for numbers."""
        if self.key.kind == "flag" and self.text in ("true", "false"):
            return "check"
        if self.key.kind == "choice" and self.text in self.key.choices:
            return "choice"
        if self.key.kind in ("whole", "number") and re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", self.text):
            return "number"
        if self.name == QUIET and (not self.text or self.hours != ("", "")):
            return "hours"
        return "text"

    @property
    def hours(self) -> tuple[str, str]:
        """Both ends of the quiet hours, empty for none."""
        found = re.fullmatch(rf"(?P<first>{_TIME})?-(?P<last>{_TIME})?", self.text)
        return (found["first"] or "", found["last"] or "") if found else ("", "")


@dataclass(frozen=True)
class Typed:
    """A form that came back.

    Attributes:
        etag: of the file it was made of.
        texts: of the fields that were sent.
        was: what the file said then.
    """

    etag: str
    texts: Mapping[str, str]
    was: Mapping[str, str]

    @property
    def changes(self) -> dict[str, str]:
        """What the owner touched; the rest is left to the file, which may have changed meanwhile."""
        return {name: text for name, text in self.texts.items() if text != self.was.get(name)}


def read_typed(request: Request) -> Typed:
    """The fields of a posted form, whichever of the settings are on it."""
    form: Any = request.get_form(keep_blank_values=True)

    def last(name: str) -> str | None:
        sent = form.getlist(name) if form else None  # a box that is ticked comes after its "false"
        return str(sent[-1]).strip() if sent else None

    texts = {name: text for name in keys() if (text := last(name)) is not None}
    first, end = last(f"{QUIET}.from"), last(f"{QUIET}.to")
    if first is not None and end is not None:
        texts[QUIET] = f"{first}-{end}" if first or end else ""
    was = {name: text for name in texts if (text := last(f"was.{name}")) is not None}
    return Typed(last("etag") or "", texts, was)


def fields(
    group: Group,
    texts: Mapping[str, str],
    typed: Typed | None = None,
    problems: Mapping[str, str] | None = None,
) -> list[Field]:
    """The fields of a section.

    Args:
        group: the section.
        texts: what the file says.
        typed: what the owner has typed, which goes on.
        problems: what is wrong, by key.
    """
    changes = typed.changes if typed else {}
    made = []
    for key in group.keys:
        text, now = changes.get(key.name, texts[key.name]), None
        if typed and key.name in changes and typed.was.get(key.name) != texts[key.name]:
            now = shown(key.name, texts[key.name], of_text=True)
        said = quiet(text, time.time()) if key.name == QUIET else None
        problem = (problems or {}).get(key.name)
        made.append(Field(key, text, texts[key.name], now, problem, None if problem else said))
    return made


def group_named(name: str) -> Group | None:
    """The section of that name, if there is one."""
    return next((group for group in groups() if group.name == name), None)


def find_keys(words: str) -> list[Key]:
    """The settings that a search is about: all its words are in name, label or explanation."""
    wanted = words.lower().split()
    return [
        key
        for key in keys().values()
        if all(word in f"{key.name} {label(key.name)} {key.about}".lower() for word in wanted)
    ]


def label(name: str) -> str:
    """What a setting is called to a person."""
    if name in _LABELS:
        return _LABELS[name]
    words = name.partition(".")[2].split("_")
    if words[-1] in ("mb", "minutes", "seconds", "hours"):
        words.pop()
    return " ".join(words).capitalize()


def unit(key: Key) -> str:
    """What its number counts, if its name says so."""
    return _UNITS.get(key.title.rpartition("_")[2], "") if key.kind in ("whole", "number") else ""


def limits(key: Key) -> str:
    """The numbers that are allowed, as a sentence; empty for what has no limits."""
    if key.none_or is not None and key.most is not None:
        return f"0, or from {key.none_or:,.12g} to {key.most:,.12g}."
    if key.least is not None and key.most is not None and not key.above and not key.below:
        return f"From {key.least:,.12g} to {key.most:,.12g}."
    parts = []
    if key.least is not None:
        parts.append(f"more than {key.least:,.12g}" if key.above else f"at least {key.least:,.12g}")
    if key.most is not None:
        parts.append(f"less than {key.most:,.12g}" if key.below else f"at most {key.most:,.12g}")
    sentence = ", ".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""


def shown(name: str, value: Any, *, of_text: bool = False) -> str:
    """A value for a person to read.

    Args:
        name: of the key; a release may have dropped it.
        value: as in the file.
        of_text: it is the text of a field, where yes and no are words.
    """
    text = value if of_text else as_text(value)
    key = keys().get(name)
    if key is not None and key.kind == "flag":
        return {"true": "on", "false": "off"}.get(text, text)
    if not text:
        return "empty" if name != QUIET else "none"
    if name == QUIET:
        return str(text.replace("-", " to "))
    return f"{text} {unit(key)}" if key is not None and unit(key) else str(text)


@dataclass(frozen=True)
class Shown:
    """A difference for a person to read."""

    name: str
    label: str
    old: str
    new: str
    restart: bool


def show(difference: Difference) -> Shown:
    """A difference of values as it is told."""
    name, key = difference.key, keys().get(difference.key)
    old, new = shown(name, difference.old), shown(name, difference.new)
    return Shown(name, label(name), old, new, key is not None and key.restart)


def quiet(span: str, now: float) -> str | None:
    """What quiet hours mean at the moment, by the clock of the box; None for what are none."""
    if not span:
        return "No quiet hours: runs may start by themselves at any time."
    if not re.fullmatch(keys()[QUIET].pattern or "", span):
        return None
    first, _, last = span.partition("-")
    clock = time.strftime("%H:%M", time.localtime(now))
    if first == last:
        return f"Both times are the same, so there are no quiet hours. It is {clock} on this box."
    if quiet_until(span, now) is not None:
        return f"No runs between {first} and {last}; it is {clock} on this box, so it is quiet now."
    return f"No runs between {first} and {last}; it is {clock} on this box, so runs may start."
