"""EntMTP-local: chat with a local model whose tokens are drafted by its MTP head and verified by the model itself."""

__version__ = "0.1.0"
