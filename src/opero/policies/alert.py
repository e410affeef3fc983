"""Alerts: conditions of events, failing calls and lasting states, and who is notified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    PlainSerializer,
    SecretStr,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from opero.errors import message_of, nearest
from opero.events import EVENTS
from opero.policies.base import StrictModel
from opero.policies.lists import each_of
from opero.policies.names import IMPORT_TEXT, check_callable, dotted_name, resolve
from opero.policies.quantities import (
    HIDDEN,
    POSITIVE_COUNT_TEXT,
    SHARE_PERCENT_TEXT,
    SHARE_TEXT,
    Count,
    Duration,
    PositiveCount,
    PositiveDuration,
    Share,
    fits,
    named_schema,
    parse_number,
    quoted,
)
from opero.policies.types import Flag, one_of
from opero.runtime.named_secrets import PREFIX, find_secret, resolved

if TYPE_CHECKING:
    from opero.policies.quantities import DurationLike


Measures = Literal["failures", "retries", "rejections", "timeouts", "fallbacks"]
States = Literal["circuit_open", "cache_unavailable", "value_set_aside", "configuration_rejected"]
Groups = Literal["function", "policy", "all"]


def _event(value: object) -> object:
    if value not in EVENTS:
        raise ValueError(f"unknown event {quoted(value)}{nearest(str(value), EVENTS)}")
    return value


EventName = Annotated[str, BeforeValidator(_event), WithJsonSchema({"title": "EventName", "enum": list(EVENTS)})]


def _until(value: object) -> float:
    share = fits(SHARE_PERCENT_TEXT, value)
    number = float(str(value).strip().rstrip("%")) / 100 if share else parse_number(value)
    if number is None or number <= 0 or isinstance(value, bool):
        raise ValueError(f'{quoted(value)} is invalid: use a number of events (50), or a share of calls (0.1, "10%")')
    return number


Until = Annotated[
    float,
    BeforeValidator(_until),
    named_schema(
        "Until",
        [
            {"type": "number", "exclusiveMinimum": 0},
            *({"type": "string", "pattern": each} for each in (POSITIVE_COUNT_TEXT, SHARE_TEXT, SHARE_PERCENT_TEXT)),
        ],
        50,
        "10%",
    ),
]


class Condition(StrictModel):
    """When an alert fires: exactly one of `event`, `share`, `state`, `any` and `all`, with what goes with it.

    Attributes:
        event: the name of an event, such as "retry_scheduled": it fires after `count` of them within `over`.
        count: the number of events. Default 1.
        share: the share of calls, such as "20%": it fires if that share of the calls within `over` has failed, of at
            least `min_calls`.
        of: what of the calls is counted instead of failures: retries, rejections, timeouts or fallbacks. Default
            "failures".
        over: the time over which events and calls are counted. Default "5m".
        min_calls: the fewest calls over which a share is judged. Default 20.
        until: it stops to hold below this number of events or share of calls. Default: below `count` or `share`.
        state: what lasts: circuit_open, cache_unavailable, value_set_aside (a fallback value that was denied or
            throttled) or configuration_rejected.
        lasts: how long the state has to last. Default "0s".
        any: conditions, of which one is enough.
        all: conditions that have to hold at the same time, for the same function or policy.
    """

    event: EventName | None = None
    count: PositiveCount = 1
    share: Share | None = None
    of: Annotated[Measures, one_of(Measures)] = "failures"
    over: PositiveDuration = 300.0
    min_calls: PositiveCount = 20
    until: Until | None = None
    state: Annotated[States, one_of(States)] | None = None
    lasts: Duration = 0.0
    any: tuple[Condition, ...] | None = None
    all: tuple[Condition, ...] | None = None

    GOES_WITH: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "event": ("count", "over", "until"),
        "share": ("of", "over", "min_calls", "until"),
        "state": ("lasts",),
        "any": (),
        "all": (),
    }
    """What makes a condition → the fields that go with it."""

    @property
    def what(self) -> str:
        """The field that makes it: "event", "share", "state", "any" or "all"."""
        return next(each for each in self.GOES_WITH if getattr(self, each) is not None)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        made = [each for each in self.GOES_WITH if getattr(self, each) is not None]
        if len(made) != 1:
            which = f"not {' and '.join(made)}" if made else "and this has none of them"
            raise ValueError(f"a condition has exactly one of {', '.join(self.GOES_WITH)}, {which}")
        wrong = sorted(self.model_fields_set - {made[0], *self.GOES_WITH[made[0]]} - set(self.GOES_WITH))
        if wrong:
            goes = ", ".join(self.GOES_WITH[made[0]]) or "nothing else"
            raise ValueError(f"{wrong[0]} does not go with {made[0]}; what does: {goes}")
        if made[0] in ("any", "all") and not getattr(self, made[0]):
            raise ValueError(f"{made[0]} needs at least one condition")
        most = self.count if self.event is not None else self.share
        if self.until is not None and most is not None and self.until > most:
            raise ValueError(
                f"until ({self.until:g}) is more than {made[0] if made[0] == 'share' else 'count'} ({most:g})"
            )
        return self


def _wrong(text: str) -> ValidationError:
    """Make an error that does not show the input, as pydantic's own would: URLs of webhooks are secret."""
    kind = PydanticCustomError("webhook", "{text}", {"text": text})
    return ValidationError.from_exception_data("url", [InitErrorDetails(type=kind, input=HIDDEN)])


