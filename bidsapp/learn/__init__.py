"""Fitting and applying networks: one loop for pretraining and fine-tuning."""
