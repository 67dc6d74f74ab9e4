"""What was worked out last, so that it need not be again."""

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The `size` values that were asked for last, by key."""

    def __init__(self, size: int):
        self.size = size
        self._values: dict[Key, Value] = {}

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of `key`; what `make` gives where it is not known, or no longer."""
        value = self._values.pop(key) if key in self._values else make()
        self._values[key] = value
        if len(self._values) > self.size:
            del self._values[next(iter(self._values))]
        return value
