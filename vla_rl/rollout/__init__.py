"""From policy and environment to transitions, evaluations and videos."""
