"""Draft trees, their verification and the policies that choose them: NumPy only, no engine."""
