"""Training: the linear head on cached features, and fine-tuning of later layers on images."""
