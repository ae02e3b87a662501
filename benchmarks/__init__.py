"""Every figure of docs/explanation/measured.md, one command each: ``python -m benchmarks.NAME``."""