def _url(value: object) -> SecretStr:
    if not isinstance(value, str | SecretStr):
        raise _wrong(f"a URL is text, not {type(value).__name__}")
    try:
        text = value.get_secret_value() if isinstance(value, SecretStr) else resolved(value.strip(), find_secret)
        parts = urlsplit(text)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError as error:
        raise _wrong(message_of(error) if str(value).startswith(PREFIX) else "this is not a URL") from None
    if not is_valid:
        raise _wrong('this is not a URL of a webhook: use https://…, http://…, or "secret:NAME" for one of them')
    return SecretStr(text)


URL = Annotated[
    SecretStr,
    WrapValidator(lambda value, _: _url(value)),
    WithJsonSchema({"type": "string", "minLength": 1, "format": "password", "writeOnly": True}),
]


class Webhook(StrictModel):
    """A server that receives each notification as JSON, by POST. It is called in a thread of opero's.

    Attributes:
        url: an http or https URL, or "secret:NAME" for a variable or secret that contains it. It is never shown.
        timeout: how long an attempt may take. Default "5s".
        retries: the number of attempts after the first, with growing delays. Default 3.
    """

    url: URL
    timeout: PositiveDuration = 5.0
    retries: Count = 3

    if TYPE_CHECKING:

        def __init__(self, *, url: str | SecretStr, timeout: DurationLike = 5.0, retries: int = 3) -> None: ...


Action = Literal["log"] | Webhook | Callable[[Any], object]
ActionLike = Action | str | Mapping[str, Any]
"""What code may pass for an action."""


def _action(value: object) -> object:
    if isinstance(value, Webhook) or (isinstance(value, str) and value.strip() == "log"):
        return value.strip() if isinstance(value, str) else value
    is_url = isinstance(value, str) and (value.startswith(PREFIX) or "://" in value)
    if is_url or isinstance(value, SecretStr | Mapping):
        try:
            return Webhook.model_validate(value if isinstance(value, Mapping) else {"url": value})
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
            texts = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in found)
            raise ValueError("; ".join(texts)) from None
    if isinstance(value, str) and not fits(IMPORT_TEXT, value):
        hint = nearest(value, ["log"]).partition("; known")[0]
        raise ValueError(
            f'{value!r} is no action{hint}; use log, the name of a function ("module:function"), or a webhook: its '
            'URL, "secret:NAME", or {url: …}'
        )
    function = resolve(value.strip()) if isinstance(value, str) else value
    check_callable(function, value)
    return function


def _actions(value: object) -> tuple[object, ...]:
    return tuple(each_of(value if isinstance(value, list | tuple) else (value,), _action, HIDDEN))


def _written(actions: tuple[Action, ...]) -> list[Any]:
    return [
        each if each == "log" else each.model_dump(mode="json") if isinstance(each, Webhook) else dotted_name(each)
        for each in actions
    ]


_WEBHOOK = {"title": "Webhook", "type": "object"}  # config/schema.py refers to the schema of the model instead
_ACTION: list[dict[str, Any]] = [{"const": "log"}, {"type": "string", "pattern": IMPORT_TEXT}]
_ACTION += [{"type": "string", "pattern": "^secret:|://"}, _WEBHOOK]
Actions = Annotated[
    tuple[Action, ...],
    BeforeValidator(_actions),
    named_schema("Actions", [*_ACTION, {"type": "array", "items": {"anyOf": _ACTION}}], ["log", "secret:ALERT_URL"]),
    PlainSerializer(_written, return_type=list[Any], when_used="json"),
]
"""Who is notified: the log, functions that receive an `AlertFired` or `AlertResolved`, webhooks."""


class Alert(StrictModel):
    """When an alert notifies, and whom. A notification lists all functions concerned.

        Alert(when={"share": "20%", "over": "5m"}, policy="api", notify=["log", "secret:ALERT_URL"])

    Attributes:
        when: the condition.
        policy: the name of a profile or a pattern such as "api-*": only what concerns it counts. Default null: all.
        function: the name of a function or a pattern such as "app.users:*". Default null: all.
        each: what is counted apart: function, policy, or all for one sum. Default "function".
        calm: how long the condition must not hold before the alert is resolved. Default "5m".
        repeat: how long there is no other notification of this alert, apart from that it is resolved. While the alert
            goes on, it is repeated after that time. Default "1h".
        notify: who is notified: log, names of functions, webhooks. Default "log".
        text: a description, which is added to the notification, such as what to do. Default null.
        enabled: false switches it off. Default true.
    """

    when: Condition
    policy: str | None = None
    function: str | None = None
    each: Annotated[Groups, one_of(Groups)] = "function"
    calm: Duration = 300.0
    repeat: PositiveDuration = 3600.0
    notify: Actions = ("log",)
    text: str | None = None
    enabled: Flag = True

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            when: Condition | Mapping[str, Any],
            policy: str | None = None,
            function: str | None = None,
            each: Groups = "function",
            calm: DurationLike = 300.0,
            repeat: DurationLike = 3600.0,
            notify: ActionLike | Sequence[ActionLike] = ("log",),
            text: str | None = None,
            enabled: bool = True,
        ) -> None: ...
