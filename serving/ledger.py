"""What one request has cost: whoever works on it adds to it; headers, metrics and logs are read from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.text.model import Kind
from models.wire import Reply
from serving.keys import Caller

# What is counted of a request, by what the model is for
USES: Mapping[Kind, str] = {"embedding": "embed", "reranking": "rerank", "classification": "classify"}


@dataclass
class Ledger:
    """Of one request. Times are sums over the sequences or texts that were computed, in seconds.

    kind: what the model is for (embed, rerank, classify); empty where none was asked.
    num_hits, num_misses: sequences that the cache had, or had not. num_tokens: that were computed, special ones
    included. headers: further ones of the reply.
    """

    request_id: str = ""
    caller: Caller = field(default_factory=Caller)
    kind: str = ""
    model: str = ""
    num_hits: int = 0
    num_misses: int = 0
    num_tokens: int = 0
    num_computed: int = 0
    queue_s: float = 0.0
    inference_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)

    def add_header(self, name: str, value: str) -> None:
        """One more value of a list."""
        known = self.headers.get(name)
        self.headers[name] = value if known is None else f"{known}, {value}"

    def begin(self, kind: Kind, model: str) -> None:
        """A model is asked."""
        self.kind, self.model = USES[kind], model

    def note_lookup(self, hits: int, misses: int) -> None:
        """What the cache had of a request."""
        self.num_hits += hits
        self.num_misses += misses

    def note_reply(self, reply: Reply) -> None:
        """One call of a runner."""
        self.num_tokens += sum(reply.num_tokens)
        self.num_computed += len(reply.num_tokens)
        self.queue_s += reply.queue_s
        self.inference_s += reply.inference_s

    @property
    def cache(self) -> str:
        """hit, miss or partial; empty where nothing was looked up."""
        if not self.num_hits + self.num_misses:
            return ""
        return "hit" if not self.num_misses else "miss" if not self.num_hits else "partial"

    def cost_headers(self, total_s: float) -> dict[str, str]:
        """As text-embeddings-inference has them (router/src/http/server.rs): milliseconds, means of sequences."""
        if not self.cache:
            return {}
        count = max(1, self.num_computed)
        return {
            "x-total-time": f"{total_s * 1e3:.2f}",
            "x-queue-time": f"{self.queue_s / count * 1e3:.2f}",
            "x-inference-time": f"{self.inference_s / count * 1e3:.2f}",
            "x-compute-tokens": str(self.num_tokens),
            "x-cache": self.cache,
        }
