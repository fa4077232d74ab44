"""Flows `finetune` and `evaluate`; the life cycle of models: store, promotion, rollback."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
