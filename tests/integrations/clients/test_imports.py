"""`imports: {httpx: api}` puts a profile under every client of a library, in a program that knows nothing of opero."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

import opero
from integrations.clients.service import Handler, Service

POLICIES = """
    policies:
      api: {retry: {retries: 3, min_delay: 1ms}}
      calm: {retry: {retries: 3, min_delay: 1ms}, timeout: {attempt: 20s}}
      once: {timeout: {total: 60s}}
    imports: {IMPORTS}
"""


@pytest.fixture
def run(tmp_path: Path, service: Service) -> Any:
    """Run a program, whose `url` is that of the service: what it prints, and what `opero run` prints at its end."""

    def run(program: str, imports: str = "{aiohttp: api, httpx: api, httpx2: api, requests: api}") -> tuple[Any, Any]:
        (tmp_path / "policies").mkdir(exist_ok=True)
        (tmp_path / "policies" / "base.yaml").write_text(dedent(POLICIES).replace("{IMPORTS}", imports))
        (tmp_path / "app.py").write_text(f"url = {service.url!r}\n" + dedent(program))
        variables = {name: value for name, value in os.environ.items() if not name.startswith("OPERO_")}
        variables["PYTHONPATH"] = str(Path(opero.__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "-m", "opero", "run", "app.py"],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        summary = [line for line in done.stderr.splitlines() if not line.startswith("opero: not imported")]
        return done.stdout.split(), summary

    return run


def in_async(body: str) -> str:
    return f"import asyncio\nasync def main():\n{indent(dedent(body), '    ')}\nasyncio.run(main())"


CLIENTS = {
    "requests": "import requests\nprint(requests.get(url).status_code)",
    "httpx": "import httpx\nprint(httpx.get(url).status_code)",
    "httpx2": "import httpx2\nwith httpx2.Client() as client: print(client.get(url).status_code)",
    "httpx-async": in_async("import httpx\nasync with httpx.AsyncClient() as c: print((await c.get(url)).status_code)"),
    "aiohttp": in_async(
        "import aiohttp\nasync with aiohttp.ClientSession() as c, c.get(url) as response: print(response.status)"
    ),
}


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("profile", ["api", "calm"])
def test_every_client_of_a_library_retries(run: Any, service: Service, name: str, profile: str) -> None:
    """With an attempt timeout, sync requests may be sent from another thread."""
    service.answers = [503, "drop", 503]
    library = name.partition("-")[0]
    printed, summary = run(CLIENTS[name], f"{{{library}: {profile}}}")
    assert printed == ["200"]
    assert len(service.seen) == 4
    assert summary == [f"opero: {library}:clients: calls 1, failures 0, retries 3"]


@pytest.mark.parametrize(
    "program",
    [
        "import requests\nprint(requests.post(url, data='x').status_code)",
        "import httpx\nprint(httpx.post(url, content='x').status_code)",
        in_async(
            "import aiohttp\nasync with aiohttp.ClientSession() as c, c.post(url) as response: print(response.status)"
        ),
    ],
)
def test_a_request_that_is_not_idempotent_is_sent_once(run: Any, service: Service, program: str) -> None:
    service.answers = [503]
    assert run(program)[0] == ["503"]
    assert len(service.seen) == 1


OWN = """
    import httpx, requests
    from opero.integrations.httpx import Transport
    from opero.integrations.requests import Adapter

    class Around(httpx.BaseTransport):
        def __init__(self):
            self.inner = httpx.HTTPTransport()
        def handle_request(self, request):
            return self.inner.handle_request(request)

    for inner in (None, Around()):
        with httpx.Client(transport=Transport(retries=1, min_delay=0, transport=inner)) as client:
            print(client.get(url).status_code)
    session = requests.Session()
    session.mount("http://", Adapter(retries=1, min_delay=0))
    print(session.get(url).status_code)
"""
OWN_ASYNC = in_async("""
    import aiohttp, httpx
    from opero.integrations.aiohttp import Middleware
    from opero.integrations.httpx import AsyncTransport

    async with httpx.AsyncClient(transport=AsyncTransport(retries=1, min_delay=0)) as client:
        print((await client.get(url)).status_code)
    middlewares = [Middleware(retries=1, min_delay=0)]
    async with aiohttp.ClientSession(middlewares=middlewares) as c, c.get(url) as response:
        print(response.status)
    async with aiohttp.ClientSession() as c, c.get(url, middlewares=middlewares) as response:
        print(response.status)
