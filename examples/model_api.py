"""A model API behind FastAPI: keys that are rotated, a quota of tokens, metrics and the live page.

python examples/model_api.py           # asks some questions, shows what happened, and ends
python examples/model_api.py --live    # stays, for a look at the live page

It needs fastapi, uvicorn, openai and prometheus-client besides opero. The model is a service on loopback that has
blocked one of the keys, and answers each fifth request with 503.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import openai
import uvicorn
from fastapi import FastAPI
from loopback import Loopback

from opero import Policy, Registry, opero, settle
from opero.integrations import asgi, prometheus, starlette

KEYS = ["key-blocked", "key-of-team-a", "key-of-team-b"]
ANSWER_TOKENS = 50
"""The longest answer that a question may get."""
USED = 12
"""The tokens that an answer of the service takes."""
numbers = itertools.count(1)


def model(path: str, headers: Mapping[str, str]) -> tuple[int, Any]:
    """The service: refuses the first key, and is overloaded now and then."""
    if headers["Authorization"].endswith("blocked"):
        return 401, {"error": {"message": "this key is blocked"}}
    if next(numbers) % 5 == 0:
        return 503, {"error": {"message": "overloaded"}}
    message = {"role": "assistant", "content": "8,611 metres"}
    return 200, {
        "id": "answer",
        "object": "chat.completion",
        "created": 1,
        "model": "small",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": USED - 6, "completion_tokens": 6, "total_tokens": USED},
    }


def tokens(question: str, api_key: str = "") -> int:
    """The tokens that a question may take from the quota, as an estimate: of itself, and of the longest answer."""
    return len(question) // 4 + ANSWER_TOKENS


# In a deployment these are the lines of policies/base.yaml, and the keys secrets: `values: ["secret:KEY_1", ...]`.
QUOTA = [  # those of the service: a question takes one request and some tokens, or waits for both
    {"rate": "6000/min", "burst": 50},
    {"rate": "60000/min", "burst": 500, "cost": tokens, "name": "tokens"},
]
POLICY = Policy(
    retry={"retries": 3, "min_delay": "10ms"},
    fallback={"arg": "api_key", "values": KEYS, "order": "round_robin"},
    rate_limit=QUOTA,
    bulkhead={"max_concurrent": 8, "max_wait": "5s"},
    timeout={"attempt": "10s", "total": "30s"},
    circuit_breaker={"consecutive_failures": 5},
)
registry = Registry({"model": POLICY})
clients: dict[str, openai.AsyncOpenAI] = {}
base_url = ""
app = FastAPI()
starlette.install(app)  # 503 with Retry-After for calls that a policy rejects, 504 for timeouts
app.mount("/internal", asgi.AsgiApp(registry))  # /internal/metrics, /internal/health, and the live page
prometheus.instrument(registry)


@opero(policy="model", registry=registry)
async def ask(question: str, api_key: str = "") -> str:
    """Ask the model, with the key that opero passes."""
    if api_key not in clients:
        clients[api_key] = openai.AsyncOpenAI(api_key=api_key, base_url=base_url, max_retries=0)
    completion = await clients[api_key].chat.completions.create(
        model="small", max_tokens=ANSWER_TOKENS, messages=[{"role": "user", "content": question}]
    )
    if completion.usage is not None:
        settle(completion.usage.total_tokens)  # what the estimate was too high by goes back to the quota
    return completion.choices[0].message.content or ""


@app.get("/ask")
async def answer(question: str) -> str:
    return await ask(question)


@contextmanager
def served() -> Generator[str]:
    """Serve the application in a thread: its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def get(url: str) -> tuple[int, str]:
    try:
        with urlopen(Request(url)) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def main() -> None:
    global base_url
    with Loopback(model) as service, served() as url:
        base_url = f"{service.url}/v1"
        started = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            asked = [f"{url}/ask?question={quote(f'How tall is K2? ({number})')}" for number in range(24)]
            answers = list(pool.map(get, asked))
        seconds = time.monotonic() - started
        print(f"{sum(status == 200 for status, _ in answers)} of {len(answers)} questions answered: {answers[0][1]}")
        estimated, spent = sum(tokens(f"How tall is K2? ({number})") for number in range(24)), 24 * USED
        is_within = spent <= 500 + 1000 * seconds
        print(f"{spent} of {estimated} estimated tokens in {seconds:.1f} s, within the quota: {is_within}")
        stats = ask.stats
        print(f"kinds of failures {sorted(stats.kinds)}, {stats.failures} calls failed")
        metrics = get(f"{url}/internal/metrics")[1].splitlines()
        print(next(line for line in metrics if line.startswith("opero_calls_total")))
        print("health", get(f"{url}/internal/health")[0])
        if "--live" in sys.argv:
            print(f"the live page: {url}/internal/opero; Ctrl-C ends")
            threading.Event().wait()


if __name__ == "__main__":
    main()
