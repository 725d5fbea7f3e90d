"""Networks: backbones, checkpoints, and the network of a configuration."""
