"""Redis as it is deployed: a cluster, behind sentinels, with TLS, for users with few rights; each from YAML alone."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import redis
import yaml

from opero import BulkheadFullError, CircuitOpenError, ConfigError, Policy, RateLimitExceededError, Registry
from opero.cache.open_shared import forget_breakers
from opero.cache.redis import RedisBackend
from opero.events import CacheFailed, CacheRestored
from redis_server import RedisServer, free_port

PASSWORD = "s3cret/+"
QUOTED = "s3cret%2F%2B"
SLOTS = 16384
RIGHTS = "+get +mget +set +mset +del +unlink +pexpire +scan +evalsha +script|load +cluster|slots +command"
"""What opero needs of redis, for keys that begin with the namespace. docs/guide.md has the same list."""


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    forget_breakers()


def wait_until(holds: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture(scope="module")
def start(redis_program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RedisServer]]:
    """Starts a redis-server with some options."""
    with ExitStack() as running:

        def begin(*options: str) -> RedisServer:
            server = RedisServer(redis_program, str(tmp_path_factory.mktemp("redis")), *options)
            server.start()
            running.callback(server.kill)
            return server

        yield begin


def allow(client: Any, name: str = "app", keys: str = "~opero* ~other*", rights: str = "") -> None:
    rights = rights or f"{RIGHTS} {LIMIT_RIGHTS}"
    client.execute_command("ACL", "SETUSER", name, "reset", "on", f">{PASSWORD}", *keys.split(), *rights.split())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the certificate of an authority, and certificates with keys of a server and a client."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make certificates with")
    place = tmp_path_factory.mktemp("certificates")

    def run(*command: str) -> None:
        subprocess.run(["openssl", *command], cwd=place, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    uses = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # Python 3.13 insists on them
    run(*new, "-x509", "-days", "2", "-subj", "/CN=authority", *uses, "-keyout", "ca.key", "-out", "ca.pem")
    (place / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    for name in ("server", "client"):
        run(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        run("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return place


def tls_options(certificates: Path) -> tuple[str, ...]:
    names = {"tls-cert-file": "server.pem", "tls-key-file": "server.key", "tls-ca-cert-file": "ca.pem"}
    return tuple(text for name, file in names.items() for text in (f"--{name}", str(certificates / file)))


def start_cluster(start: Callable[..., RedisServer], *options: str) -> list[RedisServer]:
    nodes: list[RedisServer] = []
    buses = [free_port() for _ in range(3)]
    bounds = [number * SLOTS // 3 for number in range(4)]
    for number, bus in enumerate(buses):
        own = ("--cluster-enabled", "yes", "--cluster-node-timeout", "3000", "--cluster-port", str(bus))
        node = start(
            "--save", "", *own, "--cluster-require-full-coverage", "no", "--tls-port", str(free_port()), *options
        )
        nodes.append(node)
        client = redis.Redis(port=node.port)
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].tls_port, buses[0])
        allow(client)
        client.close()
    for node in nodes:
        client = redis.Redis(port=node.port)
        wait_until(lambda of=client: of.cluster("info")["cluster_state"] == "ok" and len(of.cluster("nodes")) == 3)
        client.close()
    return nodes


@pytest.fixture(scope="module")
def cluster(start: Callable[..., RedisServer], certificates: Path) -> list[RedisServer]:
    """Three nodes, with TLS as well; the last test that uses them kills one."""
    return start_cluster(start, *tls_options(certificates), "--tls-auth-clients", "no", "--tls-cluster", "yes")


@pytest.fixture(scope="module")
def watched(start: Callable[..., RedisServer], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server, its replica, and a sentinel; the last test that uses them kills the server."""
    return start_watched(start, tmp_path_factory.mktemp("sentinel"))


