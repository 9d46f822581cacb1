"""A small Gaussian or Gaussian-mixture policy over action chunks, as a policy type of LeRobot's.

LeRobot finds the three modules by their names, once ``configuration_gaussian_nano`` has been imported.
"""
