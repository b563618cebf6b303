"""Video autoencoders: latents to pixels, streaming, and pixels to latents for the context frames."""
