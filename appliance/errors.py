"""The error family. Every failure a caller can cause or act on is a `ShammahError`.

The API turns one into OpenAI's error object, the command line into one line on stderr, so a
message says what is wrong *and* what to do. `status` is the HTTP status it maps to.
"""

from __future__ import annotations

from collections.abc import Mapping


class ShammahError(Exception):
    """Base of the family.

    Args:
        message: one sentence for a person.
        param: the request field or config key at fault, if one is.
        code: stable machine-readable word, overriding the class's own.
    """

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(ShammahError):
    """The caller sent something that cannot be served as it is."""

    status = 400
    type = "invalid_request_error"


class TooLarge(InvalidRequest):
    """A body is larger than what it could mean, or than its sender may send at all."""

    status = 413
    code = "request_too_large"


class HeadTooLarge(InvalidRequest):
    """So is the head of a request: its address or its header fields."""

    status = 431
    code = "header_too_large"


class NotFound(InvalidRequest):
    """A named thing (model, adapter, run, example) does not exist."""

    status = 404
    code = "not_found"


class Conflict(InvalidRequest):
    """The request is fine, the present state is not (e.g. a run is already going on)."""

    status = 409
    code = "conflict"


class Pinned(Conflict):
    """The owner has pinned what is in service: only a person switches."""

    code = "pinned"


class Unauthorized(InvalidRequest):
    """Credentials are missing or wrong."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(InvalidRequest):
    """The credentials are good but do not allow this."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class NotSetUp(Forbidden):
    """The box has no owner yet, and somebody from elsewhere is asking."""

    code = "not_set_up"

    def __init__(self) -> None:
        super().__init__(
            "This box is not set up yet, so it answers only on the machine it runs on. There, open the setup "
            "link from its log (in another machine's browser through `ssh -L`), or run `shammah console "
            "password`."
        )


class ContextOverflow(InvalidRequest):
    """Prompt and requested tokens do not fit in the model's context."""

    code = "context_length_exceeded"


class Busy(ShammahError):
    """The box is at its limit; try again later.

    Attributes:
        retry_after: in how many seconds that may help.
    """

    status = 429
    type = "rate_limit_error"
    code = "server_busy"
    retry_after = 5


class RateLimited(Busy):
    """A device has asked as often as it may for now."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class FeedbackLimit(Busy):
    """A device has given as much feedback as it may for now; nothing was stored."""

    code = "feedback_limit_exceeded"
    retry_after = 3600


class Unavailable(ShammahError):
    """A part of the box is not ready or failed; nothing is wrong with the request."""

    status = 503
    code = "unavailable"


class StorageFull(Unavailable):
    """The disk has no room: nothing was written, nothing was lost."""

    status = 507
    code = "storage_full"


class StorageReadOnly(Unavailable):
    """The disk takes no writes: the system has made it read-only, mostly because it found it damaged."""

    code = "storage_read_only"


class StorageFailing(Unavailable):
    """The disk gave an error instead of doing what it was told."""

    code = "storage_failing"


class StorageDamaged(Unavailable):
    """The database cannot be read in places. The next start puts it right."""

    code = "storage_damaged"


class NotWritable(Unavailable):
    """The home, or a part of it, is not this user's to write; the message says whose it is."""

    code = "not_writable"


class ConfigError(ShammahError):
    """`config.toml` cannot be used; the message names the line, the key and, where near, the right one.

    Attributes:
        problems: all that is wrong with the file, in its order.
    """

    code = "invalid_config"

    def __init__(self, *problems: str, param: str | None = None) -> None:
        super().__init__("; ".join(problems), param=param)
        self.problems = problems


class InvalidSettings(InvalidRequest):
    """Changes of settings that cannot be saved.

    Attributes:
        problems: what is wrong, by key; under a section's name what concerns several of its keys.
    """

    code = "invalid_settings"

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__(
            "; ".join(f"{key}: {problem}" if key else problem for key, problem in problems.items()),
            param=next(iter(problems), None),
        )
        self.problems = dict(problems)


class BundleError(ShammahError):
    """A model bundle is missing, broken or cannot be imported."""

    code = "invalid_bundle"


class AdapterInvalid(InvalidRequest):
    """An adapter file failed structural validation; the message says which check."""

    code = "invalid_adapter"
