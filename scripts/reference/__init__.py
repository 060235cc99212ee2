"""Reference models: corpus, tokenizer, model, training, export and widening (training extras; never imported by the runtime)."""
