"""Where training examples come from: latents of stories and clips, and how a step draws from them."""
