"""The simulated arm as an ament package."""
