"""Where the commands `baton` and `kubectl-baton` begin. Ctrl-C while Python still loads the rest ends them silently."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    from .main import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def kubectl() -> None:
    from .main import kubectl as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
