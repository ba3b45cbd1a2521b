"""What asking a server will take, before anything is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from saywhy.config import Price, Sampling
from saywhy.teachers.replies import cost_of
from saywhy.teachers.shape import Question

# English text in common tokenizers. Bytes, not characters: letters of other scripts take more tokens each.
BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Estimate:
    """Requests, the tokens of their prompts, and the tokens written and their cost at the most.

    `counted` says that prompts were counted with a tokenizer. `cost` is in the currency of the price, None without one.
    Attempts that fail come on top where a server bills them; few do.
    """

    requests: int
    prompt_tokens: int
    tokens: int
    cost: float | None
    counted: bool

    def sentence(self, beside: str = "") -> str:
        """Say it in a line; `beside` says what more prompts hold, which nobody knows yet."""
        about = "" if self.counted else "about "
        how = "" if self.counted else " (four characters a token)"
        asked = f"{self.requests:,} request{'' if self.requests == 1 else 's'}"
        prompts = f"{about}{self.prompt_tokens:,} tokens of prompts{how}{beside}"
        line = f"{asked}, {prompts}, at most {self.tokens:,} tokens written"
        if self.cost is None:
            return f"{line}; no price is set, so the cost is not reckoned"
        return f"{line}, at most {self.cost:,.2f} in the currency of the price"


def estimate(
    questions: Iterable[Question],
    instruction: str,
    sampling: Sampling,
    price: Price | None,
    count: Callable[[str], int] | None = None,
) -> Estimate:
    """Reckon what these questions take, each one request; `count` gives a text's tokens, else four bytes are one."""
    tokens_of = count or _guess
    shared = tokens_of(instruction)
    requests = prompt_tokens = 0
    for question in questions:
        requests += 1
        prompt_tokens += shared + tokens_of("".join(question.pieces))
    tokens = requests * sampling.max_tokens
    return Estimate(requests, prompt_tokens, tokens, cost_of(price, prompt_tokens, tokens), count is not None)


def _guess(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)
