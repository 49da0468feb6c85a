"""golf's version, where no installation tells it."""

VERSION = "0.1.0"
