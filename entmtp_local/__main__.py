"""`python -m entmtp_local` is the command `entmtp-local`."""

from entmtp_local.cli.main import main

main()
