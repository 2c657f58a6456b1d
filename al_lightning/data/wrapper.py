"""Data module that wraps another: what it does not define itself is the wrapped one's."""

from functools import cache
from inspect import get_annotations
from typing import Any

from al_lightning._lightning import LightningDataModule

ABSENT = object()


class Wrapper(LightningDataModule):
    """Wrap a data module: attributes that the subclass does not define are read, set and deleted on the wrapped one.

    Args:
        inner: The wrapped data module.
    """

    # Checkpoints hold the wrapped module's hyper-parameters, which are not arguments of this class.
    CHECKPOINT_HYPER_PARAMS_KEY = "wrapper_hyper_parameters"

    inner: LightningDataModule
    _set_from_outside: "SetFromOutside | None"

    def __init__(self, inner: LightningDataModule) -> None:
        # Not `super().__init__()`: the wrapped module holds the state that Lightning gives a data module.
        self._set_from_outside = None
        self.inner = inner

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 - whatever the wrapped module has
        """Read any attribute that this class does not define from the wrapped module, Lightning's hooks included.

        So Lightning sees which hooks the user has overridden. Double-underscore names are always the wrapper's, because
        copying and pickling look for them on an object that is still empty.
        """
        if is_own(type(self), name):
            return super().__getattribute__(name)
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: object) -> None:
        """Set any attribute that this class does not hold, hooks included, on the wrapped module."""
        if is_held(type(self), name):
            super().__setattr__(name, value)
        else:
            self._note(name)
            setattr(self.inner, name, value)

    def __delattr__(self, name: str) -> None:
        """Delete any attribute that this class does not hold from the wrapped module."""
        if is_held(type(self), name):
            super().__delattr__(name)
        else:
            self._note(name)
            delattr(self.inner, name)

    def _note(self, name: str) -> None:
        if self._set_from_outside is not None:
            self._set_from_outside.note(self.inner, name)

    def __dir__(self) -> list[str]:
        """List the attributes of the wrapper and of the wrapped module."""
        return sorted({*super().__dir__(), *dir(self.inner)})

    def keep_settings(self) -> None:
        """Begin to remember the attributes and hyper-parameters of the wrapped module that are set from outside."""
        self._set_from_outside = SetFromOutside(self.inner)

    def put_settings_back(self) -> None:
        """Restore the attributes set from outside since `keep_settings`, such as a batch size found by a Tuner."""
        if self._set_from_outside is not None:
            self._set_from_outside.undo(self.inner)


@cache
def own_names(wrapper: type) -> frozenset[str]:
    """Return the names that a wrapper's class and its bases define, except Lightning's own bases."""
    bases = [base for base in wrapper.__mro__ if base not in LightningDataModule.__mro__]
    names = frozenset(name for base in bases for name in (*vars(base), *get_annotations(base)))
    return names - {
        "CHECKPOINT_HYPER_PARAMS_KEY"
    }  # Lightning reads it on the class when loading, and on the object when saving


def is_own(wrapper: type, name: str) -> bool:
    """Return True if an attribute is read from the wrapper and not from the wrapped module."""
    return name in own_names(wrapper) or (name.startswith("__") and name.endswith("__"))


def is_held(wrapper: type, name: str) -> bool:
    """Return True if an attribute is set on the wrapper: one of its own that is not a hook of Lightning's."""
    return is_own(wrapper, name) and (name.startswith("__") or not hasattr(LightningDataModule, name))


class SetFromOutside:
    """Earlier values of the attributes that callbacks or a model have set on a data module through its wrapper."""

    def __init__(self, inner: LightningDataModule) -> None:
        self._hparams = dict(inner.hparams)
        self._before: dict[str, Any] = {}

    def note(self, inner: LightningDataModule, name: str) -> None:
        """Remember the value of an attribute, the first time that it is set."""
        self._before.setdefault(name, getattr(inner, name, ABSENT))

    def undo(self, inner: LightningDataModule) -> None:
        """Restore all remembered values and the hyper-parameters."""
        for name, value in self._before.items():
            if value is not ABSENT:
                setattr(inner, name, value)
            elif hasattr(inner, name):
                delattr(inner, name)
        self._before.clear()
        now = inner.hparams
        if now.keys() != self._hparams.keys() or any(now[name] is not self._hparams[name] for name in now):
            now.clear()
            now.update(self._hparams)
