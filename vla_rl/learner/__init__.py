"""The learner in a process of its own, so that updates never delay a control step."""
