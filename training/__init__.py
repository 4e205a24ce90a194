"""Training: language-model pre-training and reading tasks. Heavy imports stay inside the submodules."""
