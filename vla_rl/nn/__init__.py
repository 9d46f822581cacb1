"""Network pieces that two algorithms share."""
