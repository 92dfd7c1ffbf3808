"""The tables of `config.toml`: every key with its type, its default and an explanation."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_network
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationInfo, field_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Taken(Enum):
    """When the daemon takes the value of a key out of its `Config`: that decides when a change counts."""

    AT_START = "at start"
    AT_USE = "at use"


_T = TypeVar("_T")
AtStart = Annotated[_T, Taken.AT_START]
"""A part of the daemon is built with it: a change counts from the next start."""
AtUse = Annotated[_T, Taken.AT_USE]
"""Looked up each time it is needed: a change counts at once, but what a run or a session began with stays."""
HURRY = "SHAMMAH_HURRY"
"""Set in the environment, pauses may be as short as one likes: for tests of what is otherwise waited for."""


def _least(pause: float) -> float:
    return 1e-9 if os.environ.get(HURRY) else pause


Megabytes = Annotated[float, Field(ge=0.01, le=100_000)]
Pause = Annotated[float, Field(ge=_least(1), le=525_600)]
"""Minutes, up to a year. With less than one the box would do nothing else."""
Weight = Annotated[float, Field(ge=0.01, le=100)]
Days = Annotated[float, Field(ge=0, le=36_500)]


@dataclass(frozen=True)
class NoneOr:
    """0 has a meaning of its own; next to nothing has none.

    Attributes:
        least: the smallest value besides.
        what: the same with its unit.
    """

    least: float
    what: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """For pydantic: look at the value after all else."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: float) -> float:
        if 0 < value < _least(self.least):
            context = {"least": self.least, "what": self.what}
            raise PydanticCustomError("none_or_least", "This must be 0, or at least {what}", context)
        return value


Watched = Annotated[float, Field(ge=0, le=525_600), NoneOr(1, "1 minute")]


_PLACE = r"(\[[0-9a-fA-F:]+\]|[^:\s,]+):\d{1,5}"
_PLACES = rf"{_PLACE}(\s*,\s*{_PLACE})*"


def _with_port(bind: str) -> str:
    if any(int(place.rpartition(":")[2]) > 65535 for place in bind.split(",")):
        raise PydanticCustomError("port", "The port should be at most 65535")
    return bind


