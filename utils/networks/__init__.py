"""Networks: backbones, pooling, export."""
