"""The gates between stages: ``gate`` holds verdicts, reports and metric thresholds; ``data`` checks a dataset."""
