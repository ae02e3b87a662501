"""The recommender without a server: ``Recommender.open(BUNDLE).recommend(user_id=…, k=5)``.

A request's way: ``api`` → ``reading`` (what may be asked) → ``recommender`` (which path answers, in time) → ``users``,
``fallback`` (the TRM, popularity) and, through the port in ``exploration``, ``worker`` (the policy in a process of its
own) → ``outcome`` (how it looks on the wire). ``loading`` makes all of it from a bundle.
"""

from deeprec.recommender.api import Recommender

__all__ = ["Recommender"]