""")


@pytest.mark.parametrize("program", [OWN, OWN_ASYNC])
def test_a_client_that_the_program_has_put_under_a_policy_is_left_alone(
    run: Any, service: Service, program: str
) -> None:
    service.answers = [503] * 100
    printed, summary = run(program)
    assert printed == ["503"] * 3
    assert len(service.seen) == 6
    assert not [line for line in summary if ":clients" in line]


def test_requests_beside_those_of_such_a_client_are_under_the_profile(run: Any, service: Service) -> None:
    service.answers = [200, 503, 200, 200, 503, 200]
    printed, _ = run(
        """
        import asyncio, httpx
        from opero.integrations.httpx import AsyncTransport, Transport

        with httpx.Client(transport=Transport(retries=0)) as client:
            print(client.get(url).status_code, httpx.get(url).status_code)

        async def main():
            async with httpx.AsyncClient(transport=AsyncTransport(retries=0)) as own, httpx.AsyncClient() as client:
                print((await own.get(url)).status_code, (await client.get(url)).status_code)
        asyncio.run(main())
        """
    )
    assert printed == ["200"] * 4


def test_middlewares_of_a_session_and_of_a_request_stay(run: Any, service: Service) -> None:
    service.answers = [503, 200, 503]
    printed, _ = run(
        in_async("""
            import aiohttp
            async def say(request, handler):
                print("asked")
                return await handler(request)
            async with aiohttp.ClientSession(middlewares=[say]) as client:
                async with client.get(url) as response: print(response.status)
                async with client.get(url, middlewares=[say, say]) as response: print(response.status)
        """)
    )
    assert printed == ["asked", "200", "asked", "asked", "200"]


@pytest.mark.parametrize(
    ("program", "sent"),
    [
        # Its retries end in an exception that the program may rely on, so the policy adds none.
        (
            """
            import requests
            from urllib3 import Retry
            session = requests.Session()
            session.mount("http://", requests.adapters.HTTPAdapter(max_retries=Retry(2, status_forcelist=[503])))
            try:
                session.get(url)
            except requests.exceptions.RetryError:
                print("own")
            """,
            3,
        ),
        # Those of httpx are for connections alone, so a response is retried as by the policy.
        (
            """
            import httpx
            with httpx.Client(transport=httpx.HTTPTransport(retries=2)) as client:
                print(client.get(url).status_code)
            """,
            4,
        ),
    ],
)
def test_retries_of_a_client_are_not_multiplied(run: Any, service: Service, program: str, sent: int) -> None:
    service.answers = [503] * 100
    printed, _ = run(program)
    assert printed in (["own"], ["503"])
    assert len(service.seen) == sent


def answer(handler: Handler) -> None:
    handler.answer(200, b'{"ok": 1}', Content_Type="application/json")


def unavailable(handler: Handler) -> None:
    handler.answer(503)


MODELS = """
    import {library} as library, httpx2
    arguments = dict(api_key="x", base_url=url)
    post = dict(cast_to=object, body={{}})
    client = library.Client(**arguments)
    print(client.post("/a", **post)["ok"], client.max_retries)
    client = client.with_options(max_retries=9, timeout=5)
    print(client.post("/b", **post)["ok"], client.max_retries)
    client = library.Client(**arguments, http_client=library.DefaultHttpxClient(transport=httpx2.HTTPTransport()))
    print(client.post("/c", **post)["ok"], client.max_retries)

    import asyncio
    async def main():
        async with library.AsyncClient(**arguments) as client:
            print((await client.post("/d", **post))["ok"], client.max_retries)
    asyncio.run(main())
"""


@pytest.mark.parametrize("library", ["openai", "anthropic"])
@pytest.mark.parametrize("also", ["", "httpx2: api, httpx: api, "])
def test_clients_of_model_apis_retry_by_the_policy_alone(run: Any, service: Service, library: str, also: str) -> None:
    service.answers = [unavailable, unavailable, unavailable, answer] * 4
    printed, summary = run(MODELS.format(library=library), f"{{{also}{library}: api}}")
    assert printed == ["1", "0"] * 4
    assert [each.path for each in service.seen] == [path for path in ("/a", "/b", "/c", "/d") for _ in range(4)]
    assert summary == [f"opero: {library}:clients: calls 4, failures 0, retries 12"]


def test_clients_of_model_apis_keep_their_retries_under_a_policy_that_has_none(run: Any, service: Service) -> None:
    service.answers = [unavailable, answer]
    printed, _ = run(
        """
        import openai
        client = openai.OpenAI(api_key="x", base_url=url)
        print(client.max_retries, client.post("/a", cast_to=object, body={})["ok"])
        """,
        "{openai: once}",
    )
    assert printed == ["2", "1"]


def test_a_client_of_a_model_api_that_the_program_has_put_under_a_policy_is_left_alone(
    run: Any, service: Service
) -> None:
    service.answers = [unavailable] * 100
    run(
        """
        import openai
        from opero import Policy
        from opero.integrations.models import client
        made = client(openai.OpenAI, Policy(retry={"retries": 1, "min_delay": 0}), api_key="x", base_url=url)
        try:
            made.post("/a", cast_to=object, body={})
        except openai.InternalServerError:
            pass
        """,
        "{openai: api, httpx2: api}",
    )
    assert len(service.seen) == 2


def test_what_a_client_raises_is_its_own(run: Any, service: Service) -> None:
    service.answers = ["drop"] * 100
    printed, _ = run(
        """
        import pickle, httpx, requests
        for get, kind in ((requests.get, requests.ConnectionError), (httpx.get, httpx.RemoteProtocolError)):
            try:
                get(url)
            except kind as error:
                print(type(error).__module__.partition(".")[0])
        """
    )
    assert printed == ["requests", "httpx"]
    assert len(service.seen) == 8


def test_a_response_pickles_and_signatures_stay(run: Any) -> None:
    printed, _ = run(
        """
        import inspect, pickle, requests
        print(pickle.loads(pickle.dumps(requests.get(url))).status_code)
        print("timeout" in inspect.signature(requests.adapters.HTTPAdapter.send).parameters)
        pickle.loads(pickle.dumps(requests.Session()))
        """
    )
    assert printed == ["200", "True"]
