"""The engine of studies: how cases are identified, measured by workers, and kept."""
