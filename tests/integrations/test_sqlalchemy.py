"""Transactions of SQLAlchemy under a policy: repeated as a whole, or not at all."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError, OperationalError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from opero import CallTimeoutError, ConfigError, Policy, Registry
from opero.integrations.sqlalchemy import transaction

NOW = {"retries": 3, "min_delay": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "bank.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, amount INTEGER)")
    database.close()
    return path


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 0}, poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture(params=["session", "connection"])
def source(request: pytest.FixtureRequest, engine: Engine) -> Any:
    return sessionmaker(engine) if request.param == "session" else engine


def insert(session: Any, amount: int = 1, **values: int) -> None:
    row = {"id": None, "amount": amount, **values}
    session.execute(text("INSERT INTO entries (id, amount) VALUES (:id, :amount)"), row)


def amounts(path: Path) -> list[int]:
    database = sqlite3.connect(path)
    try:
        return [amount for (amount,) in database.execute("SELECT amount FROM entries ORDER BY id")]
    finally:
        database.close()


def test_it_is_committed_if_the_function_returns(source: Any, path: Path) -> None:
    @transaction(source, **NOW)
    def book(session: Any, amount: int, *, twice: bool = False) -> int:
        insert(session, amount)
        if twice:
            insert(session, amount)
        return amount

    assert book(5, twice=True) == 5
    assert amounts(path) == [5, 5]
    assert book.bound.stats.calls == 1  # type: ignore[attr-defined]


def test_it_is_rolled_back_and_repeated_as_a_whole(source: Any, path: Path) -> None:
    failures = [ConnectionError("elsewhere"), ConnectionError("elsewhere")]
    sessions = []

    @transaction(source, **NOW)
    def book(session: Any) -> None:
        sessions.append(session)
        insert(session, 1)
        if failures:
            raise failures.pop()
        insert(session, 2)

    book()
    assert amounts(path) == [1, 2]
    assert len({id(each) for each in sessions}) == 3


def test_a_locked_database_is_asked_again(source: Any, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    @transaction(source, **NOW)
    def book(session: Any) -> None:
        try:
            insert(session, 7)
        except OperationalError:
            other.execute("COMMIT")
            raise

    book()
    other.close()
    assert amounts(path) == [7]


def test_a_database_that_refuses_to_commit_has_rolled_back(source: Any, path: Path) -> None:
    """A reader keeps SQLite from committing, which answers that it is locked."""
    insert_first(path)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM entries").fetchone()
    attempts = []

    @transaction(source, **NOW)
    def book(session: Any) -> None:
        attempts.append(session)
        if len(attempts) == 2:
            reader.execute("COMMIT")
        insert(session, 7)

    book()
    reader.close()
    assert len(attempts) == 2
    assert amounts(path) == [0, 7]


def insert_first(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO entries (amount) VALUES (0)")
    database.close()


def test_it_is_not_repeated_if_the_connection_is_lost_during_the_commit(engine: Engine, path: Path) -> None:
    attempts = []

    @event.listens_for(engine, "commit")
    def lose(connection: Any) -> None:
        connection.connection.dbapi_connection.commit()  # it has taken effect, but nobody hears of it
        lost = OperationalError("COMMIT", {}, ConnectionError("server closed the connection"))
        lost.connection_invalidated = True
        raise lost

    @transaction(sessionmaker(engine), **NOW)
    def book(session: Any) -> None:
        attempts.append(session)
        insert(session, 3)

    with pytest.raises(OperationalError):
        book()
    assert len(attempts) == 1
    assert amounts(path) == [3]


def test_a_mistake_is_not_repeated(source: Any, path: Path) -> None:
    @transaction(source, **NOW)
    def book(session: Any) -> None:
        insert(session, 1, id=1)
        insert(session, 1, id=1)

    with pytest.raises(IntegrityError):
        book()
    assert book.bound.stats.attempts == 1  # type: ignore[attr-defined]
    assert amounts(path) == []


def test_the_function_must_not_commit(source: Any, path: Path) -> None:
    @transaction(source, **NOW)
    def book(session: Any) -> None:
        insert(session)
        session.commit()

    with pytest.raises(InvalidRequestError, match="must not commit"):
        book()
    assert amounts(path) == []


def test_savepoints_are_the_function_s_own(source: Any, path: Path) -> None:
    @transaction(source, **NOW)
    def book(session: Any) -> None:
        insert(session, 1)
        with session.begin_nested():
            insert(session, 2)

    book()
    assert amounts(path) == [1, 2]


def test_an_attempt_that_goes_on_after_its_timeout_is_rolled_back(source: Any, path: Path) -> None:
    """As sync attempts do outside of the main thread."""
    go_on, ended = threading.Event(), threading.Event()
    attempts: list[Any] = []
    raised: list[BaseException] = []

    @transaction(source, retries=1, min_delay=0, attempt_timeout=0.2)
    def book(session: Any) -> None:
        attempts.append(session)
        if len(attempts) == 1:
            go_on.wait(60)
            try:
                insert(session, 1)
            finally:
                ended.set()
        else:
            insert(session, 2)

    def call() -> None:
        try:
            book()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert amounts(path) == [2]
    go_on.set()
    assert ended.wait(60)
    for _ in range(100):
        assert amounts(path) == [2]
    assert raised == []


def test_it_is_not_repeated_after_a_timeout_of_the_commit(engine: Engine, path: Path) -> None:
    released = threading.Event()

    @event.listens_for(engine, "commit")
    def wait(connection: Any) -> None:
        released.wait(60)

    @transaction(engine, retries=3, min_delay=0, attempt_timeout=0.2)
    def book(session: Any) -> None:
        insert(session, 1)

    raised: list[BaseException] = []

    def call() -> None:
        try:
            book()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    released.set()
    assert isinstance(raised[0], CallTimeoutError)
    assert book.bound.stats.attempts == 1  # type: ignore[attr-defined]


def test_a_profile_holds_and_reloads(source: Any, path: Path) -> None:
    registry = Registry({"db": Policy(retry={"retries": 0})})

    @transaction(source, "db", registry=registry)
    def book(session: Any) -> None:
        insert(session)
        raise ConnectionError

    for retries in (0, 2):
        with registry.override(db={"retry": {"retries": retries, "min_delay": 0}}), pytest.raises(Exception):  # noqa: PT011
            book()
    assert book.bound.stats.attempts == 4  # type: ignore[attr-defined]
    assert [each.name for each in registry.bindings()] == [f"{__name__}:{book.__qualname__}"]


# Async


def test_async_functions_run_in_transactions(path: Path) -> None:
    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=NullPool)
        for source in (async_sessionmaker(engine), engine):
            failures = [ConnectionError()]

            @transaction(source, **NOW)
            async def book(session: Any, amount: int, failures: list[Exception] = failures) -> int:
                await session.execute(text("INSERT INTO entries (amount) VALUES (:amount)"), {"amount": amount})
                if failures:
                    raise failures.pop()
                return amount

            assert await book(4) == 4

            @transaction(source, **NOW)
            async def commit(session: Any) -> None:
                await session.execute(text("INSERT INTO entries (amount) VALUES (1)"))
                await session.commit()

            with pytest.raises(InvalidRequestError, match="must not commit"):
                await commit()
        await engine.dispose()

    asyncio.run(main())
    assert amounts(path) == [4, 4]


# Invalid arguments


def generator(session: Any) -> Iterator[int]:
    yield 1


class Repository:
    def book(self, session: Any) -> None: ...


@pytest.mark.parametrize(
    ("make", "cure"),
    [
        (lambda: transaction("sqlite://"), "expects a sessionmaker or an Engine"),
        (lambda: transaction(Repository), "expects a sessionmaker or an Engine"),
        (lambda: transaction(sessionmaker())(generator), "is a generator function"),
        (lambda: transaction(sessionmaker())(Repository.book), "is a method"),
        (lambda: transaction(sessionmaker(), retrys=1), "did you mean 'retry'"),  # type: ignore[call-arg]
    ],
)
def test_what_does_not_fit_is_an_error_at_decoration(make: Callable[[], Any], cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert cure in str(caught.value)
