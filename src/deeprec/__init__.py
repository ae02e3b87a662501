"""DeepRec: a recommender in which a language-model policy explores the catalogue through a preference-aware TRM."""

__version__ = "0.2.0"
