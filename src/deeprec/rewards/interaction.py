"""Interaction: a rollout should call the TRM several times, up to three (method, section 3)."""

from __future__ import annotations


def interaction_value(calls: int) -> float:
    """0 for n ≤ 1 calls, else 0.5 · (min(n, 3) − 1)."""
    return 0.0 if calls <= 1 else 0.5 * (min(calls, 3) - 1)
