"""Errors that a user can act on. Each message names the key, file or model and says what to do."""

from __future__ import annotations


class KeepsetError(Exception):
    """Base of every error that keepset raises on purpose."""


class ConfigError(KeepsetError):
    """The configuration is not valid; the message names the key."""


class ModelError(KeepsetError):
    """A model cannot be found, read or run; the message names it."""


class TextError(KeepsetError):
    """A corpus or task cannot be found, read or used; the message names it."""


class CacheError(KeepsetError):
    """An activation cache is corrupt, or belongs to another model, corpus or setting."""


class RecordError(KeepsetError):
    """A job's record is missing, damaged, or cannot be made; the message names the file."""


class KernelError(KeepsetError):
    """A kernel cannot run: a library is missing, or it was given tensors that it does not take."""
