"""The patched engine: finding, loading and driving it."""