def start_watched(start: Callable[..., RedisServer], place: Path) -> tuple[RedisServer, RedisServer, RedisServer]:
    login = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
    first = start("--save", "", *login)
    second = start("--save", "", *login, "--replicaof", f"127.0.0.1 {first.port}")
    client = redis.Redis(port=second.port, password=PASSWORD)
    wait_until(lambda: client.info("replication")["master_link_status"] == "up")
    client.close()
    settings = place / "sentinel.conf"
    settings.write_text(
        f"sentinel monitor main 127.0.0.1 {first.port} 1\nsentinel auth-pass main {PASSWORD}\n"
        "sentinel down-after-milliseconds main 400\nsentinel failover-timeout main 2000\n"
        "requirepass ofsentinel\n"
    )
    sentinel = start(str(settings), "--sentinel")
    client = redis.Redis(port=sentinel.port, password="ofsentinel")
    wait_until(lambda: len(client.sentinel_slaves("main")) == 1)
    client.close()
    return first, second, sentinel


def start_watched_with_tls(start: Callable[..., RedisServer], certificates: Path, place: Path) -> RedisServer:
    """Start a server, and return a sentinel that knows it by its port with TLS, and that also has such a port."""
    tls = (*tls_options(certificates), "--tls-auth-clients", "no", "--tls-replication", "yes")
    first = start("--save", "", "--requirepass", PASSWORD, "--tls-port", str(free_port()), *tls)
    settings = place / "sentinel.conf"
    settings.write_text(f"sentinel monitor main 127.0.0.1 {first.tls_port} 1\nsentinel auth-pass main {PASSWORD}\n")
    sentinel = start(str(settings), "--sentinel", "--tls-port", str(free_port()), *tls)
    client = redis.Redis(port=sentinel.port)
    wait_until(lambda: "disconnected" not in client.sentinel_master("main")["flags"])
    client.close()
    return sentinel


DEPLOYMENTS = (
    *("server", "user", "tls", "unix", "sentinel", "sentinel tls"),
    *("cluster", "cluster of a user", "cluster tls"),
)


@pytest.fixture(params=DEPLOYMENTS)
def written(request: pytest.FixtureRequest) -> str:
    """What an operator writes for a deployment."""
    if request.param == "cluster tls":
        node, certificates = request.getfixturevalue("cluster")[0], request.getfixturevalue("certificates")
        return f"url: 'rediss+cluster://localhost:{node.tls_port}?ssl_ca_certs={certificates}/ca.pem'"
    if request.param.startswith("cluster"):
        nodes = ",".join(f"127.0.0.1:{each.port}" for each in request.getfixturevalue("cluster"))
        return f"url: 'redis+cluster://{f'app:{QUOTED}@' if 'user' in request.param else ''}{nodes}'"
    if request.param == "sentinel":
        _, _, sentinel = request.getfixturevalue("watched")
        # Of several sentinels, the first that answers is used.
        hosts = f"127.0.0.1:1,127.0.0.1:{sentinel.port}"
        return f"""url: 'redis+sentinel://:{QUOTED}@{hosts}/main/0'
      arguments: {{sentinel_password: ofsentinel}}"""
    start = request.getfixturevalue("start")
    if request.param == "sentinel tls":
        certificates = request.getfixturevalue("certificates")
        place = request.getfixturevalue("tmp_path_factory").mktemp("sentinel")
        sentinel = start_watched_with_tls(start, certificates, place)
        return f"""url: 'rediss+sentinel://:{QUOTED}@localhost:{sentinel.tls_port}/main/0'
      arguments: {{ssl_ca_certs: {certificates}/ca.pem}}"""
    if request.param == "tls":
        certificates = request.getfixturevalue("certificates")
        port = free_port()
        start("--save", "", "--tls-port", str(port), *tls_options(certificates))  # which asks clients for certificates
        return f"""url: 'rediss://127.0.0.1:{port}/0'
      arguments:
        ssl_ca_certs: {certificates}/ca.pem
        ssl_certfile: {certificates}/client.pem
        ssl_keyfile: {certificates}/client.key"""
    if request.param == "unix":
        path = request.getfixturevalue("tmp_path_factory").mktemp("socket") / "redis"
        start("--save", "", "--unixsocket", str(path))
        return f"url: 'unix://{path}?db=3'"
    server = start("--save", "")
    if request.param == "server":
        return f"url: '{server.url}'"
    client = redis.Redis(port=server.port)
    allow(client)
    client.execute_command("ACL", "SETUSER", "default", "off")
    client.close()
    return f"url: 'redis://app:{QUOTED}@127.0.0.1:{server.port}/0'"


