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

from serving.errors import RateLimited
from serving.ledger import Ledger
from serving.measures import measures_of_process
from serving.redis import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, LIMITS_PREFIX, EmbeddedRedis
from serving.settings import Settings

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
        if self._items:
            storage = RedisStorage(
                _address(settings),
                wrap_exceptions=True,
                implementation="redispy",
                key_prefix=LIMITS_PREFIX,
                socket_connect_timeout=CONNECT_TIMEOUT_S,
                socket_timeout=ANSWER_TIMEOUT_S,
            )
            self._limiter = SlidingWindowCounterRateLimiter(storage)

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

    async def _take(self, name: str, ledger: Ledger, count: int) -> None:
        item = self._items.get(name)
        if item is None or count <= 0:
            return
        caller = ledger.caller.name
        try:
            is_taken = await self._limiter.hit(item, name, caller, cost=min(count, item.amount))
            window = await self._limiter.get_window_stats(item, name, caller)
        except StorageError as error:
            measures_of_process().redis_errors.labels("limits").inc()
            logger.warning("Redis failed (%s); nobody is limited meanwhile", type(error.storage_error).__name__)
            return
        reset_s = max(1, math.ceil(window.reset_time - time.time()))
        ledger.add_header("ratelimit-policy", f'"{name}";q={item.amount};w={WINDOW_S}')
        ledger.add_header("ratelimit", f'"{name}";r={window.remaining};t={reset_s}')
        if not is_taken:
            measures_of_process().limited.labels(name).inc()
            raise RateLimited(f"{item.amount} {name} a minute are allowed", float(reset_s))


def _address(settings: Settings) -> str:
    """Of Redis, as the package wants it."""
    if settings.redis_url is None:
        return f"async+redis+unix://{EmbeddedRedis.socket_path(settings.data_dir)}"
    scheme, _, rest = settings.redis_url.partition("://")
    return f"async+redis+unix://{rest}" if scheme == "unix" else f"async+{scheme}://{rest}"
