"""Networks: backbones, and export."""
