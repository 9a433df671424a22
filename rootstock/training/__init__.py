"""What is trained: the linear head on cached features, and later layers on images."""
