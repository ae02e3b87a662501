"""What the pipeline and the servers ask of Feast: ``store`` publishes a dataset, ``online`` reads it back, ``events``
writes new interactions into it.

The definitions themselves are in ``deeprec.feature_repo``.
"""
