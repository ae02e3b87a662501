"""The Feast repository: ``feature_store.yaml`` and ``definitions``, instantiated by ``deeprec.features``."""