class Section(BaseModel):
    """A table of the file: immutable, no unknown keys, no infinite numbers (the child programs get JSON)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def taken(cls, when: Taken) -> tuple[str, ...]:
        """The keys that are taken then."""
        return tuple(key for key, field in cls.model_fields.items() if when in field.metadata)


class ServerConfig(Section):
    """`[server]`: where and how the daemon listens."""

    bind: AtStart[str] = Field(
        "127.0.0.1:8080",
        pattern=rf"^{_PLACES}$",
        examples=["127.0.0.1:8080"],
        description="HOST:PORT to listen on, or several divided by commas; `[::]` is every address of IPv6 "
        "and IPv4, `0.0.0.0` of IPv4. Until the owner has set a password, only loopback is served.",
    )
    max_body_mb: AtStart[int] = Field(8, ge=1, le=512, description="Largest request body accepted, in MB.")
    max_connections: AtStart[int] = Field(
        1000,
        ge=16,
        le=60_000,
        description="Connections at the same time, a quarter of them from one address. With more, the one "
        "that has waited longest without asking for anything is closed.",
    )
    log_level: AtStart[Literal["DEBUG", "INFO", "WARNING", "ERROR"]] = Field(
        "INFO", description="How much is logged."
    )
    log_format: AtStart[Literal["auto", "text", "json", "journal"]] = Field(
        "auto",
        description="How log lines look: `text` for people, `json` for programs, `journal` for journald; "
        "`auto` is `journal` when it is journald that reads them, else `text`.",
    )
    device_requests_per_minute: AtUse[int] = Field(
        120,
        ge=0,
        le=6000,
        description="Requests that a device may send in a minute when its key says nothing else (reading "
        "costs nothing); 0: any number.",
    )
    metrics: AtUse[Literal["local", "key", "open"]] = Field(
        "key",
        description="Who may read `/metrics`: `local` this machine and the owner, `key` also who has a "
        "device's key, `open` everybody.",
    )
    stalled_seconds: AtUse[Annotated[float, Field(ge=1, le=3600)]] = Field(
        30,
        description="The box counts as hung (`/health`, watchdog) when a step of the model takes longer. "
        "A model that is much too large for the box may need more.",
    )
    trusted_proxies: AtUse[str] = Field(
        "",
        examples=["192.168.1.10, 10.8.0.0/24"],
        description="Addresses or networks of reverse proxies, divided by commas. Only what these say about "
        "whom they speak for (`X-Forwarded-For`, `-Proto`, `-Host`, or `Forwarded`) is believed.",
    )

    @field_validator("bind")
    @classmethod
    def _a_port(cls, bind: str) -> str:
        return _with_port(bind)

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, proxies: str) -> str:
        for item in proxies.replace(",", " ").split():
            try:
                ip_network(item, strict=False)
            except ValueError as error:
                raise PydanticCustomError(
                    "networks", "{item} is neither an address nor a network", {"item": repr(item)}
                ) from error
        return proxies


class TlsConfig(Section):
    """`[tls]`: HTTPS, beside plain HTTP or in its place."""

    bind: AtStart[str] = Field(
        "auto",
        pattern=rf"^(|auto|{_PLACES})$",
        examples=["0.0.0.0:8443"],
        description="HOST:PORT to listen on for HTTPS, or several. `auto`: port 8443 of the addresses in "
        "`server.bind` that the network can reach. Empty: no HTTPS.",
    )
    certificate: AtUse[str] = Field(
        "",
        pattern=r"^(/.+)?$",
        examples=["/etc/ssl/box.pem"],
        description="A certificate of yours with its chain, a PEM file. Empty: one of the box's own.",
    )
    key: AtUse[str] = Field(
        "",
        pattern=r"^(/.+)?$",
        examples=["/etc/ssl/private/box.key"],
        description="The key of your certificate, a PEM file. Empty: it is in the same file.",
    )
    names: AtUse[str] = Field(
        "",
        examples=["box.example.com, 203.0.113.7"],
        description="Names and addresses, divided by commas, that the box's own certificate is for beside "
        "those it finds out by itself.",
    )
    plain: AtUse[bool] = Field(
        True,
        description="Serve plain HTTP to the network too. If not, pages lead to HTTPS and the API refuses; "
        "this machine itself is always served.",
    )

    @field_validator("bind")
    @classmethod
    def _a_port(cls, bind: str) -> str:
        return _with_port(bind) if ":" in bind else bind

    @field_validator("names")
    @classmethod
    def _hosts(cls, names: str) -> str:
        for item in names.replace(",", " ").split():
            if not re.fullmatch(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*|[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", item):
                raise PydanticCustomError(
                    "hosts", "{item} is neither a name of a host nor an address", {"item": repr(item)}
                )
        return names

    @field_validator("plain")
    @classmethod
    def _reachable(cls, plain: bool, info: ValidationInfo) -> bool:
        if not plain and info.data.get("bind") == "":
            raise PydanticCustomError(
                "plain", "Without HTTPS (tls.bind) the network would not be served at all"
            )
        return plain


class MdnsConfig(Section):
    """`[mdns]`: the box's name on the network, by multicast DNS."""

    enabled: AtUse[bool] = Field(
        True, description="Tell the network the box's name and services, once it serves the network."
    )
    name: AtUse[str] = Field(
        "",
        pattern=r"^([a-z0-9]([a-z0-9\-]{0,57}[a-z0-9])?)?$",
        examples=["shammah"],
        description="The box is `NAME.local`. Empty: the name of the box as far as that can be; one that is "
        "taken gets a number.",
    )


