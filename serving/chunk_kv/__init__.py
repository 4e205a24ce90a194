"""KV of chunks, computed once and used wherever the chunk stands in a prompt. See README.md."""
