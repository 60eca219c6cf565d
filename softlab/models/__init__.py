"""Trained models small enough for a laptop, as sources of real attention."""
