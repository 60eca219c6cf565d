"""Data that is fetched once and cached: images, scenes made of them, weights of trained models."""
