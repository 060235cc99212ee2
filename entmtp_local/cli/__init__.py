"""The `entmtp-local` command, one module for each subcommand."""
