"""Distillation: pack audio, teach, train, evaluate."""
