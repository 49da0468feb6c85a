"""How a wandb run ends, whatever has become of the network, of wandb's own process, and of its folder: in bounded time,
and without a word of wandb's."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

SERVICE = ("wandb-core", "wandb-service")
"""How wandb's own process may be called."""
LEAST_ROOM = 1 << 16
GRACE_S = 10.0
"""How much longer than it was told to wandb may take to give up, before its process is ended."""


def limit(settings: Any, wait_s: float) -> None:
    """Have wandb give up the upload at a run's end after `wait_s`, where it can."""
    if "finish_timeout_raises" in type(settings).model_fields:  # older ones do not know it
        settings.finish_timeout, settings.finish_timeout_raises = wait_s, True


def check_place(folder: Path) -> None:
    """Raises OSError where the folder that wandb's process writes a run to is gone, or its disk full: of either wandb
    says nothing."""
    found = os.statvfs(folder)
    if found.f_blocks and found.f_bavail * found.f_frsize < LEAST_ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def end(run: Any, exit_code: int, wait_s: float) -> bool:
    """Finish a run, wait for its last byte, and end wandb's process; whether all was taken within `wait_s`, which its
    settings have too (`limit`). If not, the rest lies in the run's folder. Raises what wandb raised."""
    errors: list[BaseException] = []

    def finish() -> None:
        import wandb

        try:
            run.finish(exit_code=exit_code)
            wandb.teardown()  # finish returns some milliseconds before wandb's own process has written the file's end
        except BaseException as error:
            errors.append(error)

    waiting = threading.Thread(target=finish, name="wandb's end", daemon=True)
    waiting.start()
    waiting.join(wait_s + GRACE_S)
    ended = not waiting.is_alive()
    if not ended or errors:
        kill()
    if ended and errors and not isinstance(errors[0], TimeoutError):
        raise errors[0]
    return ended and not errors


def kill() -> None:
    """End the process that wandb has started from this one, and what it has registered for this one's end."""
    import psutil

    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.name().startswith(SERVICE):
                child.terminate()
                with suppress(psutil.TimeoutExpired):
                    child.wait(2.0)
                child.kill()
                child.wait(2.0)
    with suppress(Exception):  # it may say that its process is gone; done at the exit, that would be a traceback
        import wandb

        wandb.teardown()
