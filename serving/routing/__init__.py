"""Several generators of one model: each request goes where most of its KV is. See README.md."""
