"""Making the bundled generator from nothing: corpus, tasks, mixture, model, optimizers, checkpoints."""
