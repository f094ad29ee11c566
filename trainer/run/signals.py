"""SIGTERM and Ctrl-C: the first asks for a save at the next step boundary, a second Ctrl-C exits at once.

Python runs a handler only between two bytecodes of the main thread, and one call into a compiled graph can
take minutes. So separate threads receive the signals. SIGINT is blocked for all others: with every graph it
runs, MindSpore installs a SIGINT handler that sends SIGTERM instead.
"""

import os
import signal
import threading
from typing import Self

import click

EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}


class StopSignals:
    """A context that receives SIGTERM and SIGINT. Enter it in the main thread, before others start.

    Once `can_save` is set, the first signal only sets `received`, and the loop saves and stops; before, there
    is nothing to save, and it ends the process.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.can_save, self._lock = False, threading.Lock()

    @property
    def exit_code(self) -> int:
        """0 after SIGTERM or no signal, 130 after Ctrl-C."""
        return EXIT_CODES[self.received] if self.received else 0

    def __enter__(self) -> Self:
        self._entered = True
        self._old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_wakeup = signal.set_wakeup_fd(self._write)
        # Even an empty handler in Python sends the number through the pipe the moment the signal arrives.
        self._old_handler = signal.signal(signal.SIGTERM, lambda *_: None)
        threading.Thread(target=self._read_sigterm, args=(read,), name="SIGTERM", daemon=True).start()
        self._sigint = threading.Thread(target=self._wait_sigint, name="SIGINT", daemon=True)
        self._sigint.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._entered = False
        signal.set_wakeup_fd(self._old_wakeup)
        signal.signal(signal.SIGTERM, self._old_handler)
        os.close(self._write)  # ends the SIGTERM thread
        signal.pthread_kill(self._sigint.ident or 0, signal.SIGINT)  # ends the SIGINT thread
        self._sigint.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._old_mask)

    def _read_sigterm(self, read: int) -> None:
        while byte := os.read(read, 1):
            if byte[0] == signal.SIGTERM:
                self._notice(signal.SIGTERM)
        os.close(read)

    def _wait_sigint(self) -> None:
        while signal.sigwait({signal.SIGINT}) and self._entered:
            self._notice(signal.SIGINT)

    def _notice(self, number: signal.Signals) -> None:
        with self._lock:
            again = self.received is not None
            if not self.can_save or (again and number == signal.SIGINT):
                click.echo(f"{number.name}: ended at once; what was saved before is whole", err=True)
                os._exit(EXIT_CODES[number])
            if not again:
                self.received = number
                click.echo(f"{number.name}: saving after this step (Ctrl-C again ends at once)", err=True)