class ModelConfig(Section):
    """`[model]`: the bundle served and the limits of the engine."""

    name: AtStart[str] = Field(
        "smollm2-135m-instruct",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,127}$",  # as browsers want it, too
        examples=["smollm2-135m-instruct"],
        description="The bundle under `models/` to serve.",
    )
    context_length: AtStart[int] = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Longest prompt plus answer, in tokens; 0 takes the model's own limit.",
    )
    slots: AtStart[int] = Field(
        8, ge=1, le=64, description="Requests that generate at the same time; further ones wait their turn."
    )
    queue: AtStart[int] = Field(
        64, ge=0, le=10_000, description="Requests that may wait for a slot; beyond that the answer is 429."
    )
    threads: AtStart[int] = Field(
        0,
        ge=0,
        le=1024,
        description="Threads for the model; 0 takes the physical cores, or OMP_NUM_THREADS if fewer.",
    )
    prefill_chunk: AtStart[int] = Field(
        128, ge=16, le=4096, description="Prompt tokens computed at a time while nobody is being answered."
    )
    prefill_beside: AtStart[int] = Field(
        10, ge=1, le=4096, description="Prompt tokens computed beside each step of the running answers."
    )
    prefix_cache_mb: AtStart[int] = Field(
        128,
        ge=0,
        le=1_000_000,
        description="Memory for beginnings of prompts that were computed before, in MB.",
    )
    drafts: AtStart[bool] = Field(
        True, description="Guess how repetitive answers go on: faster, and the same."
    )
    extra_adapters: AtStart[int] = Field(
        1,
        ge=0,
        le=64,
        description="Adapters kept ready beside the one in service, for requests that name them.",
    )
    temperature: AtUse[Annotated[float, Field(ge=0, le=2)]] = Field(
        0.2,
        description="Sampling temperature when the request names none; a small model needs a low one. "
        "What is set here goes before what the model's own files say, and those before this default.",
    )
    top_p: AtUse[Annotated[float, Field(gt=0, le=1)]] = Field(
        0.9,
        description="Nucleus sampling mass when the request names none. What the model's own files say goes "
        "before this default.",
    )
    default_max_tokens: AtUse[int] = Field(
        512, ge=1, le=1_000_000, description="Answer length when the request names none."
    )


class LoraConfig(Section):
    """`[lora]`: when to learn, and how much an example counts."""

    enabled: AtUse[bool] = Field(True, description="Learn from use.")
    auto_train_threshold: AtUse[int] = Field(
        100, ge=1, le=1_000_000, description="Pending examples that start a run."
    )
    batch_timeout_minutes: AtUse[Pause] = Field(
        60, description="A run starts this long after the oldest pending example, however few there are."
    )
    normal_weight: AtUse[Weight] = Field(1.0, description="Weight of automatic examples and praise.")
    medium_weight: AtUse[Weight] = Field(3.0, description="Weight of medium feedback.")
    high_weight: AtUse[Weight] = Field(10.0, description="Weight of high feedback.")


