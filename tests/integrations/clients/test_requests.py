"""requests under a policy: files, sessions, and the adapter that sends the requests."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from integrations.clients.conftest import NOW
from integrations.clients.service import Service
from opero import CallTimeoutError, ConfigError, Policy
from opero.integrations.requests import Adapter

BODY = b"x" * 100_000


def session_of(adapter: Adapter) -> requests.Session:
    session = requests.Session()
    session.mount("http://", adapter)
    return session


def test_a_file_is_sent_again_from_where_it_began(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"not this" + BODY)
    with path.open("rb") as file, session_of(Adapter(**NOW)) as session:
        file.seek(8)
        service.answers = [503, "drop", 200]
        assert session.put(service.url, data=file).status_code == 200
    assert service.bodies == [BODY] * 3


def test_a_form_with_a_file_is_sent_again(service: Service) -> None:
    with session_of(Adapter(**NOW)) as session:
        service.answers = [503, 200]
        assert session.put(service.url, files={"file": io.BytesIO(BODY)}).status_code == 200
    first, second = service.bodies
    assert first == second
    assert BODY in first


def test_a_file_is_not_read_by_two_attempts_at_once(service: Service) -> None:
    service.answers = ["hang"]
    with session_of(Adapter(**NOW, attempt_timeout=0.2)) as session, pytest.raises(CallTimeoutError):
        session.put(service.url, data=io.BytesIO(BODY))
    assert len(service.seen) == 1


def test_a_response_may_be_streamed(service: Service) -> None:
    with session_of(Adapter(**NOW)) as session:
        service.answers = [503, lambda handler: handler.answer(200, BODY)]
        with session.get(service.url, stream=True) as response:
            assert b"".join(response.iter_content(1000)) == BODY


def test_a_session_may_be_pickled_with_it(service: Service) -> None:
    with session_of(Adapter(Policy(retry=NOW), retry_methods=["POST"])) as session:
        copy: requests.Session = pickle.loads(pickle.dumps(session))
    with copy:
        service.answers = [503, 200]
        assert copy.post(service.url).status_code == 200


def test_it_closes_the_adapter_that_it_is_given() -> None:
    closed = []

    class Inner(HTTPAdapter):
        def close(self) -> None:
            closed.append(self)
            super().close()

    inner = Inner(pool_maxsize=50)
    adapter = Adapter(adapter=inner)
    session_of(adapter).close()
    assert closed == [inner]
    assert adapter.adapter is inner


@pytest.mark.parametrize(
    ("adapter", "cure"),
    [
        (lambda: HTTPAdapter(max_retries=3), "create it without max_retries"),
        (lambda: HTTPAdapter(max_retries=Retry(total=None, status=2)), "create it without max_retries"),
        (Adapter, "use a single Adapter"),
        (requests.Session, "not a value of type Session"),
    ],
)
def test_an_adapter_that_does_not_fit_is_an_error_at_construction(adapter: Any, cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Adapter(adapter=adapter())
    assert cure in str(caught.value)
