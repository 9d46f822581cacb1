"""Training over several processes and machines: sparse weight synchronisation, and collectors and a learner on Ray."""
