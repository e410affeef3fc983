"""What holds for every client under a policy: what is repeated, what is returned, and what is raised."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from failures.misbehaving_server import closed_port
from integrations.clients.conftest import NOW, Client
from integrations.clients.service import Handler, Service
from opero import (
    CallTimeoutError,
    CircuitOpenError,
    ConfigError,
    OperoError,
    Policy,
    PolicyNotFoundError,
    RateLimitExceededError,
    Registry,
    UnknownOptionError,
    opero,
)
from opero.integrations.aiohttp import Middleware

BODY = b"x" * 100


# What is repeated


def test_an_idempotent_request_is_repeated_until_it_succeeds(client: Client, service: Service) -> None:
    client.use(**NOW)
    for method in ("GET", "PUT", "DELETE"):
        service.answers = [503, "drop", 200]
        assert client.request(method, service.url, content=BODY if method == "PUT" else None) == (200, b"200")
    assert [each.method for each in service.seen] == ["GET"] * 3 + ["PUT"] * 3 + ["DELETE"] * 3
    assert service.bodies[3:6] == [BODY] * 3
    assert (client.stats.calls, client.stats.retries, client.stats.recoveries) == (3, 6, 3)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("answer", [503, "drop"])
def test_any_other_request_is_sent_once(client: Client, service: Service, method: str, answer: Any) -> None:
    client.use(**NOW)
    service.answers = [answer]
    if answer == 503:
        assert client.request(method, service.url, content=BODY).status == 503
    else:
        with pytest.raises(client.error):
            client.request(method, service.url, content=BODY)
    assert len(service.seen) == 1
    assert (client.stats.failures, client.stats.retries_saved) == (1, 3)


def test_a_request_with_an_idempotency_key_is_repeated(client: Client, service: Service) -> None:
    client.use(**NOW)
    service.answers = [503, "drop", 200]
    assert client.request("POST", service.url, content=BODY, headers={"idempotency-key": "k"}).status == 200
    assert [each.headers["idempotency-key"] for each in service.seen] == ["k"] * 3
    assert service.bodies == [BODY] * 3


@pytest.mark.parametrize(("option", "header"), [(True, "idempotency-key"), ("X-Request-Id", "x-request-id")])
def test_a_key_is_added_where_that_is_asked_for(client: Client, service: Service, option: Any, header: str) -> None:
    client.use(**NOW, idempotency_key=option)
    for answers in ([503, 200], [503, 200]):
        service.answers = list(answers)
        assert client.request("POST", service.url, content=BODY).status == 200
    first, again, second, last = (each.headers[header] for each in service.seen)
    assert first == again != second == last
    client.request("POST", service.url, headers={header: "own"})
    assert service.seen[-1].headers[header] == "own"
    client.request("GET", service.url)
    assert header not in service.seen[-1].headers


def test_retry_methods_says_which_methods_are_repeated(client: Client, service: Service) -> None:
    client.use(**NOW, retry_methods=["get", "POST"])
    for method, sent in (("POST", 2), ("GET", 2), ("DELETE", 1)):
        service.answers = [503]
        before = len(service.seen)
        client.request(method, service.url)
        assert len(service.seen) - before == sent
        service.answers = []


def test_a_request_of_which_nothing_was_sent_is_repeated_whatever_it_is(client: Client) -> None:
    client.use(**NOW)
    with pytest.raises(client.error) as caught:
        client.request("POST", f"http://127.0.0.1:{closed_port()}/", content=iter([BODY]))
    assert client.stats.attempts == 4
    assert "all 4 attempts failed" in caught.value.__notes__[0]


def test_a_body_that_can_be_read_only_once_is_sent_once(
    client: Client, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    client.use(**NOW)
    service.answers = [503]
    with caplog.at_level("INFO", "opero"):
        assert client.request("PUT", service.url, content=iter([BODY, BODY])).status == 503
    assert service.bodies == [BODY * 2]
    assert "can be read only once; pass bytes" in caplog.text


def test_each_hop_of_a_redirect_is_a_request(client: Client, service: Service) -> None:
    def redirect(handler: Handler) -> None:
        handler.answer(302, Location="/there")

    client.use(**NOW)
    service.answers = [503, redirect, 503, 200]
    assert client.request("GET", f"{service.url}/here").status == 200
    assert [each.path for each in service.seen] == ["/here", "/here", "/there", "/there"]
    assert client.stats.calls == 2


# What is returned and raised


def test_the_last_response_is_returned_as_it_is(client: Client, service: Service) -> None:
    client.use(**NOW)
    service.answers = [500, 502, 503, 504]
    assert client.request("GET", service.url) == (504, b"504")
    service.answers = [404]
    assert client.request("GET", service.url) == (404, b"404")
    assert len(service.seen) == 5


def test_retry_if_result_receives_the_response(client: Client, service: Service) -> None:
    def is_missing(response: Any) -> bool:
        return 404 in (getattr(response, "status_code", 0), getattr(response, "status", 0))

    client.use(**NOW, retry_if_result=is_missing)
    service.answers = [404, 404, 200]
    assert client.request("GET", service.url).status == 200
    service.answers = [404, 200]
    assert client.request("POST", service.url).status == 404


def test_the_last_exception_is_raised_as_the_client_raises_it(client: Client, service: Service) -> None:
    client.use(**NOW)
    service.answers = ["drop"] * 5
    with pytest.raises(client.error) as caught:
        client.request("GET", service.url)
    assert len(service.seen) == 4
    assert "all 4 attempts failed" in caught.value.__notes__[0]
    assert caught.value.__context__ is None or "opero" not in type(caught.value.__context__).__module__


def test_an_open_circuit_is_an_error_of_the_client_too(client: Client, service: Service) -> None:
    client.use(circuit_breaker=2, retries=0)
    service.answers = [503] * 3
    for _ in range(2):
        assert client.request("GET", service.url).status == 503
    with pytest.raises(CircuitOpenError) as caught:
        client.request("GET", service.url)
    assert isinstance(caught.value, client.error)
    assert caught.value.retry_in
    assert len(service.seen) == 2
    copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, client.error)
    assert (str(copy), copy.retry_in) == (str(caught.value), caught.value.retry_in)


def test_a_timeout_of_the_policy_is_a_timeout_of_the_client(client: Client, service: Service) -> None:
    client.use(attempt_timeout=0.2, retries=1, min_delay=0)
    service.answers = ["hang"] * 2
    with pytest.raises(CallTimeoutError) as caught:
        client.request("GET", service.url)
    assert isinstance(caught.value, client.timeout)
    assert (caught.value.scope, len(service.seen)) == ("attempt", 2)


def test_the_timeout_of_the_client_holds_as_well(client: Client, service: Service) -> None:
    client.use(**{**NOW, "retries": 1})
    service.answers = ["hang"] * 2
    timeout: Any = aiohttp.ClientTimeout(sock_read=0.2) if client.make is Middleware else 0.2
    with pytest.raises(client.timeout) as caught:
        client.request("GET", service.url, timeout=timeout)
    assert not isinstance(caught.value, CallTimeoutError)
    assert len(service.seen) == 2


def test_a_fallback_function_returns_the_response_of_a_request_that_fails(client: Client, service: Service) -> None:
    if client.make.__module__.endswith(("aiohttp", "requests")):
        pytest.skip("their responses are not made by users")
    module: Any = client.module  # type: ignore[attr-defined]
    client.use(retries=0, fallback={"function": lambda request: module.Response(200, content=b"old")})
    service.answers = [503]
    assert client.request("GET", service.url) == (200, b"old")


# Limits


def test_permits_are_taken_by_each_attempt(client: Client, service: Service) -> None:
    client.use(**NOW, bulkhead=1, rate_limit={"rate": "1/h", "burst": 2, "max_wait": 0})
    service.answers = [503, 503]
    with pytest.raises(client.error):
        client.request("GET", service.url)
    assert len(service.seen) == 2


@pytest.mark.parametrize(
    ("status", "headers", "pause"),
    [
        (429, {"Retry_After": "30"}, 30),
        (200, {"RateLimit": '"default";r=0;t=40'}, 40),
        (200, {"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "20"}, 20),
    ],
)
def test_what_a_service_says_of_its_quota_holds_for_all_requests_of_the_limit(
    client: Client, service: Service, status: int, headers: dict[str, str], pause: float
) -> None:
    registry = Registry({"api": Policy(rate_limit={"rate": "100/s", "max_wait": 1, "scope": "profile"})})
    client.use("api", registry=registry)
    service.answers = [lambda handler: handler.answer(status, b"", **headers)]
    assert client.request("GET", service.url).status == status
    with pytest.raises(client.error, match="the service has asked for a pause") as caught:
        client.request("GET", service.url)
    assert isinstance(caught.value, RateLimitExceededError)
    assert caught.value.retry_in == pytest.approx(pause, abs=2)
    with pytest.raises(RateLimitExceededError):
        registry.bind(str, "api")()
    assert len(service.seen) == 1


def test_functions_and_clients_of_a_profile_share_its_limits(client: Client, service: Service) -> None:
    registry = Registry({"api": Policy(circuit_breaker={"consecutive_failures": 1, "scope": "profile"})})
    client.use("api", registry=registry)
    service.answers = [503]
    assert client.request("GET", service.url).status == 503
    with pytest.raises(CircuitOpenError):
        registry.bind(str, "api")()
    assert registry.state("api").circuit_breaker is not None


def test_a_reload_applies_to_requests(client: Client, service: Service) -> None:
    registry = Registry({"api": Policy(retry={"retries": 0})})
    client.use("api", registry=registry)
    for retries, sent in ((0, 1), (2, 3)):
        service.seen.clear()
        service.answers = [503] * 3
        with registry.override(api={"retry": {"retries": retries, "min_delay": 0}}):
            client.request("GET", service.url)
        assert len(service.seen) == sent
        service.answers = []


def test_policies_that_are_switched_off_leave_requests_alone(client: Client, service: Service) -> None:
    client.use("api", registry=Registry({"api": Policy(retry=NOW)}, enabled=False))
    service.answers = [503]
    assert client.request("GET", service.url).status == 503
    assert len(service.seen) == 1


def test_a_registry_knows_where_it_was_put_under_a_policy(client: Client) -> None:
    registry = Registry({"api": Policy()})
    under = client.make("api", registry=registry)
    [bound] = registry.bindings()
    line = inspect.currentframe().f_lineno - 2  # type: ignore[union-attr]
    assert bound.name == f"{client.make.__module__}:{client.make.__name__}"
    assert (Path(bound.place.name).name, bound.place.line) == (Path(__file__).name, line)
    assert under.bound.policy == Policy()


# Invalid arguments


@pytest.mark.parametrize(
    ("arguments", "error", "cure"),
    [
        ({"cache": True}, ConfigError, "add cache=False here, and put a cache that knows them, such as hishel"),
        ({"arg_fallback": "api_key"}, ConfigError, "'api_key'"),
        ({"fallback": {"default": None}}, ConfigError, "use fallback.function, which returns one"),
        ({"retry_methods": "POST"}, ConfigError, 'expects a collection of HTTP methods, such as {"GET", "POST"}'),
        ({"retry_methods": [3]}, ConfigError, "expects a collection of HTTP methods"),
        ({"idempotency_key": 1}, ConfigError, "expects True, False or the name of a header"),
        ({"idempotency_key": "no header"}, ConfigError, "expects True, False or the name of a header"),
        ({"retrys": 3}, UnknownOptionError, "did you mean 'retry'"),
        ({"retries": -1}, ConfigError, "retries"),
        ({"policy": 3}, ConfigError, "policy= must be a profile's name or a Policy"),
        ({"policy": "aip", "registry": Registry({"api": Policy()})}, PolicyNotFoundError, "did you mean 'api'"),
        ({"policy": "api", "registry": Registry({"api": Policy(cache={})})}, ConfigError, "add cache=False here"),
    ],
)
def test_what_does_not_fit_is_an_error_at_construction(
    client: Client, arguments: dict[str, Any], error: type[Exception], cure: str
) -> None:
    with pytest.raises(error) as caught:
        client.use(**arguments)
    assert cure in str(caught.value)


def test_the_cure_for_a_cache_in_the_profile_works(client: Client, service: Service) -> None:
    client.use("api", registry=Registry({"api": Policy(cache={})}), cache=False)
    assert client.request("GET", service.url).status == 200


def test_a_bound_function_around_a_client_does_not_repeat_what_the_client_has_given_up_on(
    client: Client, service: Service
) -> None:
    service.answers = ["drop"] * 100
    client.use(**NOW)

    @opero(**NOW)
    def get() -> None:
        client.request("GET", service.url)

    with pytest.raises(client.error) as raised:
        get()
    assert len(service.seen) == 4
    assert not isinstance(raised.value, OperoError)