def load(folder: Path, written: str, **options: str) -> Registry:
    options.setdefault("store_timeout", "30s")  # the machine may be busy
    more = "".join(f"\n      {name}: {text}" for name, text in options.items())
    (folder / "base.yaml").write_text(
        "policies:\n  api:\n    parallel: thread\n    cache:\n      backend: redis\n      ttl: 1h\n"
        f"      {written}{more}\n"
    )
    return Registry.load(folder, environ={})


def whats(events: list[Any]) -> list[str]:
    return [f"{each.name} {each.what}" for each in events if isinstance(each, CacheFailed | CacheRestored)]


def test_a_deployment_serves_everything_a_cache_does(tmp_path: Path, written: str, heard: list[Any]) -> None:
    registry = load(tmp_path, written, tags="['all', 'n:{x}']")
    bound: Any = registry.bind(as_mapping, "api")
    other: Any = Registry.load(tmp_path, environ={}).bind(as_mapping, "api")
    assert [bound(1), other(1), bound(2)] == [{"x": 1}, {"x": 1}, {"x": 2}]
    assert (bound.stats.attempts, other.stats.attempts) == (2, 0)
    assert bound.map(range(40)) == [{"x": x} for x in range(40)]
    assert other.map(range(40)) == [{"x": x} for x in range(40)]
    assert (bound.stats.attempts, other.stats.attempts) == (40, 0)
    assert bound.cache_info().size == 40
    assert bound.cache_get(7) == {"x": 7}
    bound.cache_delete(7)
    assert other.cache_get(7) is None
    bound.cache_clear(tags="n:8")
    assert (other.cache_get(8), other.cache_get(9)) == (None, {"x": 9})
    assert bound.cache_set({"x": 0}, 8)
    assert other.cache_get(8) == {"x": 0}
    mutex, rival = (each.binding.cache.store.mutex(("k",)) for each in (bound, other))
    assert (mutex.acquire(False), rival.acquire(False)) == (True, False)
    mutex.renew()
    mutex.release()
    assert rival.acquire(False)
    rival.release()
    bound.cache_clear()
    assert (other.cache_get(9), bound.cache_info().size) == (None, 0)
    backend = bound.binding.cache.store.backend
    backend.set_serialized_multi({f"other:{number}": b"1" for number in range(20)})
    assert backend.get_serialized_multi([f"other:{number}" for number in range(20)]) == [b"1"] * 20
    backend.delete_multi([f"other:{number}" for number in range(20)])
    assert backend.count_prefix("other:") == 0
    assert whats(heard) == []
    backend.close()


LIMIT_RIGHTS = (
    "+get +set +time +hget +hmget +hset +hincrby +hdel +zadd +zrem +zcard +zcount +zscore +zrange +zrangebyscore "
    "+pexpire +evalsha +eval +cluster|slots +command"
)
"""What opero needs of redis for shared limits. docs/guide.md has the same list."""


def test_a_deployment_keeps_the_budget_of_a_rate_limit(tmp_path: Path, written: str) -> None:
    found = yaml.safe_load(f"      {written}")
    query = urlencode(found.get("arguments", {}), safe="/")
    url = f"{found['url']}{'&' if '?' in found['url'] else '?'}{query}" if query else found["url"]
    limit = {"rate": 0.01, "burst": 6, "max_wait": 0, "share": "redis", "store_timeout": 30, "url": url}
    limit["share_as"] = f"of {tmp_path}"
    policy = Policy.model_validate({"rate_limit": limit})
    passed = 0
    for _ in range(4):
        bound: Any = policy.apply(double)
        limiter = bound.binding.resolved().executors["rate_limit"].limiter
        for _ in range(3):
            limiter.home._next_report = 0  # so that all that is ever sent is sent
            with suppress(RateLimitExceededError):
                passed += bound(1) // 2
            assert limiter.home.trouble == ""
    assert passed == 6
    with pytest.raises(RateLimitExceededError) as caught:
        bound(1)
    assert caught.value.retry_in == pytest.approx(100, abs=20)


