"""Section of the look at whether the world has moved since training."""

from __future__ import annotations

from pydantic import Field

from deeprec.config.section import Positive, Section, Share


class DriftConfig(Section):
    """What is compared with the bundle's training data, and from where on it is drift.

    A figure has drifted when its whole 95 % interval lies beyond its limit, and is well when all of it lies within.
    """

    days: Positive = 7
    """Days that are looked at, up to now; never those that the bundle was trained on."""
    min_users: Positive = 200
    """Users below whom a figure decides nothing."""
    max_unknown_items: Share = 0.05
    """Largest share of events on items that the bundle does not know."""
    max_popularity_shift: Share = 0.1
    """Largest Jensen–Shannon divergence, in bits, between what training's last part and events took, by groups of items
    from popular to rare."""
    max_psi: float = Field(0.25, gt=0)
    """Largest population stability index of history length and of activity: by convention, up to 0.1 nothing has moved,
    and above 0.25 much has."""
    max_popularity_answers: Share = 0.2
    """Largest share of requests that popularity answered, neither policy nor TRM."""
    min_policy_answers: Share = 0.5
    """Least share of requests that the policy answered, where it is what the bundle serves."""
    max_hit_loss: Share = 0.2
    """Largest part of the hit share of the days before that the days looked at may have lost: 0.2 is a fifth less."""
    cooldown_hours: float = Field(24.0, ge=0)
    """`--retrain` starts nothing for so long after the last training run began, whoever started that."""
