"""An autoregressive action-token VLA on any transformers vision-language model, as a policy type of LeRobot's.

LeRobot finds the three modules by their names, once ``configuration_token_vla`` has been imported.
"""
