"""Interactions and catalogues: readers, cleaning, the dataset artifact and its leave-one-out splits.

``ingest`` makes a dataset from any supported source, ``dataset`` reads and writes one, ``splits`` says who may see
what.
"""
