"""Django: `MIDDLEWARE = [..., "opero.integrations.django.Middleware"]` answers where a policy has ended the call."""

from __future__ import annotations

from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse, JsonResponse

from opero.integrations.http_answers import ANSWERED, answer_to, configured

__all__ = ["Middleware", "configured"]


class Middleware:
    """Answers requests whose calls a policy has ended, instead of with a 500. For sync and async views.

    With 503 if the call was rejected, or all attempts have failed for a reason that passes, and with `Retry-After` if
    it is known when another call may succeed; with 504 if a timeout has ended it. The answer says nothing of the cause,
    which is in opero's logs.

    Args:
        get_response: the next middleware, or the view.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """Return the answer for an exception of a view; None leaves it to others."""
        found = answer_to(error) if isinstance(error, ANSWERED) else None
        if found is None:
            return None
        status, headers = found
        return JsonResponse({"detail": status.phrase}, status=status.value, headers=headers)
