"""What becomes of whole modules: their decorators, imports, comments and layout."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from opero.migrate.migration import Migration, plan


def migrated(directory: Path, source: str, name: str = "client.py") -> tuple[str, Migration]:
    """The text of a module after the migration, and the plan."""
    path = directory / name
    path.write_bytes(dedent(source).encode())
    migration = plan([path], directory / "policies")
    migration.write()
    return path.read_bytes().decode(), migration


def reasons(migration: Migration) -> list[str]:
    return [each.found.reason for each in migration.left]


TENACITY = '''\
"""Reads the service of users."""

from __future__ import annotations

import logging

import requests
from requests.exceptions import ConnectionError as Refused, Timeout
from tenacity import (
    retry,
    retry_if_exception_type,
    stop_after_attempt,  # for all
    wait_exponential,
)

from app.errors import Busy

logger = logging.getLogger(__name__)


# The service restarts at night.
@retry(
    stop=stop_after_attempt(5),  # about fifteen seconds
    wait=wait_exponential(multiplier=1, max=30),
    retry=retry_if_exception_type((Refused, Timeout)),
    reraise=True,
)
def fetch(user: str) -> dict[str, str]:
    # not cached
    return requests.get(f"https://users/{user}").json()  # a dictionary


class Client:
    timeout = 5

    @retry(
        wait=wait_exponential(max=30), retry=retry_if_exception_type((Refused, Timeout)),
        reraise=True, stop=stop_after_attempt(5))
    def fetch_all(self) -> None: ...  # noqa: E704

    @classmethod
    @retry(retry=retry_if_exception_type(Busy), stop=stop_after_attempt(2), reraise=True)  # once more
    async def make(cls) -> "Client":
        return cls()
'''
TENACITY_AFTER = '''\
"""Reads the service of users."""

from __future__ import annotations

import logging

import requests
from opero import opero

logger = logging.getLogger(__name__)


# The service restarts at night.
# about fifteen seconds
@opero(policy="client")
def fetch(user: str) -> dict[str, str]:
    # not cached
    return requests.get(f"https://users/{user}").json()  # a dictionary


class Client:
    timeout = 5

    @opero(policy="client")
    def fetch_all(self) -> None: ...  # noqa: E704

    @classmethod
    @opero(policy="client_make")  # once more
    async def make(cls) -> "Client":
        return cls()
'''
STAMINA = """\
import datetime as dt

import httpx
import stamina

from .errors import Busy


@stamina.retry(on=httpx.HTTPError, attempts=3, wait_jitter=0)
async def fetch(client: httpx.AsyncClient) -> httpx.Response:
    return await client.get("/")


@stamina.retry(on=(Busy, OSError), attempts=3, timeout=dt.timedelta(minutes=1), wait_jitter=0)
def send() -> None: ...
"""
STAMINA_AFTER = """\
import httpx
from opero import opero

from .errors import Busy


@opero(policy="client")
async def fetch(client: httpx.AsyncClient) -> httpx.Response:
    return await client.get("/")


@opero(policy="client_send", retry_on=(Busy, OSError))
def send() -> None: ...
"""
BACKOFF = """\
import backoff
import requests


def fatal(error: requests.HTTPError) -> bool:
    return error.response is not None and error.response.status_code < 500


@backoff.on_exception(
    backoff.expo,
    requests.exceptions.RequestException,
    max_tries=8,
    jitter=None,
)
def get_url(url: str) -> requests.Response:
    return requests.get(url)


@backoff.on_exception(backoff.expo, requests.HTTPError, max_time=60, giveup=fatal)
def get_checked(url: str) -> None:
    requests.get(url).raise_for_status()


@backoff.on_predicate(backoff.constant, lambda job: job["state"] != "done", jitter=None, interval=5, max_tries=10)
def poll(number: int) -> dict[str, str]:
    return requests.get(f"/jobs/{number}").json()
"""
BACKOFF_AFTER = """\
import requests
from opero import opero


def fatal(error: requests.HTTPError) -> bool:
    return error.response is not None and error.response.status_code < 500


@opero(policy="client")
def get_url(url: str) -> requests.Response:
    return requests.get(url)


@opero(policy="client_get_checked", retry_on=lambda error: isinstance(error, requests.HTTPError) and not fatal(error))
def get_checked(url: str) -> None:
    requests.get(url).raise_for_status()


