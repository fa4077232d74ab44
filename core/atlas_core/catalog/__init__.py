"""The catalog: cases, labels, models and scores, in SQLite or PostgreSQL.

Modules with queries of their own take the tables from `atlas_core.catalog.tables`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
