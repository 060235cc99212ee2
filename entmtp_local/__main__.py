"""The command `entmtp-local`, also as `python -m entmtp_local`."""

import signal


def main() -> None:
    """Run the command line."""
    # While the modules are imported there is nothing to tidy up: Ctrl-C ends the process without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from entmtp_local.cli.main import main as command

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command()


if __name__ == "__main__":
    main()
