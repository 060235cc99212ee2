"""Models of the Hugging Face hub: which file of a repository, where it is kept, how it gets there whole."""