@opero(policy="client_poll", retry_if_result=lambda job: job["state"] != "done")
def poll(number: int) -> dict[str, str]:
    return requests.get(f"/jobs/{number}").json()
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("source", "expected"),
    [(TENACITY, TENACITY_AFTER), (STAMINA, STAMINA_AFTER), (BACKOFF, BACKOFF_AFTER)],
    ids=["tenacity", "stamina", "backoff"],
)
def test_a_module_keeps_its_comments_and_layout(source: str, expected: str, newline: str, tmp_path: Path) -> None:
    text, migration = migrated(tmp_path, source.replace("\n", newline))
    assert text == expected.replace("\n", newline)
    assert migration.left == []
    again = plan([tmp_path], tmp_path / "policies")
    assert (again.replaced, again.left, again.texts) == ([], [], {})


@pytest.mark.parametrize(
    ("imported", "decorator"),
    [
        ("import tenacity", "@tenacity.retry(stop=tenacity.stop_after_attempt(3), reraise=True)"),
        ("import tenacity as t", "@t.retry(stop=t.stop.stop_after_attempt(3), reraise=True)"),
        ("from tenacity import retry as again, stop_after_attempt as tries", "@again(stop=tries(3), reraise=True)"),
        (
            "import tenacity.stop\nimport tenacity",
            "@tenacity.retry(stop=tenacity.stop.stop_after_attempt(3), reraise=True)",
        ),
        (
            "from tenacity import retry\nfrom tenacity.stop import stop_after_attempt",
            "@retry(stop=stop_after_attempt(3), reraise=True)",
        ),
        ("import stamina", "@stamina.retry(on=OSError, attempts=3)"),
        ("from stamina import retry", "@retry(on=OSError, attempts=3)"),
        ("from backoff import expo, on_exception", "@on_exception(expo, OSError, max_tries=3)"),
        ("import backoff as b", "@b.on_exception(b.expo, OSError, max_tries=3)"),
    ],
)
def test_decorators_are_found_however_they_are_imported(imported: str, decorator: str, tmp_path: Path) -> None:
    text, _ = migrated(tmp_path, f"{imported}\n\n\n{decorator}\ndef fetch(): ...\n")
    assert text == 'from opero import opero\n\n\n@opero(policy="client")\ndef fetch(): ...\n'


HEAD = """\
import asyncio
import backoff
import stamina
import tenacity
from app.waits import ERRORS, own_wait
from tenacity import RetryError, TryAgain, retry, stop_after_attempt, wait_exponential, wait_fixed

TRIES = 3


def is_busy(error):
    return 1.5


"""


