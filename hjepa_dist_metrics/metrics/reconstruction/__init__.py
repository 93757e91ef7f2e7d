"""Models with several heads that reconstruct images and their meaning."""
