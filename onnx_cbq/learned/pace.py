"""How fast nets learn: rates rise at first, and where there is far to go, and fall to nothing in the end."""

from __future__ import annotations

import math

# The first updates raise the rates from nothing.
WARM_UP = 20
# In nats: what about 2 bits a weight cost a net, at which rates are as in the settings; and how far they rise.
USUAL_LOSS, MOST_RISE = 0.04, 4.0


def rise(loss: float, usual: float = USUAL_LOSS) -> float:
    """What rates are multiplied by, at a loss before learning: they rise with its square root, up to `MOST_RISE`."""
    return min(max(math.sqrt(max(loss, 0.0) / usual), 1.0), MOST_RISE)


def rate_at(rate: float, updates: int, share: float) -> float:
    """The rate after so many updates, at a share of the whole: half a wave of the cosine behind the warm-up."""
    return rate * min(1.0, (updates + 1) / WARM_UP) * (1 + math.cos(math.pi * share)) / 2


def by_time(updates: int, limit: int, spent: float) -> bool:
    """Whether time decides, of which a share is spent: only if it would run out before the updates.

    Otherwise a repeated run does the same.
    """
    return updates > WARM_UP and spent > updates / limit
