"""What all runs over cases share: outcomes by case, shards, locks, progress, events.

Modules that need Prefect are imported by their own names.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
