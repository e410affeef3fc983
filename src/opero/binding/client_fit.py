"""Whether a policy fits the clients of a service, whose requests are the calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opero.policies.policy import Policy


def client_refusal(policy: Policy, without: str = "add {}=False here") -> str | None:
    """Return why a policy cannot be under a client, with the cure; None if it can.

    Args:
        policy: the whole policy.
        without: how to leave out a kind of policy, with {} for its name.
    """
    if policy.active("cache") is not None:
        return (
            "responses are not cached under a client, whose rules of caching are those of HTTP: "
            f"{without.format('cache')}, and put a cache that knows them, such as hishel, over this"
        )
    fallback = policy.active("fallback")
    if fallback is not None and fallback.arg is not None:
        return (
            f"fallback.arg ({fallback.arg!r}) names an argument of a function, and a request has none: bind a function "
            f"that sends the request, or {without.format('fallback')}"
        )
    if fallback is not None and fallback.has_result and fallback.function is None:
        return (
            "fallback.default is not a response, which a client expects: use fallback.function, which returns one, or "
            f"{without.format('fallback')}"
        )
    return None