def test_a_deployment_keeps_circuits_and_slots(tmp_path: Path, written: str) -> None:
    found = yaml.safe_load(f"      {written}")
    query = urlencode(found.get("arguments", {}), safe="/")
    url = f"{found['url']}{'&' if '?' in found['url'] else '?'}{query}" if query else found["url"]
    shared = {"share": "redis", "store_timeout": 30, "url": url, "share_as": f"of {tmp_path}"}
    policy = Policy.model_validate(
        {
            "circuit_breaker": {"consecutive_failures": 2, **shared},
            "bulkhead": {"max_concurrent": 1, **shared},
        }
    )

    def fail() -> None:
        with pytest.raises(BulkheadFullError):
            second(1)
        raise ConnectionError

    first, second = policy.apply(fail), policy.apply(double)
    homes = [each.home for each in first.binding.resolved().executors.values()]
    for _ in range(2):
        with pytest.raises(ConnectionError):
            first()
    for home in homes:
        home.update()
        assert home.trouble == ""
    with pytest.raises(CircuitOpenError):
        policy.apply(double)(1)


def test_the_rights_in_the_guide_are_those_of_the_tests() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text("utf-8")
    assert guide.count(RIGHTS) == 1
    assert guide.count(LIMIT_RIGHTS) == 1


def test_a_budget_is_found_again_when_its_slot_moves_to_another_node(cluster: list[RedisServer]) -> None:
    url = f"redis+cluster://127.0.0.1:{cluster[0].port}"
    limit = {"rate": 0.01, "burst": 6, "max_wait": 0, "share": "redis", "store_timeout": 30, "url": url}
    bound: Any = Policy.model_validate({"rate_limit": {**limit, "share_as": "moving"}}).apply(double)
    bound(1)
    home = bound.binding.resolved().executors["rate_limit"].limiter.home
    server = home.store.server
    other = next(each for each in server.client.get_primaries() if each is not node_of(server.client, home.keys[0]))
    server.client.nodes_manager.slots_cache[server.client.keyslot(home.keys[0])] = [other]  # as it was before a move
    for _ in range(5):
        bound(1)
    with pytest.raises(RateLimitExceededError):
        bound(1)
    assert home.trouble == ""


def node_of(client: Any, key: bytes) -> Any:
    return client.nodes_manager.get_node_from_slot(client.keyslot(key))


def test_what_belongs_to_a_key_is_in_one_slot_of_a_cluster(cluster: list[RedisServer], tmp_path: Path) -> None:
    bound: Any = load(tmp_path, f"url: redis+cluster://127.0.0.1:{cluster[0].port}").bind(lambda x: x, "api")
    store = bound.binding.cache.store
    client = store.backend.client
    slots = set()
    for key in range(20):
        name = store._key((key,))
        names = [name, store._gone(name), store._uncached((key,)), f"{name}:lock"]
        assert len({client.keyslot(each) for each in names}) == 1
        slots.add(client.keyslot(name))
    assert len(slots) > 15
    client.close()


def test_a_replica_is_read_and_not_written_to(watched: Any, tmp_path: Path, heard: list[Any]) -> None:
    first, second, _ = watched
    writing, reading = (
        load(tmp_path, f"url: 'redis://:{QUOTED}@127.0.0.1:{each.port}/0'").bind(double, "api")
        for each in (first, second)
    )
    assert writing(1) == 2
    client = redis.Redis(port=second.port, password=PASSWORD)
    wait_until(client.dbsize)
    client.close()
    assert [reading(1), reading(2), reading(2)] == [2, 4, 4]
    assert (reading.stats.cache_hits, whats(heard)) == (1, ["cache_failed read_only"])
    assert "ReadOnlyError" in reading.binding.cache.store.breaker.refusal


