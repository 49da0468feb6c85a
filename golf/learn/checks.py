"""The one-line refusals of this package's constructors."""

from __future__ import annotations

from golf.common.errors import ConfigError


def require(holds: bool, key: str, value: object, needs: str) -> None:
    """Raise ConfigError `key=value: must be needs` unless `holds`."""
    if not holds:
        raise ConfigError(f"{key}={value}: must be {needs}")