class TrainConfig(Section):
    """`[train]`: the trainer program."""

    backend: AtUse[Literal["auto", "peft", "ort"]] = Field(
        "auto",
        description="Trainer program: `ort` (onnxruntime-training, no torch), `peft` (torch), or `auto`: "
        "`ort` where its environment is there and it knows the model, else `peft`.",
    )
    ort_python: AtUse[str] = Field(
        "", description="Python of the environment for `ort`; empty takes the one that `make ort` makes."
    )
    rank: AtUse[int] = Field(16, ge=1, le=256, description="LoRA rank.")
    alpha: AtUse[Annotated[float, Field(ge=0.1, le=10_000)]] = Field(
        32.0, description="LoRA alpha; the update is scaled by alpha / rank."
    )
    layers: AtUse[Annotated[float, Field(gt=0, le=1)]] = Field(
        0.7, description="Share of the layers that get an adapter, counted from the top."
    )
    learning_rate: AtUse[Annotated[float, Field(ge=1e-7, le=1)]] = Field(
        1.6e-3,
        description="Peak learning rate of a full step; smaller steps take the square root of their share.",
    )
    epochs: AtUse[int] = Field(5, ge=1, le=100, description="Passes over the examples.")
    batch_tokens: AtUse[int] = Field(
        128,
        ge=16,
        le=65_536,
        description="Tokens per optimizer step at most; small runs take smaller steps, and more of them.",
    )
    drift_weight: AtUse[Annotated[float, Field(ge=0, le=1000)]] = Field(
        4.0, description="How much staying near the starting model counts on its own answers and on prose."
    )
    anchor_weight: AtUse[Annotated[float, Field(ge=0, le=1000)]] = Field(
        5.0,
        description="How much it counts that the layers make the same of ordinary text as those of base.",
    )
    rejected_weight: AtUse[Annotated[float, Field(ge=0, le=1000)]] = Field(
        0.3, description="How much it counts that a rejected answer loses probability."
    )
    max_text_rise: AtUse[Annotated[float, Field(ge=0, le=100)]] = Field(
        0.08,
        description="The adapter is scaled down until generic text perplexity rises by no more than this.",
    )
    max_tokens: AtUse[int] = Field(
        1024,
        ge=64,
        le=131_072,
        description="An example longer than this loses the oldest part of its context.",
    )
    heldout_share: AtUse[Annotated[float, Field(ge=0, le=0.5)]] = Field(
        0.1, description="Share of the batch kept out of training, for the gate."
    )
    replay_share: AtUse[Annotated[float, Field(ge=0, le=4)]] = Field(
        1.5, description="Earlier examples trained again, as a share of the batch."
    )
    relearn: AtUse[int] = Field(
        100,
        ge=0,
        le=100_000,
        description="Up to so many answers of people in all, a run begins from the base model and learns "
        "all of them again; with more it goes on from the adapter in service. 0: it always goes on.",
    )
    near_duplicate: AtUse[Annotated[float, Field(ge=0.5, le=1)]] = Field(
        0.92,
        description="Automatic examples count once when question and answer are both this alike; 1: equal.",
    )
    device_share: AtUse[Annotated[float, Field(gt=0, le=1)]] = Field(
        0.5, description="Share of the automatic examples that one device may give, of several; 1: no limit."
    )
    threads: AtUse[int] = Field(
        0, ge=0, le=1024, description="Threads of the trainer; 0 takes half the cores, at least one."
    )
    nice: AtUse[int] = Field(10, ge=0, le=19, description="Niceness of the trainer: serving comes first.")
    memory_limit_mb: AtUse[int] = Field(
        6144, ge=1024, le=4_000_000, description="The trainer is stopped above this, in MB."
    )
    time_limit_minutes: AtUse[Pause] = Field(120, description="The trainer is stopped after this.")
    checkpoint_seconds: AtUse[Annotated[float, Field(ge=0, le=86_400)]] = Field(
        30, description="A run that is cut off loses at most this much of its training."
    )
    max_resumes: AtUse[int] = Field(
        10, ge=0, le=1000, description="A run that is cut off goes on from its checkpoint this often at most."
    )
    seed: AtUse[int] = Field(0, ge=0, le=2**31 - 1, description="Seed of shuffling and initialisation.")
    max_attempts: AtUse[int] = Field(
        3, ge=1, le=20, description="A batch whose run died is retried this often, then parked."
    )