def as_mapping(x: int) -> dict[str, int]:
    return {"x": x}


def double(x: int) -> int:
    return 2 * x


def test_a_full_server_is_read_until_it_accepts_writes_again(
    start: Callable[..., RedisServer], tmp_path: Path, heard: list[Any]
) -> None:
    from opero.testing import VirtualClock

    server = start("--save", "")
    clock = VirtualClock()
    # A namespace of its own: clearing by tags reaches the caches of other tests, too.
    registry = load(tmp_path, f"url: {server.url}", tags="['n:{x}']", namespace="full")
    bound: Any = registry["api"].apply(double, clock=clock)
    assert [bound(1), bound(3)] == [2, 6]
    client = redis.Redis(port=server.port)
    client.config_set("maxmemory", 1)
    for _ in range(3):
        assert [bound(1), bound(2)] == [2, 4]
    assert bound.stats.attempts == 5
    assert whats(heard) == ["cache_failed read_only"]
    assert bound.binding.cache.store.breaker.trouble == ""
    bound.cache_clear(tags="n:3")  # a full server deletes
    assert bound.cache_get(3) is None
    client.config_set("maxmemory", 0)
    clock.advance(2)
    assert [bound(2), bound(2), bound.stats.attempts] == [4, 4, 6]
    assert [each for each in whats(heard) if "refused" not in each] == [
        "cache_failed read_only",
        "cache_restored read_only",
    ]
    client.close()


def test_a_key_of_another_type_is_a_miss_of_that_key(redis_url: str, tmp_path: Path, heard: list[Any]) -> None:
    bound: Any = load(tmp_path, f"url: {redis_url}").bind(double, "api")
    store = bound.binding.cache.store
    assert [bound(x) for x in range(3)] == [0, 2, 4]
    client = store.backend.client
    name = next(each for each in client.keys("opero:*") if store.backend.client.get(each))
    client.delete(name)
    client.rpush(name, "not ours")
    assert [bound(x) for x in (0, 1, 2, 0, 1, 2)] == [0, 2, 4, 0, 2, 4]
    assert bound.stats.attempts == 4
    assert whats(heard) == ["cache_failed refused"]
    assert (store.breaker.trouble, store.breaker.refusal) == ("", "")


def test_a_server_that_is_not_there_yet_is_an_outage_until_it_is(
    start: Callable[..., RedisServer], tmp_path: Path, heard: list[Any]
) -> None:
    from opero.testing import VirtualClock

    cluster = f"redis+cluster://:{QUOTED}@127.0.0.1:1,127.0.0.1:2"
    for url in (f"redis://:{QUOTED}@127.0.0.1:1", f"redis+sentinel://:{QUOTED}@127.0.0.1:1/main", cluster):
        heard.clear()
        bound: Any = load(tmp_path, f"url: '{url}'")["api"].apply(double, clock=VirtualClock())
        assert [bound(1), bound(1)] == [2, 2]
        assert whats(heard) == ["cache_failed unavailable"]
        (failed,) = (each for each in heard if isinstance(each, CacheFailed))
        assert "s3cret" not in failed.message + repr(failed.error)


def test_each_way_into_a_server_reports_its_own_outage(
    start: Callable[..., RedisServer], tmp_path: Path, heard: list[Any], caplog: Any
) -> None:
    server = start("--save", "")
    client = redis.Redis(port=server.port)
    allow(client)
    wrong: Any = load(tmp_path, f"url: 'redis://app:wrong@127.0.0.1:{server.port}'").bind(double, "api")
    right: Any = load(tmp_path, f"url: 'redis://app:{QUOTED}@127.0.0.1:{server.port}'").bind(double, "api")
    for _ in range(2):
        assert [wrong(1), right(1)] == [2, 2]
    assert right.stats.cache_hits == 1
    client.execute_command("ACL", "SETUSER", "app", "-get", "-mget")
    assert right(1) == 2
    assert whats(heard) == ["cache_failed unavailable"] * 2
    assert caplog.text.count("functions run without it") == 2
    client.close()


