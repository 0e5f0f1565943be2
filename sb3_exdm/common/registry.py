"""Registries: names that users can extend."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from sb3_exdm.common.validation import check_choice

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry]):
    """
    Mapping from names to entries, with a decorator to add one.

    :param kind: noun for error messages, e.g. ``"reward"``
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """
        Return a decorator that adds an entry.

        :param name: unused name; registering the same object twice, as reloading a module does, replaces the entry
        :raises ValueError: if the name is empty or stands for something else
        """
        if not name or not isinstance(name, str):
            raise ValueError(f"The name of a {self.kind} must be a string that is not empty, got {name!r}.")

        def add(entry: Entry) -> Entry:
            known = self._entries.get(name)
            if known is not None and _identity(known) != _identity(entry):
                raise ValueError(f"There is a {self.kind} {name!r} already: {known!r}. Choose another name.")
            self._entries[name] = entry
            return entry

        return add

    def unregister(self, name: str) -> None:
        """
        Remove an entry; does nothing if there is none.

        :param name: registered name
        """
        self._entries.pop(name, None)

    def __getitem__(self, name: str) -> Entry:
        """:raises ValueError: for an unknown name, with the nearest known one"""
        check_choice(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _identity(entry: object) -> tuple[object, object]:
    """Module and name of an entry, which are the same when a module is imported again."""
    return getattr(entry, "__module__", None), getattr(entry, "__qualname__", entry)