class ResourcesConfig(Section):
    """`[resources]`: when the box has nothing to spare and a run is deferred."""

    max_load_per_core: AtUse[Annotated[float, Field(ge=0.05, le=1_000_000)]] = Field(
        1.5, description="A run is deferred while the one-minute load per core is above this."
    )
    min_free_memory_mb: AtUse[int] = Field(
        2500, ge=0, le=10_000_000, description="A run is deferred with less memory available, in MB."
    )
    min_free_disk_mb: AtUse[int] = Field(
        500, ge=0, le=1_000_000_000, description="A run is deferred with less free disk, in MB."
    )
    max_temperature_c: AtUse[Annotated[float, Field(ge=30, le=150)]] = Field(
        85, description="A run is deferred while a sensor reads hotter."
    )
    min_battery_percent: AtUse[Annotated[float, Field(ge=0, le=100)]] = Field(
        50, description="A run is deferred on battery below this charge."
    )
    busy_share: AtStart[Annotated[float, Field(ge=0.001, le=1)]] = Field(
        0.1, description="Share of the time with requests in which a run may compute; 1: it does not yield."
    )
    quiet_hours: AtUse[str] = Field(
        "",
        pattern=r"^(|([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d)$",
        examples=["22:00-07:00"],
        description="Local time span without training, as `22:00-07:00`; empty for none.",
    )
    retry_minutes: AtUse[Annotated[float, Field(ge=_least(0.1), le=10_080)]] = Field(
        5, description="A deferred run is tried again after this."
    )


class GateConfig(Section):
    """`[gate]`: the limits a candidate adapter must keep."""

    max_perplexity_rise: AtUse[Annotated[float, Field(ge=0, le=100)]] = Field(
        0.15, description="Generic text perplexity may rise by this share over base."
    )
    max_probe_drop: AtUse[int] = Field(
        1, ge=0, le=1000, description="Probes that may fail which the adapter in service answers."
    )
    max_heldout_rise: AtUse[Annotated[float, Field(ge=0, le=100)]] = Field(
        0.1,
        description="Held-out loss may rise by this share over the adapter in service: a new manner that "
        "people teach makes answers of before less likely.",
    )
    min_taught: AtUse[Annotated[float, Field(ge=0, le=1)]] = Field(
        0.5,
        description="Share of the batch's corrections the candidate must prefer over the rejected answer.",
    )
    min_recall: AtUse[Annotated[float, Field(ge=0, le=1)]] = Field(
        0.6, description="Share of the batch's corrected questions that must get the taught answer."
    )
    max_forgotten: AtUse[Annotated[float, Field(ge=0, lt=1)]] = Field(
        0.05,
        description="Share of earlier corrections that may be lost; the report says how many of those asked.",
    )
    max_empty: AtUse[Annotated[float, Field(ge=0, le=1)]] = Field(
        0.05, description="Share of answers that may be empty, beyond those that were before."
    )
    max_looping: AtUse[Annotated[float, Field(ge=0, le=1)]] = Field(
        0.1, description="Share of answers that may repeat themselves, beyond those that did before."
    )
    max_refusals: AtUse[Annotated[float, Field(ge=0, le=1)]] = Field(
        0.1, description="Share of questions that may be refused an answer, beyond those that were before."
    )
    max_same: AtUse[Annotated[float, Field(ge=0, le=1)]] = Field(
        0.15, description="Share of different questions that may get the same answer, beyond those that did."
    )
    min_length: AtUse[Annotated[float, Field(ge=0, le=1)]] = Field(
        0.3, description="General answers may become this many times as long as those of base, on average."
    )
    max_length: AtUse[Annotated[float, Field(ge=1, le=1000)]] = Field(
        1.6, description="The same, for longer ones; all are cut off after 24 tokens."
    )

    canary_share: AtUse[Annotated[float, Field(ge=0, le=0.5)]] = Field(
        0, description="A run's adapter answers this share of the requests before it serves all; 0: none."
    )
    canary_answers: AtUse[int] = Field(
        50, ge=1, le=1_000_000, description="It is promoted after so many answers, if not worse."
    )
    canary_minutes: AtUse[Pause] = Field(
        720, description="It is promoted after this time too, however few answers it gave."
    )
    probation_minutes: AtUse[Watched] = Field(
        1440,
        description="An adapter the box put in service by itself is watched this long, and rolled back when "
        "it does worse than the one before; 0: not at all.",
    )
    probation_chance: AtUse[Annotated[float, Field(ge=1e-9, le=0.1)]] = Field(
        0.003,
        description="Ratings bring an adapter down when they would be so much worse than before by chance "
        "less often than this.",
    )


