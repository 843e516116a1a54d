"""Models take one conf, merged over their defaults, and say which inputs they need."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any, ClassVar

from torch import nn


class BaseModel(nn.Module):
    default_conf: ClassVar[dict[str, Any]] = {}
    required_inputs: ClassVar[list[str]] = []

    def __init__(self, conf: dict[str, Any]) -> None:
        super().__init__()
        self.conf = {**self.default_conf, **conf}
        self._init(self.conf)

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        missing = [key for key in self.required_inputs if key not in data]
        assert not missing, missing
        return self._forward(data)


def dynamic_load(root: ModuleType, name: str) -> type[BaseModel]:
    """The one model class that a module of this package defines itself."""
    module = importlib.import_module(f"{root.__name__}.{name}")
    models = [
        one
        for _, one in inspect.getmembers(module, inspect.isclass)
        if one.__module__ == module.__name__ and issubclass(one, BaseModel)
    ]
    assert len(models) == 1, models
    return models[0]
