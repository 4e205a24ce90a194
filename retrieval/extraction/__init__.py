"""Bytes of a file to text and chunks, in a child process that may die."""
