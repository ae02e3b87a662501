"""The Feast repository: ``definitions``, applied by ``deeprec.features``."""