def test_callers_wait_for_one_of_a_limited_number_of_connections(
    redis_url: str, tmp_path: Path, heard: list[Any]
) -> None:
    written = f"url: {redis_url}\n      arguments: {{max_connections: 2}}"
    bound: Any = load(tmp_path, written).bind(double, "api")
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(bound, range(200))) == [2 * x for x in range(200)]
    assert len(bound.binding.cache.store.backend.client.client_list()) <= 4
    assert whats(heard) == []
    bound.binding.cache.store.backend.close()


def test_a_node_of_a_cluster_that_is_used_as_a_server_is_an_outage_that_tells_what_to_write(
    cluster: list[RedisServer], tmp_path: Path, heard: list[Any]
) -> None:
    for tags in ("[]", "all"):
        bound: Any = load(tmp_path, f"url: {cluster[0].url}", tags=tags, namespace=f"other{len(tags)}").bind(
            double, "api"
        )
        assert [bound(x) for x in range(20)] == [2 * x for x in range(20)]
    found = [each.message for each in heard if isinstance(each, CacheFailed)]
    assert found
    assert all("part of a cluster: use a URL that begins with redis+cluster://" in each for each in found)


def test_a_cluster_without_one_of_its_nodes_serves_what_the_others_have(
    cluster: list[RedisServer], tmp_path: Path, heard: list[Any]
) -> None:
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in cluster)
    bound: Any = load(tmp_path, f"url: redis+cluster://{hosts}").bind(lambda x: x, "api")
    assert bound.map(range(30)) == [*range(30)]
    cluster[2].kill()
    assert [bound(x) for x in range(30)] == [*range(30)]
    assert set(whats(heard)) <= {"cache_failed unavailable", "cache_failed refused"}


def test_after_a_failover_the_new_server_is_used(watched: Any, tmp_path: Path, heard: list[Any]) -> None:
    first, second, sentinel = watched
    runs: list[int] = []
    written = f"""url: 'redis+sentinel://:{QUOTED}@127.0.0.1:{sentinel.port}/main'
      arguments: {{sentinel_password: ofsentinel}}"""
    bound: Any = load(tmp_path, written).bind(lambda x: runs.append(x) or x, "api")
    assert [bound(1), bound(1)] == [1, 1]
    client = redis.Redis(port=second.port, password=PASSWORD)
    wait_until(lambda: client.dbsize() >= 1)
    first.kill()
    wait_until(lambda: client.info("replication")["role"] == "master")
    client.close()

    def is_cached() -> bool:
        bound(2)
        before = len(runs)
        bound(2)
        return len(runs) == before

    wait_until(is_cached)
    assert bound(1) == 1
    assert runs.count(1) == 1  # it had been replicated
    assert set(whats(heard)) <= {"cache_failed unavailable", "cache_restored unavailable"}


# What is wrong in the configuration

