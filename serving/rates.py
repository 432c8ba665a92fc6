"""How much each caller may ask for in a minute; counted in Redis, over all gateway workers.

The windows and their arithmetic are those of the package `limits`.
"""

from __future__ import annotations

import logging
import math
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from limits.util import WindowStats

from serving import redis as redis_server
from serving.errors import RateLimited
from serving.ledger import Ledger
from serving.measures import measures_of_process
from serving.redis import LIMITS_PREFIX, REDIS_ERRORS, Pause
from serving.settings import Settings
from serving.tasks import apart

logger = logging.getLogger(__name__)

WINDOW_S = 60


class RateLimits:
    """Requests and tokens a minute. While Redis is away nobody is refused: embeddings go on without it."""

    def __init__(self, settings: Settings) -> None:
        self._items = {
            name: RateLimitItemPerMinute(most)
            for name, most in (
                ("requests", settings.requests_per_minute),
                ("tokens", settings.tokens_per_minute),
            )
            if most is not None
        }
        # A client like every other here: the package's own would try again for seconds where Redis is away
        self._client = redis_server.connect(settings)
        storage = RedisStorage(
            "async+redis://",
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix=LIMITS_PREFIX,
            connection_pool=self._client.connection_pool,  # type: ignore[arg-type]  # so its documentation has it
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._away = Pause()

    async def take_request(self, ledger: Ledger) -> None:
        """Counts a request of its caller.

        Raises:
            RateLimited: the caller has had as many as there are in a minute.
        """
        await self._take("requests", ledger, 1)

    async def take_tokens(self, ledger: Ledger, count: int) -> None:
        """Counts tokens that are to be computed; what the cache has costs nothing.

        A request of more than a minute's tokens takes the whole minute: it would never be let in otherwise.

        Raises:
            RateLimited: the caller has had as many as there are in a minute.
        """
        await self._take("tokens", ledger, count)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _take(self, name: str, ledger: Ledger, count: int) -> None:
        item = self._items.get(name)
        if item is None or count <= 0 or self._away.is_on:
            return
        # Apart: redis-py, by asyncio.wait_for of Python 3.11, forgets a cancellation that comes while it sends
        found = await apart(self._hit(name, ledger.caller.name, min(count, item.amount)))
        if found is None:
            return
        is_taken, window = found
        reset_s = max(1, math.ceil(window.reset_time - time.time()))
        ledger.add_header("ratelimit-policy", f'"{name}";q={item.amount};w={WINDOW_S}')
        ledger.add_header("ratelimit", f'"{name}";r={window.remaining};t={reset_s}')
        if not is_taken:
            measures_of_process().limited.labels(name).inc()
            raise RateLimited(f"{item.amount} {name} a minute are allowed", float(reset_s))

    async def _hit(self, name: str, caller: str, cost: int) -> tuple[bool, WindowStats] | None:
        """Whether it was taken, and how things stand then; None where Redis does not say."""
        item = self._items[name]
        try:
            is_taken = await self._limiter.hit(item, name, caller, cost=cost)
            window = await self._limiter.get_window_stats(item, name, caller)
        except (StorageError, *REDIS_ERRORS) as error:
            self._away.begin()
            measures_of_process().redis_errors.labels("limits").inc()
            cause = error.storage_error if isinstance(error, StorageError) else error
            logger.warning("Redis failed (%s); nobody is limited meanwhile", type(cause).__name__)
            return None
        self._away.reset()
        return is_taken, window
