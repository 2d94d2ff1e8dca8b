"""The pix2pix denoiser: networks, losses, data, trainer, export. Knows nothing of the search."""
