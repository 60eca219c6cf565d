"""Trained models of other people, rebuilt in torch, and the tasks that studies run them on."""
