"""Under a client each origin has a circuit breaker, a rate limit and a bulkhead, unless the policy says otherwise."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from integrations.clients.conftest import Client
from integrations.clients.service import running
from opero import CircuitOpenError, Policy, RateLimitExceededError, Registry

BREAKER = {"consecutive_failures": 2, "open_for": 600}


def test_one_dead_host_of_ten_concerns_no_other(client: Client) -> None:
    client.use(retries=0, circuit_breaker=BREAKER)
    with ExitStack() as stack:
        services = [stack.enter_context(running()) for _ in range(10)]
        refused = served = 0
        for _ in range(9):
            for service in services:
                is_dead = service is services[0]
                service.answers = ["drop"] if is_dead else [200]
                try:
                    served += client.request("GET", service.url).status == 200
                except Exception as error:  # each client has its own
                    refused += not is_dead
                    assert is_dead, error
        assert (served, refused, len(services[0].seen)) == (81, 0, 2)
        dead = services[0].url.rstrip("/")
        assert [key for key, _ in client.under.bound.binding.circuit_breaker.circuits()] == [dead]


@pytest.mark.parametrize(
    ("scope", "is_shared"), [("auto", False), ("profile", True), ({"by": "host"}, False), ("function", True)]
)
def test_the_policy_says_whose_the_state_is(client: Client, scope: Any, is_shared: bool) -> None:
    client.use(retries=0, rate_limit={"rate": 0.001, "max_wait": 0, "scope": scope})
    with running() as one, running() as other:
        one.answers, other.answers = [200, 200], [200, 200]
        assert client.request("GET", one.url).status == 200
        with pytest.raises(RateLimitExceededError):
            client.request("GET", one.url)
        if is_shared:
            with pytest.raises(RateLimitExceededError):
                client.request("GET", other.url)
        else:
            assert client.request("GET", other.url).status == 200


def test_clients_of_a_profile_share_the_state_of_an_origin_and_an_operator_finds_it(client: Client) -> None:
    registry = Registry({"api": Policy(retry={"retries": 0}, circuit_breaker=BREAKER)})
    client.use("api", registry=registry)
    first = client.under
    client.use("api", registry=registry)
    assert client.under.bound.binding.circuit_breaker is first.bound.binding.circuit_breaker
    with running() as service:
        service.answers = [200, 200]
        assert client.request("GET", service.url).status == 200
        origin = service.url.rstrip("/")
        registry.state("api").circuit_breaker.of(origin).force_open()  # type: ignore[attr-defined]
        with pytest.raises(CircuitOpenError, match="forced open"):
            client.request("GET", service.url)
        state = registry.stats()["profiles"]["api"]["state"]["circuit_breaker"]
        assert (state["by"], state["keys"], state["standing_out"], state["shown"][0]["key"]) == ("host", 1, 1, origin)
        registry.state("api").circuit_breaker.reset()
        assert client.request("GET", service.url).status == 200
