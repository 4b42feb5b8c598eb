"""The way into the command line: signals are taken care of before anything else is imported."""

# ruff: noqa: PLC0415, each import waits for what has to stand first
import os
import signal

_STOPPED = 130


def _leave_at_once(*_: object) -> None:
    os.write(2, b"onnx-cbq: stopped; no unfinished file was left behind\n")
    os._exit(_STOPPED)


def main() -> None:
    """Run the command line, as `onnx_cbq.cli.main` says, in a process of its own."""
    signal.signal(signal.SIGINT, _leave_at_once)
    signal.signal(signal.SIGTERM, _leave_at_once)
    import warnings

    from onnx_cbq.system import stopping

    stopping.watch()
    # They are for whoever writes a program; what a user should know is an error or a note.
    warnings.simplefilter("ignore")
    from onnx_cbq.cli.main import main as run

    try:
        run()
    except SystemExit as end:
        if end.code == _STOPPED:
            stopping.leave(said=True)
        stopping.ignore()
        raise


if __name__ == "__main__":
    main()
