"""What the pipeline and the servers ask of Feast: ``store`` publishes a dataset, ``online`` reads it back.

The definitions themselves are in ``deeprec.feature_repo``.
"""
