"""The catalog: what is known of every case, label, model and score, in SQLite or PostgreSQL.

Whoever writes queries of their own takes the tables from `atlas_core.catalog.tables`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
