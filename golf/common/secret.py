"""The user's own key, by which golf knows what it wrote itself; and the values of others' keys in texts."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from golf.common.errors import ConfigError

_NAMED = re.compile(r"(API_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
"""What environment variables are called that nobody else is to see."""
_SHORTEST = 8


def config_home() -> Path:
    """The user's config folder of golf: golf/ in $XDG_CONFIG_HOME, or in ~/.config. Raises ConfigError without HOME."""
    base = os.environ.get("XDG_CONFIG_HOME")
    if base and os.path.isabs(base):
        return Path(base) / "golf"
    try:
        return Path.home() / ".config" / "golf"
    except RuntimeError:
        raise ConfigError("HOME is not set, and golf keeps there what tells your own runs from others'\n"
                          "set HOME, or XDG_CONFIG_HOME to a folder of your own") from None  # fmt: skip


def secret_key(make: bool = False) -> bytes:
    """The user's secret, kept in `config_home` for nobody else's eyes. make: if there is none yet.

    Raises ConfigError where there is none, where it can't be written, and for one that others may read.
    """
    path = config_home() / "trust.key"
    for _ in range(2):
        try:
            with path.open("rb") as file:
                held = os.fstat(file.fileno())
                secret = file.read(65)
            if held.st_mode & 0o077 or held.st_uid != os.geteuid():
                raise ConfigError(f"{path} may be read by others: chmod 600 it, or delete it: golf then makes another")
            if len(secret) < 32:
                raise ConfigError(f"{path} is broken: delete it, and golf makes another")
            return secret
        except (FileNotFoundError, NotADirectoryError):
            if not make:
                raise ConfigError(f"{path.parent} holds no key of yours") from None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        _make_key(path)
    raise ConfigError(f"cannot write {path}")


def keyed(secret: bytes, *parts: bytes) -> str:
    """The hex digest by which the holder of this secret knows these bytes again (HMAC-SHA256)."""
    digest = hmac.new(secret, digestmod=hashlib.sha256)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def is_keyed(given: object, secret: bytes, *parts: bytes) -> bool:
    """Whether `given` is what `keyed` says of these bytes."""
    return isinstance(given, str) and hmac.compare_digest(given.encode(), keyed(secret, *parts).encode())


def _make_key(path: Path) -> None:
    """Write a new key, whole, unless another process was quicker."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                os.replace(fresh, path)
    except OSError as error:
        raise ConfigError(f"cannot keep the key by which golf knows what you made, {path}: {error.strerror}\n"
                          "set XDG_CONFIG_HOME to a folder of your own") from error  # fmt: skip
    finally:
        with suppress(OSError):
            fresh.unlink()


def keys_here() -> dict[str, str]:
    """Keys and passwords of this process's environment: name by value."""
    return {v: name for name, v in os.environ.items() if len(v.strip()) >= _SHORTEST and _NAMED.search(name)}


def kept_without_keys(value: Any) -> Any:
    """A JSON value as a record keeps it: `without_keys` of every text in it."""
    if isinstance(value, str):
        return without_keys(value)
    if isinstance(value, dict):
        return {name: kept_without_keys(one) for name, one in value.items()}
    return [kept_without_keys(one) for one in value] if isinstance(value, list) else value


def without_keys(text: str) -> str:
    """A text in which the value of such a variable is its name."""
    for value, name in keys_here().items():
        if value in text:
            text = text.replace(value, f"${name}")
    return text
