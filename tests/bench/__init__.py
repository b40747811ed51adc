"""Measures finapi_session beside what people would pick instead: ``python -m tests.bench``."""
