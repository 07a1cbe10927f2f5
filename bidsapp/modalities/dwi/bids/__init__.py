"""Which dMRI runs there are, and what is known of them."""
