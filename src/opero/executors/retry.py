"""Retries: the layer that makes the first attempt of a call, and rounds of others where it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opero.executors.rounds import Rounds
from opero.failures import ORDINARY
from opero.runtime.hosts import Outcome, run_blocking
from opero.runtime.interruption import interruptible
from opero.runtime.tracebacks import cut_context

if TYPE_CHECKING:
    from opero.executors.call import Call, Layer
    from opero.executors.rounds import Args, Kwargs


class RetryExecutor(Rounds):
    """The retry layer of one function."""

    @property
    def prepares(self) -> bool:
        """Whether this layer has work to do even if the first attempt succeeds."""
        return self.alternatives is not None or self.policy.retry_if_result is not None

    def recover(self, layer: Layer, call: Call, args: Args, kwargs: Kwargs, error: Exception) -> Any:
        """Continue after a failed first attempt."""
        try:
            rounds = self.rounds(self.blocking, layer, call, [(args, kwargs)], Outcome(error=error))
            return run_blocking(rounds).get()
        except Exception as raised:
            cut_context(raised, error)
            raise
        finally:
            del error

    async def recover_async(self, layer: Layer, call: Call, args: Args, kwargs: Kwargs, error: Exception) -> Any:
        """Continue after a failed first attempt of an async function."""
        try:
            rounds = self.rounds(self.asynchronous, layer, call, [(args, kwargs)], Outcome(error=error))
            return (await rounds).get()
        except Exception as raised:
            cut_context(raised, error)
            raise
        finally:
            del error

    def wrap(
        self,
        layer: Layer,
        function: Callable[..., Any] | None = None,
        check_response: Callable[[Any], None] | None = None,
    ) -> Layer:
        """Return the layer that retries.

        Args:
            layer: makes an attempt.
            function: the function, if it is all that an attempt is; calling it here saves recursion a frame.
            check_response: raises an exception if what `function` returned is a failed response.
        """

        if self.prepares:

            def in_rounds(call: Call, args: Args, kwargs: Kwargs) -> Any:
                return run_blocking(self.rounds(self.blocking, layer, call, self.variants(args, kwargs))).get()

            return in_rounds

        if function is not None:

            @interruptible
            def called(call: Call, args: Args, kwargs: Kwargs) -> Any:
                if call.inherited is not None:
                    call.check_time()
                call.stats.executed += 1
                try:
                    result = function(*args, **kwargs)
                    if check_response is not None and type(result) not in ORDINARY:
                        check_response(result)
                    return result
                except Exception as error:  # noqa: BLE001  # decided in recover
                    return self.recover(layer, call, args, kwargs, error)

            return called

        def retried(call: Call, args: Args, kwargs: Kwargs) -> Any:
            try:
                return layer(call, args, kwargs)
            except Exception as error:  # noqa: BLE001  # decided in recover
                return self.recover(layer, call, args, kwargs, error)

        return retried

    def wrap_async(self, layer: Layer) -> Layer:
        async def in_rounds(call: Call, args: Args, kwargs: Kwargs) -> Any:
            return (await self.rounds(self.asynchronous, layer, call, self.variants(args, kwargs))).get()

        async def retried(call: Call, args: Args, kwargs: Kwargs) -> Any:
            try:
                return await layer(call, args, kwargs)
            except Exception as error:  # noqa: BLE001  # decided in recover_async
                return await self.recover_async(layer, call, args, kwargs, error)

        return in_rounds if self.prepares else retried
