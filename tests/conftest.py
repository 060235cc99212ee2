"""For all tests."""

from __future__ import annotations

import signal

# A shell's background job ignores Ctrl-C, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# And what nohup starts ignores that its terminal goes away.
for ends in (signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(ends) is signal.SIG_IGN:
        signal.signal(ends, signal.SIG_DFL)
