"""Requests that are hedged: which may be, and what becomes of the one that is no longer needed."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest

from integrations.clients.conftest import AiohttpClient, Client
from integrations.clients.service import Service
from opero import ConfigError, Policy
from opero.integrations.aiohttp import Middleware

HEDGED = Policy(hedge={"after": "50ms", "budget": "100%"})


@pytest.fixture
def hedged(client: Client, service: Service) -> Client:
    if isinstance(client, AiohttpClient):
        pytest.skip("aiohttp refuses hedges")
    client.use(HEDGED)
    assert client.request("GET", service.url).status == 200
    service.answers = ["hang", 200]
    return client


def test_an_idempotent_request_that_hangs_is_answered_by_another(hedged: Client, service: Service) -> None:
    assert hedged.request("PUT", service.url, content=b"body") == (200, b"200")
    assert service.bodies[1:] == [b"body"] * 2
    assert (hedged.stats.calls, hedged.stats.hedges, hedged.stats.hedge_wins) == (2, 1, 1)
    assert hedged.request("GET", service.url).status == 200


def test_a_post_is_hedged_only_with_an_idempotency_key(hedged: Client, service: Service) -> None:
    headers = {"Idempotency-Key": "k"}
    assert hedged.request("POST", service.url, content=b"body", headers=headers).status == 200
    assert hedged.stats.hedges == 1
    slow = [lambda handler: (service.released.wait(0.3), handler.answer(200, b"slow"))]
    service.answers = [*slow]
    assert hedged.request("POST", service.url, content=b"body").body == b"slow"
    assert hedged.stats.hedges == 1


@pytest.mark.parametrize("body", [lambda: BytesIO(b"body"), lambda: iter([b"bo", b"dy"])])
def test_a_body_that_is_not_in_memory_is_sent_once(hedged: Client, service: Service, body: Any) -> None:
    service.answers = [lambda handler: (service.released.wait(0.3), handler.answer(200, b"slow"))]
    assert hedged.request("PUT", service.url, content=body()).body == b"slow"
    assert hedged.stats.hedges == 0


def test_a_failed_response_is_answered_by_the_other(hedged: Client, service: Service) -> None:
    service.answers = [
        lambda handler: (service.released.wait(0.2), handler.answer(503)),
        lambda handler: (service.released.wait(0.4), handler.answer(200, b"second")),
    ]
    assert hedged.request("GET", service.url) == (200, b"second")


def test_requests_of_aiohttp_cannot_be_hedged() -> None:
    with pytest.raises(ConfigError, match="cannot be repeated while one runs; add hedge=False here"):
        Middleware(HEDGED)
    Middleware(HEDGED, hedge=False)