AT = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (f"url: redis://{AT}\n      arguments: {{socket_timout: 2}}", "'socket_timout'; did you mean 'socket_timeout'"),
        (f"url: redis://{AT}?socket_timout=2", "url: redis-py has no option 'socket_timout'; did you mean"),
        (f"url: redis+cluster://{AT}\n      arguments: {{read_from_replica: 2}}", "did you mean 'read_from_replicas'"),
        (f"url: redis+sentinel://{AT}/x\n      arguments: {{sentinel_pasword: a}}", "did you mean 'sentinel_password'"),
        (
            f"url: redis://{AT}\n      arguments: {{socket_timeout: fast}}",
            "socket_timeout must be a number of at least",
        ),
        (f"url: redis://{AT}?socket_timeout=fast", "invalid redis URL .*Invalid value for 'socket_timeout'"),
        (f"url: redis://{AT}\n      arguments: {{socket_timeout: -1}}", "socket_timeout must be a number of at least"),
        (f"url: redis://{AT}\n      arguments: {{socket_keepalive: maybe}}", "socket_keepalive must be true or false"),
        (f"url: redis://{AT}\n      arguments: {{username: 7}}", "username must be text, not int; quote it"),
        (f"url: redis://{AT}\n      arguments: {{decode_responses: true}}", "decode_responses must be false, as"),
        (f"url: redis://{AT}?decode_responses=True", "url: decode_responses must be false, as entries are bytes"),
        (f"url: redis://{AT}\n      arguments: {{ssl: true}}", "'ssl' needs TLS: use a URL that begins with rediss"),
        (f"url: redis://{AT}\n      arguments: {{ssl_ca_certs: /x}}", "'ssl_ca_certs' needs TLS: use a URL"),
        (f"url: rediss://{AT}\n      arguments: {{ssl_cert_reqs: some}}", "redis-py does not accept them: .*some"),
        (
            f"url: rediss://{AT}\n      arguments: {{ssl_ca_certs: /nowhere.pem}}",
            "ssl_ca_certs '/nowhere.pem' cannot be read: No such file",
        ),
        (f"url: rediss://{AT}?ssl_certfile=/nowhere.pem", "ssl_certfile '/nowhere.pem' cannot be read: No such file"),
        (f"url: rediss+cluster://{AT}?ssl_keyfile=/nowhere.pem", "ssl_keyfile needs an ssl_certfile"),
        (f"url: redis://{AT}/zero", "invalid redis URL .*use redis://"),
        (f"url: redis+sentinel://{AT}", "invalid redis URL .*the name of the service is missing.*: use redis://"),
        (f"url: redis+sentinel://{AT}/main/one", "the database is no number"),
        ("url: redis+cluster://", "invalid redis URL .*a host is missing"),
        (f"url: redis+cluster://{AT}/3", "a redis cluster has no database but 0"),
        (f"url: redis+clutser://{AT}", "invalid redis URL: use redis://"),
        (f"url: 'redis://:{PASSWORD}@{AT}'", "invalid redis URL .in a password, write @ as %40, .*: use redis://host:"),
        (f"url: 'redis://:s3cret?@{AT}'", "invalid redis URL .in a password, write @ as %40, .*: use redis://host:"),
        (
            f"url: 'redis+sentinel://:s3cret@{AT}'",
            "invalid redis URL .the name of the service is missing.: use redis://",
        ),
        (f"url: 'redis://:s3cret@{AT}?db=s3cret'", "invalid redis URL .Invalid value for 'db'"),
        (f"url: redis://{AT}?sentinel_password=s3cret@", "no option 'sentinel_password'"),
    ],
)
def test_what_is_wrong_is_told_when_a_function_is_bound_and_by_the_check(
    tmp_path: Path, written: str, message: str
) -> None:
    registry = load(tmp_path, written)
    for look in (lambda: registry.bind(double, "api")(1), registry.check):
        with pytest.raises(ConfigError, match=message) as caught:
            look()
        assert "s3cret" not in str(caught.value)


def test_files_that_are_no_certificates_or_belong_to_another_key_are_told(certificates: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"ssl_ca_certs": "ca.key"}, "ssl_ca_certs '.*ca.key' does not have what it should"),
        ({"ssl_certfile": "client.pem", "ssl_keyfile": "server.key"}, "ssl_certfile .*: KEY_VALUES_MISMATCH"),
        ({"ssl_certfile": "client.pem", "ssl_keyfile": "gone.key"}, "ssl_keyfile '.*gone.key' cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            RedisBackend(
                {"url": f"rediss://{AT}", "options": {name: str(certificates / each) for name, each in options.items()}}
            )
