"""Talking with a model: its template, the conversation, the loop."""