class CollectConfig(Section):
    """`[collect]`: what is stored."""

    enabled: AtUse[bool] = Field(True, description="Store every query and response as an example.")
    max_chars: AtUse[int] = Field(
        32768, ge=256, le=10_000_000, description="Longer exchanges are not collected."
    )
    feedback_daily: AtUse[int] = Field(
        500,
        ge=0,
        le=1_000_000,
        description="Feedback that one device may give in 24 hours; beyond that the answer is 429.",
    )
    feedback_daily_mb: AtUse[Megabytes] = Field(
        5, description="How much that may be in all, in MB. The owner may give any amount."
    )
    feedback_waiting_mb: AtUse[Megabytes] = Field(
        20, description="Feedback of one device that may wait to be learned or looked at, in MB."
    )
    mask_private: AtUse[bool] = Field(
        True,
        description="Automatic examples: mask card numbers, IBANs, e-mail addresses, phone numbers, keys.",
    )
    phone_region: AtUse[str] = Field(
        "",
        pattern=r"^([A-Z]{2})?$",
        examples=["GB"],
        description="Country, as `GB`, whose phone numbers without a country code are masked too.",
    )


class BackupConfig(Section):
    """`[backup]`: the backups that the box makes by itself."""

    every_hours: AtUse[Annotated[float, Field(ge=0, le=8760), NoneOr(0.25, "0.25 hours")]] = Field(
        24, description="Hours between automatic backups, unless nothing has changed; 0: none are made."
    )
    keep: AtUse[int] = Field(
        7, ge=1, le=1000, description="So many of the newest automatic backups are kept."
    )
    keep_weeks: AtUse[int] = Field(
        4, ge=0, le=520, description="Of so many weeks before, the newest of each is kept, too."
    )
    copy_to: AtUse[str] = Field(
        "",
        pattern=r"^(|/[^\x00-\x1f\x7f]*)$",
        examples=["/mnt/nas/shammah"],
        description="A directory on another disk or machine, for this box alone, that gets a copy of each.",
    )


class StorageConfig(Section):
    """`[storage]`: what is kept, and how long. What serves, or is not learned yet, is never removed."""

    budget_mb: AtUse[int] = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="Disk that the home may take, in MB, models left out; 0: as much as there is.",
    )
    min_free_mb: AtUse[int] = Field(
        200,
        ge=0,
        le=1_000_000_000,
        description="With less free disk, in MB, the box removes what it may before its time.",
    )
    keep_runs: AtUse[int] = Field(
        50,
        ge=1,
        le=100_000,
        description="Of so many of the newest runs all files are kept; what is known of older ones stays.",
    )
    keep_adapters: AtUse[int] = Field(
        10, ge=2, le=100_000, description="So many of the newest accepted adapters are kept, to roll back to."
    )
    rejected_days: AtUse[Days] = Field(
        30, description="Files of adapters that the gate rejected or service failed are removed after this."
    )
    restored_days: AtUse[Days] = Field(
        60, description="What was there before a restore is removed after this."
    )
    answers_days: AtUse[Annotated[Days, NoneOr(1, "1 day")]] = Field(
        0, description="Answers given are forgotten after this; 0: the last 10,000 are kept. Examples stay."
    )
    audit_days: AtUse[Annotated[Days, NoneOr(1, "1 day")]] = Field(
        0, description="The audit trail is kept this long; 0: its last 100,000 entries are."
    )


class ConsoleConfig(Section):
    """`[console]`: the owner's pages."""

    name: AtUse[str] = Field(
        "Shammah",
        pattern=r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]{0,38}[^\s\x00-\x1f\x7f])?$",
        examples=["Kitchen box"],
        description="What the box is called, on its pages.",
    )
    session_hours: AtUse[Annotated[float, Field(ge=0.25, le=8760)]] = Field(
        12, description="An owner's login lasts this long."
    )
