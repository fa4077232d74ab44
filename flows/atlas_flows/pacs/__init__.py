"""Flows `pull` and `push`, and their Prefect-free work: series in from a PACS, labels back."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