@pytest.mark.parametrize(
    ("decorator", "reason"),
    [
        ("@retry", "it never stops"),
        ("@retry()", "it never stops"),
        ("@retry(wait=wait_fixed(1))", "it never stops"),
        ("@retry(stop=stop_after_attempt(TRIES))", "TRIES is not a literal"),
        ("@retry(**options)", "the arguments **options are known only at run time"),
        ("@retry(stop=stop_after_attempt(3), wait=own_wait)", "own_wait is not written with objects of tenacity"),
        ("@retry(stop=stop_after_attempt(3), wait=tenacity.wait_exception(len))", "wait_exception has no equal"),
        (
            "@retry(stop=stop_after_attempt(5), wait=wait_exponential(min=4, max=10))",
            "its delays (4, 4, 4, 8 s) do not grow",
        ),
        ("@retry(stop=stop_after_attempt(3), before_sleep=print)", "before_sleep has no equal in a profile; subscribe"),
        ("@retry(stop=stop_after_attempt(3), retry_error_callback=print)", "retry_error_callback has no equal"),
        ("@retry(stop=stop_after_attempt(3), retry=tenacity.retry_if_exception_message('x'))", "has no equal"),
        ("@retry(stop=stop_after_attempt(3) & tenacity.stop_after_delay(3))", "is not written with objects"),
        ("@retry(stop=tenacity.stop_after_delay(3))", "next to no delays"),
        ("@retry(stop=tenacity.stop_after_delay(1), wait=wait_fixed(3))", "shorter than its first delay"),
        ("@retry(stop=stop_after_attempt(1))", "tenacity raises RetryError after its only attempt"),
        (
            "@retry(stop=stop_after_attempt(3), retry=tenacity.retry_if_exception_type(BaseException))",
            "does not retry after",
        ),
        (
            "@retry(stop=stop_after_attempt(3), retry=tenacity.retry_if_exception_type((OSError, ERRORS)))",
            "ERRORS may be a tuple",
        ),
        (
            "@retry(stop=stop_after_attempt(3), retry=tenacity.retry_if_exception_type(asyncio.CancelledError))",
            "does not retry",
        ),
        ("@stamina.retry(on=is_busy)", "is_busy may return a delay"),
        ("@stamina.retry(on=own_wait)", "own_wait may be a function that returns a delay"),
        ("@stamina.retry(on=lambda error: error.delay)", "may return a delay"),
        ("@stamina.retry(on=OSError, attempts=None, timeout=None)", "it never stops"),
        (
            "@backoff.on_exception(backoff.runtime, OSError, value=len, max_tries=3)",
            "a function of which a profile has no",
        ),
        ("@backoff.on_exception(backoff.expo, OSError, max_tries=3, on_backoff=print)", "on_backoff has no equal"),
        ("@backoff.on_exception(backoff.expo, OSError, max_tries=lambda: 3)", "is not a literal"),
        (
            "@backoff.on_exception(backoff.expo, OSError, max_tries=3, jitter=own_wait)",
            "the jitter own_wait has no equal",
        ),
        ("@backoff.on_predicate(backoff.constant, max_time=60)", "max_time ends in the last result"),
        ("@backoff.on_exception(backoff.expo, OSError)", "it never stops"),
        (
            "@stamina.retry(on=OSError)\n@backoff.on_exception(backoff.expo, OSError, max_tries=2)",
            "the function has several retry decorators",
        ),
    ],
)
def test_what_has_no_equal_is_left_alone_and_reported_with_its_line(
    decorator: str, reason: str, tmp_path: Path
) -> None:
    head = HEAD.replace("RetryError, TryAgain, ", "")
    source = f"{head}{decorator}\ndef fetch(): ...\n"
    text, migration = migrated(tmp_path, source)
    assert text == source
    assert not (tmp_path / "policies").exists()
    found = migration.left[0].found
    assert reason in found.reason
    assert (found.line, found.function) == (len(head.splitlines()) + 1, "fetch")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("DECORATOR\ndef fetch(): ...\ntry: fetch()\nexcept RetryError: ...", "the module uses RetryError"),
        ("DECORATOR\ndef fetch():\n    raise TryAgain", "the module uses TryAgain"),
        (
            "DECORATOR\ndef fetch(): ...\nprint(fetch.retry.statistics)",
            "fetch.retry in line 17 is an attribute of tenacity",
        ),
        ("DECORATOR\ndef fetch():\n    yield 1", "it is a generator"),
        ("DECORATOR\ndef fetch(): ...\nopero = 1", "the module has a name opero of its own"),
        ("again = retry(stop=stop_after_attempt(3))\n@again\ndef fetch(): ...", "retry(...) is not a decorator here"),
        ("for attempt in tenacity.Retrying(): ...", "Retrying has no equal in a profile"),
        ("for attempt in stamina.retry_context(on=OSError): ...", "retry_context has no equal in a profile"),
    ],
)
def test_code_that_relies_on_the_library_keeps_it(code: str, reason: str, tmp_path: Path) -> None:
    source = HEAD + code.replace("DECORATOR", "@retry(stop=stop_after_attempt(3))") + "\n"
    text, migration = migrated(tmp_path, source)
    assert text == source
    assert reason in reasons(migration)[0]


def test_imports_that_others_use_are_kept(tmp_path: Path) -> None:
    text, migration = migrated(
        tmp_path,
        """\
        from requests import HTTPError
        from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed

        __all__ = ["stop_after_attempt"]


        @retry(stop=stop_after_attempt(3), retry=retry_if_exception_type(HTTPError), reraise=True)
        def fetch(): ...


        @retry(wait=wait_fixed(1))
        def send(): ...


        try:
            fetch()
        except HTTPError:
            pass
        """,
    )
    assert text.startswith(
        "from opero import opero\nfrom requests import HTTPError\n"
        "from tenacity import retry, stop_after_attempt, wait_fixed\n"
    )
    assert [each.found.function for each in migration.left] == ["send"]


@pytest.mark.parametrize(
    ("imported", "decorator"), [("import opero", "@opero.opero("), ("from opero import opero as o", "@o(")]
)
def test_an_import_of_opero_is_used(imported: str, decorator: str, tmp_path: Path) -> None:
    source = f"{imported}\nimport stamina\n\n@stamina.retry(on=OSError)\ndef fetch(): ...\n"
    text, _ = migrated(tmp_path, source)
    assert text == f'{imported}\n\n{decorator}policy="client")\ndef fetch(): ...\n'


def test_an_import_in_a_block_stays(tmp_path: Path) -> None:
    source = (
        "try:\n    import stamina\nexcept ImportError:\n    raise\n\n@stamina.retry(on=OSError)\ndef fetch(): ...\n"
    )
    text, _ = migrated(tmp_path, f'"""Fetches."""\n{source}')
    assert text.startswith('"""Fetches."""\nfrom opero import opero\ntry:\n    import stamina\n')


def test_a_name_that_may_be_of_two_modules_is_not_a_decorator_of_a_library(tmp_path: Path) -> None:
    imports = "try:\n    from tenacity import retry\nexcept ImportError:\n    from app import retry\n"
    source = f"{imports}\n@retry()\ndef fetch(): ...\n"
    assert migrated(tmp_path, source)[0] == source
